"""Address and key come from the environment, are checked before anything is sent, and the key is in no error."""

from __future__ import annotations

import traceback

import pytest

from provisioning.vast.account import money_left_usd, vast_account
from provisioning.vast.api import DEFAULT_URL
from provisioning.vast.models import Account, read_record

KEY = "0123456789abcdef-planted-key"


def test_the_key_alone_is_enough() -> None:
    url, key = vast_account({"VAST_API_KEY": KEY})
    assert url == DEFAULT_URL
    assert key.get_secret_value() == KEY
    assert KEY not in repr((url, key))


@pytest.mark.parametrize(
    ("said", "origin"),
    [
        ("https://console.vast.ai/", "https://console.vast.ai"),
        ("  https://cloud.vast.ai\n", "https://cloud.vast.ai"),
        ("http://127.0.0.1:8798", "http://127.0.0.1:8798"),
        ("http://localhost:8798/", "http://localhost:8798"),
        ("", DEFAULT_URL),
        ("   ", DEFAULT_URL),
    ],
)
def test_an_address_of_the_service_or_of_this_machine_is_taken(said: str, origin: str) -> None:
    assert vast_account({"VAST_API_KEY": KEY, "VAST_URL": said})[0] == origin


@pytest.mark.parametrize(
    "url",
    [
        "http://console.vast.ai",
        "https://vast.ai.example.org",
        "https://notvast.ai",
        "https://user:word@console.vast.ai",
        "https://console.vast.ai/api/v0",
        "http://192.0.2.7:80",
        "console.vast.ai",
        "https://console.vast.ai:0",
    ],
)
def test_any_other_address_is_refused_and_named(url: str) -> None:
    with pytest.raises(ValueError, match="VAST_URL") as refused:
        vast_account({"VAST_API_KEY": KEY, "VAST_URL": url})
    assert KEY not in _all_of(refused.value)


@pytest.mark.parametrize("environment", [{}, {"VAST_API_KEY": ""}, {"VAST_API_KEY": " \n"}, {"vast_api_key": KEY}])
def test_without_a_key_the_error_says_which_variable_and_where_keys_are_made(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"VAST_API_KEY is not set.*https://cloud\.vast\.ai/manage-keys/.*export"):
        vast_account(environment)


@pytest.mark.parametrize("damage", [" ", "\n", "\r\nX-Other: 1", "\x00", "ü", "\u2028"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(damage: str) -> None:
    damaged = f"{KEY[:8]}{damage}{KEY[8:]}"
    with pytest.raises(ValueError, match="VAST_API_KEY") as refused:
        vast_account({"VAST_API_KEY": damaged})
    said = _all_of(refused.value)
    assert KEY[:8] not in said
    assert KEY[8:] not in said
    assert "manage-keys" in said


def test_white_space_around_a_key_is_dropped() -> None:
    assert vast_account({"VAST_API_KEY": f" {KEY}\n"})[1].get_secret_value() == KEY


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"balance": 12.5, "credit": 0.0}, 12.5),
        ({"balance": 0.0, "credit": "7.25"}, 7.25),
        ({"balance": -1.5}, -1.5),
        ({"credit": 3}, 3.0),
        ({"balance": None, "credit": "much"}, None),
        ({}, None),
    ],
)
def test_the_money_left_is_in_whichever_field_holds_it(fields: dict[str, object], left: float | None) -> None:
    account = read_record(Account, {"id": 1, **fields})
    assert account is not None
    assert money_left_usd(account) == left


def _all_of(error: BaseException) -> str:
    """The error with everything that it drags along, as a log would show it."""
    return "".join(traceback.format_exception(error)) + repr(error.__context__) + repr(error.__cause__)

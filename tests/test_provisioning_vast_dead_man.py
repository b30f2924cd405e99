"""The arithmetic of the switch on a rented machine, on clocks that jump, stand and begin anew; and whom it asks."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from pathlib import Path

import pytest

from provisioning.vast import dead_man


class Clocks:
    """The two clocks of a machine, and the file system below the switch."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running_s, self.date_s, self.boot = 5000.0, 1.8e9, b"boot-1\n"
        self.is_attempt_alive = False

    def clock_gettime(self, _: int) -> float:
        return self.running_s

    def time(self) -> float:
        return self.date_s

    def strftime(self, _: str) -> str:
        return "now"

    def advance(self, seconds: float) -> None:
        self.running_s += seconds
        self.date_s += seconds


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    found, read = Clocks(tmp_path), dead_man.read
    monkeypatch.setattr(dead_man, "time", found)
    monkeypatch.setattr(dead_man, "FOLDER", f"{tmp_path}/")
    monkeypatch.setattr(dead_man, "is_attempt_alive", lambda: found.is_attempt_alive)
    monkeypatch.setattr(dead_man, "read", lambda path: found.boot if path.endswith("boot_id") else read(path))
    return found


def switch(ttl_s: float = 36_000.0, contact_s: float = 7200.0, staged_s: float = 2700.0) -> dead_man.Switch:
    return dead_man.Switch(ttl_s, contact_s, staged_s, 10.0, 4.0)


def fires_after_s(one: dead_man.Switch, clocks: Clocks, most_s: float = 50_000.0) -> tuple[float, str]:
    """Seconds of looks, every ten, until it wants to destroy; and why."""
    for number in range(int(most_s / 10)):
        if why := one.look():
            return number * 10.0, why
        clocks.advance(10.0)
    return most_s, ""


def test_each_stop_comes_at_its_time(clocks: Clocks) -> None:
    after_s, why = fires_after_s(switch(), clocks)
    assert (after_s, why.split()[0]) == (2700.0, "nothing")


def test_silence_counts_from_the_last_word_and_life_from_birth(clocks: Clocks) -> None:
    (clocks.folder / "staged").touch()
    after_s, why = fires_after_s(switch(), clocks)
    assert (after_s, why.split()[0]) == (7200.0, "no")
    clocks.is_attempt_alive = True
    for name in ("age", "ttl_s"):
        (clocks.folder / name).unlink()
    after_s, why = fires_after_s(switch(ttl_s=9000), clocks)
    assert (after_s, why.split()[0]) == (9000.0, "its")


@pytest.mark.parametrize("jump_s", [-5e8, -4000.0, 4000.0, 5e8])
def test_a_date_that_jumps_changes_nothing(clocks: Clocks, jump_s: float) -> None:
    clocks.is_attempt_alive = True
    one = switch(ttl_s=3600)
    for _ in range(60):
        assert one.look() == ""
        clocks.advance(10.0)
    clocks.date_s += jump_s
    assert fires_after_s(one, clocks)[0] == 3000.0
    # Nor for one that is started again on the same boot.
    clocks.date_s -= jump_s / 2
    assert switch(ttl_s=3600).lived_s == pytest.approx(3600)


def test_a_restart_counts_the_time_between_and_a_reboot_counts_it_by_the_date(clocks: Clocks) -> None:
    one = switch()
    one.look()
    clocks.advance(500.0)
    one.look()
    clocks.advance(1000.0)
    again = switch()
    assert again.lived_s == pytest.approx(1500.0)
    again.look()
    clocks.boot, clocks.running_s = b"boot-2\n", 30.0
    clocks.date_s += 2000.0
    after = switch()
    assert after.lived_s == pytest.approx(3500.0)
    after.look()
    clocks.running_s -= 20.0  # the same boot, and yet earlier: a clock of its own
    clocks.date_s += 100.0
    moved = switch()
    assert moved.lived_s == pytest.approx(3600.0)
    moved.look()
    clocks.boot, clocks.running_s = b"boot-3\n", 40.0
    clocks.date_s -= 1e6
    assert switch().lived_s == pytest.approx(3600.0), "a date that went back takes no life away"


def test_whoever_slept_accuses_nobody_but_its_life_goes_on(clocks: Clocks) -> None:
    (clocks.folder / "staged").touch()
    one = switch()
    one.look()
    clocks.advance(7000.0)
    assert one.look() == ""
    assert one.silent_s <= 30.0
    assert one.lived_s == pytest.approx(7000.0)
    clocks.advance(36_000.0)
    assert "life" in one.look()


def test_a_word_counts_even_if_its_time_goes_back(clocks: Clocks) -> None:
    (clocks.folder / "staged").touch()
    (clocks.folder / "contact").touch()
    one = switch(contact_s=3600)
    for number in range(900):
        if number % 300 == 0:
            os.utime(clocks.folder / "contact", (1e9 - number, 1e9 - number))
        assert one.look() == ""
        clocks.advance(10.0)


@pytest.mark.parametrize("kept", ["", "[]", "{", '{"at_s": "x", "boot": "boot-1"}', '{"boot": "boot-1", "at_s": 1}'])
def test_a_file_that_was_torn_does_not_end_it(clocks: Clocks, kept: str) -> None:
    (clocks.folder / "age").write_text(kept)
    one = switch()
    assert one.look() == ""
    assert json.loads((clocks.folder / "age").read_text())["ttl_s"] == 36_000.0


def test_a_disk_that_takes_nothing_does_not_end_it(clocks: Clocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_man, "FOLDER", "/proc/no/such/folder/")
    assert fires_after_s(switch(ttl_s=500), clocks)[0] == 500.0


# ---- whom it asks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("", "https://console.vast.ai"),
        ("https://cloud.vast.ai/", "https://cloud.vast.ai"),
        ("http://127.0.0.1:8798", "http://127.0.0.1:8798"),
        ("http://console.vast.ai", "https://console.vast.ai"),
        ("https://vast.ai.example.org", "https://console.vast.ai"),
        ("https://evilvast.ai", "https://console.vast.ai"),
        ("https://user@vast.ai", "https://console.vast.ai"),
    ],
)
def test_its_key_goes_to_the_service_or_this_machine_only(
    monkeypatch: pytest.MonkeyPatch, url: str, asked: str
) -> None:
    sent: list[urllib.request.Request] = []

    class Opener:
        def open(self, request: urllib.request.Request, timeout: float) -> None:
            sent.append(request)
            raise ConnectionRefusedError(timeout)

    monkeypatch.setattr(dead_man.urllib.request, "build_opener", lambda *_: Opener())
    for name, value in (("VAST_URL", url), ("CONTAINER_ID", "17"), ("CONTAINER_API_KEY", "planted")):
        monkeypatch.setenv(name, value)
    problem, is_gone = dead_man.call("DELETE")
    assert (problem[:9], is_gone) == ("no answer", False)
    assert sent[0].full_url == f"{asked}/api/v0/instances/17/"
    assert (sent[0].get_method(), sent[0].data) == ("DELETE", b"{}")
    assert sent[0].unredirected_hdrs == {"Authorization": "Bearer planted"}
    assert "planted" not in str(sent[0].headers)
    monkeypatch.delenv("CONTAINER_API_KEY")
    assert re.search("not set", dead_man.call("DELETE")[0])
    assert len(sent) == 1

"""Captions from a vision model: a real HTTP server on loopback, well and badly behaved."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.fakes.caption_server import (
    CAPTION,
    DIGEST,
    MODEL,
    FakeCaptionServer,
    Kind,
    Reaction,
    caption_server,
    refusing,
    stop,
)
from tests.fakes.caption_sets import COLOUR_STEP, caption_record, caption_set, captions_of
from trainer.errors import DataError, UsageError
from trainer.prepare.captions.asking import Patience
from trainer.prepare.captions.caption_pass import caption_pass
from trainer.prepare.captions.prompt import PROMPT, seed_of
from trainer.prepare.options import CaptionServer, Options
from trainer.prepare.passes import Pass
from trainer.prepare.run import run_pass

KINDS: tuple[Kind, ...] = ("ollama", "openai")
SOON = Patience(first_wait_s=0.001, longest_wait_s=0.2)
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTION_API_KEY", raising=False)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[FakeCaptionServer]:
    with caption_server(request.param) as found:
        yield found


def work_of(url: str, patience: Patience = SOON, seed: int = 0, model: str = MODEL, **changed: float) -> Pass:
    """A pass whose times are short."""
    given = {"timeout_s": 5.0, "tries": 3, "requests": 2} | changed
    return caption_pass(Options(seed=seed, captions=CaptionServer(url, model, **given)), patience)


def test_captions_are_made_once_and_their_recipe_says_by_what(server: FakeCaptionServer, tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 10)
    server.normally = lambda asked: Reaction(f"{CAPTION} Its grey value is {round(asked.colour[0] / COLOUR_STEP)}.")
    work = work_of(server.url, seed=7)
    outcome = run_pass(work, samples, manifest)
    assert (outcome.made, outcome.failed) == (10, [])
    assert captions_of(samples, manifest) == [f"{CAPTION} Its grey value is {number}." for number in range(10)]
    assert {asked.size for asked in server.asked} == {(32, 48)}
    assert {(asked.prompt, asked.temperature, asked.most_tokens) for asked in server.asked} == {(PROMPT, 0.0, 500)}
    assert {asked.seed for asked in server.asked} == {seed_of(7, entry.id, 0) for entry in manifest.images}

    recipe = caption_record(samples, manifest, 0).recipe
    assert (recipe.model, recipe.revision) == (MODEL, DIGEST if server.kind == "ollama" else "")
    assert recipe.options["from"] == server.kind
    assert (recipe.options["seed"], recipe.options["most_tokens"], recipe.options["temperature"]) == (7, 500, 0.0)
    assert work.batch % 2 == 0
    again = run_pass(work_of(server.url, seed=7), samples, manifest)
    assert (again.done, again.made, len(server.asked)) == (10, 0, 10)


def test_so_many_requests_are_in_flight_at_once(server: FakeCaptionServer, tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 3)
    server.at_once = 3  # no answer before all three are here
    assert run_pass(work_of(server.url, requests=3, tries=1), samples, manifest).made == 3


def test_only_what_is_missing_is_asked_for_and_other_weights_make_all_again(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 3)
    with caption_server() as server:
        server.reactions = [Reaction("too short")]
        outcome = run_pass(work_of(server.url, tries=1, requests=1), samples, manifest)
        assert [id for id, _ in outcome.failed] == [manifest.images[0].id]
        again = run_pass(work_of(server.url, tries=1, requests=1), samples, manifest)
        assert (again.done, again.made, len(server.asked)) == (2, 1, 4)
        server.models[MODEL] = "ef" * 32
        assert run_pass(work_of(server.url), samples, manifest).made == 3


@pytest.mark.parametrize(
    "bad",
    [
        Reaction("I'm sorry, but I can't help with that."),
        Reaction(CAPTION, "length"),
        Reaction(""),
        Reaction("a, " * 90),
    ],
)
def test_an_answer_that_is_no_caption_is_asked_for_with_another_seed(
    server: FakeCaptionServer, tmp_path: Path, bad: Reaction
) -> None:
    samples, manifest = caption_set(tmp_path, 1)
    id = manifest.images[0].id
    server.reactions = [bad, bad]
    assert run_pass(work_of(server.url), samples, manifest).made == 1
    assert [asked.seed for asked in server.asked] == [seed_of(0, id, rejected) for rejected in range(3)]
    assert [asked.temperature for asked in server.asked] == [0.0, 0.7, 0.7]
    assert caption_record(samples, manifest, 0).facts["answers"] == 3


def test_a_model_that_never_answers_well_fails_with_what_it_said(server: FakeCaptionServer, tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 20)
    server.normally = lambda asked: Reaction("I cannot describe people.")
    outcome = run_pass(work_of(server.url, tries=2), samples, manifest)
    assert {reason for _, reason in outcome.failed} == {'the model refused: "I cannot describe people."'}
    assert (len(outcome.failed), len(server.asked)) == (20, 40)
    assert caption_record(samples, manifest, 3).reason.startswith("the model refused")


def test_the_field_for_refusals_is_read(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 2)
    said = b'{"choices": [{"message": {"content": null, "refusal": "Not this one."}, "finish_reason": "stop"}]}'
    thought = b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}'
    with caption_server("openai") as server:
        server.reactions = [Reaction(raw=said), Reaction(raw=thought)]
        outcome = run_pass(work_of(server.url, tries=1, requests=1), samples, manifest)
    assert [reason for _, reason in outcome.failed] == [
        'the model refused: "Not this one."',
        "the answer is empty: its tokens went elsewhere",
    ]


@pytest.mark.parametrize(
    "trouble",
    [
        refusing(500),
        refusing(503, Retry_After="0"),
        refusing(429, Retry_After="nonsense"),
        Reaction(raw=b"<html>rubbish"),
        Reaction(raw=b'{"something": "else"}'),
        Reaction(raw=b'["a list"]'),
        Reaction(how="drop"),
        Reaction(how="short"),
    ],
)
def test_passing_trouble_is_asked_the_same_again(server: FakeCaptionServer, tmp_path: Path, trouble: Reaction) -> None:
    samples, manifest = caption_set(tmp_path, 1)
    server.reactions = [trouble, trouble]
    assert run_pass(work_of(server.url), samples, manifest).made == 1
    assert {(asked.seed, asked.temperature) for asked in server.asked} == {(seed_of(0, manifest.images[0].id, 0), 0.0)}
    assert len(server.asked) == 3
    assert caption_record(samples, manifest, 0).facts["answers"] == 1


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_server_that_is_silent_or_drips_is_not_waited_for(
    server: FakeCaptionServer, tmp_path: Path, how: str
) -> None:
    samples, manifest = caption_set(tmp_path, 1)
    work = work_of(server.url, timeout_s=0.2, tries=2)
    assert work.recipe.model == MODEL
    server.reactions = [Reaction(how=how)] * 2
    outcome = run_pass(work, samples, manifest)
    assert [reason for _, reason in outcome.failed] == ["the caption server: no answer within 0.2 s"]
    assert run_pass(work_of(server.url), samples, manifest).made == 1


def test_a_wait_that_the_server_asks_for_is_kept() -> None:
    patience = Patience(first_wait_s=1.0, longest_wait_s=60.0)
    assert [patience.wait_s(faults, None) for faults in (1, 2, 3, 10, 10_000)] == [1.0, 2.0, 4.0, 60.0, 60.0]
    assert patience.wait_s(1, 20.0) == 20.0
    assert patience.wait_s(5, 2.0) == 16.0
    assert patience.wait_s(1, 61.0) is None


def test_retry_after_is_read_as_seconds_and_as_a_date(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 3)
    date = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    with caption_server() as server:
        server.reactions = [refusing(429, Retry_After="1000"), refusing(503, Retry_After=date)]
        outcome = run_pass(work_of(server.url, replace(SOON, rounds=3), requests=1), samples, manifest)
    assert [reason for _, reason in outcome.failed] == [
        f"the caption server: HTTP {status}: trouble number {status}; it wants a wait of more than 0.2 s"
        for status in (429, 503)
    ]
    assert (outcome.made, len(server.asked)) == (1, 3)


def test_what_the_server_does_not_take_is_not_asked_again(server: FakeCaptionServer, tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 2)
    server.reactions = [refusing(413)]
    outcome = run_pass(work_of(server.url, requests=1), samples, manifest)
    assert [reason for _, reason in outcome.failed] == ["the caption server: HTTP 413: trouble number 413"]
    assert (outcome.made, len(server.asked)) == (1, 2)


def test_a_server_that_goes_away_ends_the_pass_and_what_was_made_is_kept(
    server: FakeCaptionServer, tmp_path: Path
) -> None:
    samples, manifest = caption_set(tmp_path, 30)
    work = work_of(server.url, tries=2, requests=2)
    server.reactions = [Reaction()] * 10
    server.normally = lambda asked: Reaction(how="drop")
    with pytest.raises(DataError, match=r"captions ended early, .*4 images in a row.*is kept"):
        run_pass(work, samples, manifest)
    states = [samples.state(entry.id, "caption", work.recipe, {}) for entry in manifest.images]
    kept = sum(samples.digests(entry.id, ("caption",)) is not None for entry in manifest.images)
    assert kept == 10
    assert "missing" in states  # the last batches were never begun
    assert len(server.asked) <= 10 + 2 * 6

    server.normally = lambda asked: Reaction()
    outcome = run_pass(work_of(server.url), samples, manifest)
    assert (outcome.done, outcome.made) == (10, 20)


def test_a_connection_that_is_refused_ends_the_pass(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 30)
    with caption_server() as server:
        work = work_of(server.url, tries=1, requests=1)
        with work.open():
            pass
        recipe = work.recipe
        stop(server)
    with pytest.raises(DataError, match=r"no caption server answers at .*nothing listens there"):
        run_pass(work, samples, manifest)
    assert recipe.revision == DIGEST


def test_a_server_that_dies_between_two_images_is_named(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 30)
    with caption_server() as server:

        def die(asked: object) -> Reaction:
            server.socket.close()
            return Reaction(how="drop")

        server.reactions = [Reaction()] * 5
        server.normally = die
        with pytest.raises(DataError, match=r"nothing listens there, for 2 images in a row"):
            run_pass(work_of(server.url, tries=2, requests=1), samples, manifest)
    assert sum(samples.digests(entry.id, ("caption",)) is not None for entry in manifest.images) == 5


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_will_never_answer_ends_the_pass_at_once(
    server: FakeCaptionServer, tmp_path: Path, status: int
) -> None:
    samples, manifest = caption_set(tmp_path, 10)
    server.reactions = [Reaction(), refusing(status)]
    with pytest.raises(DataError, match=rf"HTTP {status}.*CAPTION_API_KEY"):
        run_pass(work_of(server.url, requests=1), samples, manifest)
    assert len(server.asked) == 2
    assert samples.digests(manifest.images[0].id, ("caption",)) is not None


def test_a_name_without_a_tag_is_found() -> None:
    with caption_server(models={"looker:latest": DIGEST}) as server:
        assert work_of(server.url, model="looker").recipe.revision == DIGEST


def test_an_address_may_end_in_v1() -> None:
    with caption_server("openai") as server:
        assert work_of(f"{server.url}/v1/").recipe.options["from"] == "openai"


def test_a_server_that_imitates_the_list_of_ollama_is_asked_in_the_other_way() -> None:
    with caption_server("ollama", models={MODEL: ""}) as server, pytest.raises(DataError, match="no list of models"):
        work_of(server.url).recipe  # noqa: B018
    assert server.seen == ["/api/tags", "/v1/models"]


def test_a_model_that_is_not_there_is_an_error_with_those_that_are(server: FakeCaptionServer) -> None:
    with pytest.raises(DataError, match=r"--caption-model nobody: .* it has: looker:7b, other:1b"):
        work_of(server.url, model="nobody").recipe  # noqa: B018


def test_a_model_that_changes_its_weights_meanwhile_is_noticed(tmp_path: Path) -> None:
    samples, manifest = caption_set(tmp_path, 1)
    with caption_server() as server:
        work = work_of(server.url)
        assert work.recipe.revision == DIGEST
        server.models[MODEL] = "ef" * 32
        with pytest.raises(DataError, match="another model of this name"):
            run_pass(work, samples, manifest)
    assert server.asked == []


@pytest.mark.parametrize(
    "listed",
    [refusing(500), Reaction(raw=b"<html>"), Reaction(raw=b'{"error": "Unexpected endpoint"}'), Reaction(how="drop")],
)
def test_something_else_at_the_address_is_an_error(server: FakeCaptionServer, listed: Reaction) -> None:
    server.lists_models = listed
    with pytest.raises(
        DataError, match=r"no caption server answers at http://127.0.0.1.*GET /api/tags.*GET /v1/models"
    ):
        work_of(server.url).recipe  # noqa: B018


@pytest.mark.parametrize(
    "url",
    [
        "localhost:11434",
        "file:///etc/passwd",
        "ftp://host",
        "http://",
        "http://host:99999",
        "http://host:0",
        "http://[::1",
        "http://person:geheim@host",
        "http://geheim@host/v1",
        "https://host/v1?key=geheim",
        "http://ho st",
        "",
    ],
)
def test_an_address_that_cannot_be_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="--caption-url cannot be used") as refused:
        work_of(url)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(timeout_s: float) -> None:
    with pytest.raises(UsageError, match="--caption-timeout-s"):
        work_of("http://localhost", timeout_s=timeout_s)


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path,
    kind: Kind,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    samples, manifest = caption_set(tmp_path, 6)
    monkeypatch.setenv("CAPTION_API_KEY", KEY)
    with caption_server(kind, key=KEY) as server, caption_server(kind) as elsewhere:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, elsewhere.url)
        told = Reaction(status=400, raw=f'{{"error": {{"message": "wrong key {KEY}"}}}}'.encode())
        away = Reaction(status=307, headers={"Location": f"{elsewhere.url}/v1/chat/completions"}, raw=b"{}")
        server.reactions = [Reaction(), Reaction(f"{CAPTION} {KEY}"), told, Reaction(), away]
        work = work_of(server.url, tries=1, requests=1)
        outcome = run_pass(work, samples, manifest)
        assert {asked.authorization for asked in server.asked} == {f"Bearer {KEY}"}
        assert elsewhere.seen == []
    assert [reason for _, reason in outcome.failed] == [
        "the answer repeats the API key",
        "the caption server: HTTP 400: wrong key [hidden]",
        "the caption server: HTTP 307",
    ]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    printed = capfd.readouterr()
    shown = [caplog.text, printed.out, printed.err, repr(outcome), repr(vars(work)), written.decode(errors="replace")]
    assert not any(KEY in text for text in shown)
    assert re.search(r"POST /\S+ HTTP/1.1", caplog.text)  # the library does log, so its silence means something


def test_a_wrong_key_is_said_and_not_shown(server: FakeCaptionServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "another"
    monkeypatch.setenv("CAPTION_API_KEY", KEY)
    with pytest.raises(DataError, match="is CAPTION_API_KEY right") as refused:
        work_of(server.url).recipe  # noqa: B018
    assert KEY not in str(refused.value)


def test_a_password_of_netrc_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, manifest = caption_set(tmp_path, 1)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login person password geheim\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with caption_server() as server:
        run_pass(work_of(server.url), samples, manifest)
    assert [asked.authorization for asked in server.asked] == [None]


def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_API_KEY", "geheim\r\nX-Other: 1")
    with pytest.raises(UsageError, match="CAPTION_API_KEY holds white space") as refused:
        work_of("http://localhost")
    assert "geheim" not in str(refused.value)

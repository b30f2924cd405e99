"""What a person sees and types: the table, plain lines, names of runs, and strings that try to take over a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runner.errors import UsageError
from runner.live import _number, lines, print_status, render
from runner.naming import NamedRun, find_run, find_runs, find_study
from runner.screen import printable


def run(**changes: Any) -> dict[str, Any]:
    return {
        "run": "0badcafe",
        "arm": "B",
        "seed": 0,
        "generation": 1,
        "parent": None,
        "state": "running",
        "health": "ok",
        "verdict": None,
        "rule": "",
        "reason": "",
        "step": 400,
        "steps_total": 800,
        "slot": "cpu0",
        "attempts": 1,
        "points": 4,
        "rejected_lines": 0,
        "sync": "pending",
        "latest": {"train/loss": 0.1234567, "sys/images_per_s": 151.23},
        "primary": {"name": "val/recon_rmse", "value": 0.31234, "best": 0.3, "best_step": 300},
        "usd": 0.0,
        "eta_s": 61.0,
        "warnings": [],
        **changes,
    }


def document(*runs: dict[str, Any], study: str = "portraits") -> dict[str, Any]:
    return {"studies": [{"study": study, "runs": list(runs), "superseded": []}]}


def drawn(status: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(render(status, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_eighty_columns_hold_everything_a_person_asks_for() -> None:
    text = drawn(document(run(), run(arm="D", state="queued", slot=None, step=0, eta_s=None, latest={})), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in (
        "B",
        "cpu0",
        "running",
        "400/800",
        "151",
        "1:01",
        "0.123",
        "0.312",
        "0.3@300",
        "val/recon_rmse",
        "queued",
    ):
        assert word in text


@given(st.floats(-1e99, 1e99).filter(lambda value: value == 0 or abs(value) > 1e-98))
def test_no_number_takes_more_room_than_seven_characters_and_a_sign(value: float) -> None:
    said = _number(value)
    assert len(said) <= 7 + (value < 0)
    assert float(said) == pytest.approx(value, rel=0.06)


def test_a_curve_that_explodes_leaves_room_for_the_other_columns() -> None:
    wild = {"name": "val/recon_rmse", "value": 6.4131e29, "best": -1.2345e-12, "best_step": 240}
    latest = {"train/loss": 1.7976e308, "sys/images_per_s": 151.23}
    runs = [run(seed=seed, primary=wild, latest=latest, step=12345, steps_total=20000) for seed in (0, 17)]
    text = drawn(document(*runs), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("6.4e29", "-1.2e-12@240", " 17 ", "1.8e308", "! running"[2:]):
        assert word in text


def test_without_a_speed_to_show_a_narrow_table_has_room_for_the_rule() -> None:
    states = ("aborted(explosion)", "failed(killed)", "running")
    silent = [run(state=state, latest={"loss": 0.1}, reason="it was so") for state in states]
    text = drawn(document(*silent), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "img/s" not in text
    for state in states:
        assert state in text.split("it was so")[0]
    assert "B-s0: failed(killed): it was so" in text
    assert "img/s" in drawn(document(run()), 80)


def test_a_wide_table_has_a_column_for_health_and_a_narrow_one_a_mark() -> None:
    status = document(run(health="warned"))
    assert "warned" in drawn(status, 140)
    assert "! running" in drawn(status, 80)


def test_reasons_and_warnings_stand_below_the_table() -> None:
    aborted = run(
        state="aborted(explosion)",
        health="diverged",
        reason="loss 9 times its start",
        verdict={"action": "abort", "reason": "loss 9 times its start"},
        warnings=["no line matched"],
    )
    text = drawn(document(aborted), 80)
    assert text.count("loss 9 times its start") == 1
    assert "no line matched" in text


def test_one_reason_of_many_runs_stands_there_once() -> None:
    waiting = [run(seed=seed, state="queued", reason="waits: 7 is loading") for seed in range(6)]
    text = drawn(document(*waiting), 100)
    assert text.count("7 is loading") == 1
    assert "B-s0, B-s1, B-s2, B-s3 and 2 more: waits: 7 is loading" in text


def test_what_led_to_a_reason_is_not_told_beside_it() -> None:
    said = "preflight: exit code 1: no torch"
    failed = run(state="failed(staging)", reason=f"it could not be started: {said}", warnings=[said, "no line matched"])
    text = drawn(document(failed), 140)
    assert text.count("no torch") == 1
    assert "no line matched" in text


MACHINE = {
    "lease": 1, "study": "portraits", "label": "armature/h/1", "machine": "20000001", "gpus": 4,
    "gpu_name": "RTX 4090", "state": "owned", "stage": "reachable", "because": "", "usd_per_h": 1.524, "usd": 0.32,
    "ceiling_usd": 5.33,
}  # fmt: skip


def test_money_and_time_have_room_in_eighty_columns_where_machines_are_paid_for() -> None:
    status = document(*(run(slot=f"20000001:gpu{n}", usd=10.25, eta_s=5000.0) for n in range(4)))
    status["studies"][0]["machines"] = [MACHINE, {**MACHINE, "machine": "20000002", "because": "its runs have ended"}]
    text = drawn(status, 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("20000001:gpu3", "400/800", "151.2", "1h23", "0.123", "0.312", "10.25"):
        assert word in text.split("20000001: reachable")[0]
    told = " ".join(text.split())
    assert "20000001: reachable, 4 x RTX 4090, 0.32 USD so far at 1.524 USD/h, at most 5.33" in told
    assert "20000002: reachable, 4 x RTX 4090, is being given back (its runs have ended)" in told


def test_a_machine_is_told_of_without_a_terminal_until_it_is_given_back() -> None:
    status = document(run())
    status["studies"][0]["machines"] = [MACHINE, {**MACHINE, "machine": "20000002", "state": "released"}]
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    print_status(console, status)
    assert isinstance(console.file, io.StringIO)
    _, line = console.file.getvalue().splitlines()
    assert line.startswith("portraits  20000001: reachable, 4 x RTX 4090, 0.32 USD so far")


def test_without_a_terminal_there_is_one_plain_line_a_run() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    print_status(console, document(run(), run(arm="C", state="failed(data)", reason="no images")))
    assert isinstance(console.file, io.StringIO)
    one, two = console.file.getvalue().splitlines()
    assert one.startswith("portraits/B-s0  0badcafe  running  ok  step 400/800  cpu0")
    assert two.endswith("no images")


@pytest.mark.parametrize(
    "hostile", ["[red]x[/red]", "\x1b[31mred\x1b[0m", "a\x00b\x07\x9b2J", "right\u202eleft", "\r\nfake line"]
)
def test_nothing_a_script_says_reaches_the_terminal_raw(hostile: str) -> None:
    text = drawn(document(run(arm=hostile, state="failed(x)", reason=hostile, warnings=[hostile])), 120)
    assert "\x1b" not in text
    assert not {"\x00", "\x07", "\x9b", "\u202e", "\r"} & set(text)
    assert hostile.strip("\r\n")[:5] in text or "\\" in text


@given(st.text())
def test_printable_text_has_no_control_left_and_plain_text_is_untouched(text: str) -> None:
    shown = printable(text)
    assert shown == printable(shown)
    assert all(character.isprintable() or character.isspace() for character in shown)
    assert "\n" not in shown
    if text.isascii() and text.isprintable():
        assert shown == text


def test_an_empty_home_says_what_to_type() -> None:
    assert "runner launch" in drawn({"studies": []}, 80)
    assert list(lines({"studies": []})) == []


RUNS = (
    NamedRun("s/A-s0-aa000001", "aa000001", "s", "A", 0, False, "running"),
    NamedRun("s/A-s0-aa000000", "aa000000", "s", "A", 0, True, "finished"),
    NamedRun("s/B-s0-bb000000", "bb000000", "s", "B", 0, False, "queued"),
    NamedRun("t/B-s0-bb000000", "bb000000", "t", "B", 0, False, "queued"),
)


def test_runs_are_found_by_id_prefix_and_path() -> None:
    assert find_run("s/A-s0", RUNS).id == "aa000001"
    assert find_run("aa000000", RUNS).superseded
    assert find_run("aa000001", RUNS).run == "s/A-s0-aa000001"
    assert find_run("t/B-s0", RUNS).study == "t"
    assert find_runs("S", RUNS) == (RUNS[0], RUNS[2])
    assert find_study("T", RUNS) == "t"


@pytest.mark.parametrize(
    ("name", "words"), [("aa", "aa000001"), ("bb000000", "t/B-s0"), ("zz", "s/A-s0"), ("", "no run")]
)
def test_ambiguous_and_unknown_names_come_with_candidates(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_run(name, RUNS)
    assert words in str(caught.value)
    with pytest.raises(UsageError, match="studies: s, t"):
        find_study("x", RUNS)


def test_open_runs_without_a_controller_are_told_of_and_ended_ones_are_not() -> None:
    dead, alive = {"controller": {"alive": False}}, {"controller": {"alive": True}}
    going, ended = document(run()), document(run(state="failed(killed)"))
    assert "no controller is at work here" in drawn({**going, **dead}, 120)
    assert "no controller" not in drawn({**going, **alive}, 120)
    assert "no controller" not in drawn({**ended, **dead}, 120)
    plain = Console(file=io.StringIO(), width=200)
    print_status(plain, {**going, **dead})
    assert isinstance(plain.file, io.StringIO)
    assert "`runner resume` starts it" in plain.file.getvalue()


def test_notices_that_nobody_heard_are_counted_below_their_study() -> None:
    status = document(run())
    status["studies"][0]["notices_given_up"] = 2
    assert "portraits: 2 notices were given up; `runner doctor` says why" in drawn(status, 120)
    assert "given up" not in drawn(document(run()), 120)

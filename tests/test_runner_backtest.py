"""`runner backtest` as a person types it: files of both layouts, a stored study, every policy, and every mistake."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.cli import run
from runner.home import Home
from runner.judge import DETECTORS, LEVEL_NAMES
from runner.records import Policy, RunState
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import StoredStudy, with_primary

DATA = Path(__file__).parent / "data"
KEYS = ["study", "arm", "verdict", "action", "step", "warn_step", "rule", "evidence", "hours_saved"]
HOURS = {"A": 111.80, "B": 94.92, "C": 95.06, "D": 94.91}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The published arms in the layout they were published in; the time of each is spread evenly."""
    arms = json.loads((DATA / "published_arms.json").read_text())["arms"]
    keys = ("recon_lpips", "text_lpips", "train_loss")
    document = {
        name: {
            "label": f"{name}_arm",
            "checkpoints": [
                {"step": step, "elapsed_hours": HOURS[name] * step / 5000, **{key: arm[key][k] for key in keys}}
                for k, step in enumerate(arm["steps"])
            ],
        }
        for name, arm in arms.items()
    }
    path = tmp_path / "published.json"
    path.write_text(json.dumps(document))
    return path


def line(arm: Any, shape: Any, study: Any = 0, **changes: Any) -> str:
    steps = list(range(250, 5001, 250))
    values = [shape(step / 5000) for step in steps]
    common = {"study": study, "arm": arm, "steps_total": 5000, "val_steps": steps, "val_metric": values}
    return json.dumps({**common, **changes})


def healthy(u: float) -> float:
    return 1.0 - 0.4 * (1 - math.exp(-3 * u))


def collapsing(u: float) -> float:
    return healthy(min(u, 0.5)) * (1 + 0.5 * max(0.0, u - 0.5))


def lines(tmp_path: Path, *found: str, end: str = "\n", name: str = "curves.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(end.join([*found, ""]).encode())
    return path


@pytest.fixture
def backtested(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `backtest … --json` and returns its document."""

    def command(*arguments: Any) -> list[dict[str, Any]]:
        assert run(["backtest", *map(str, arguments), "--json"]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        document: list[dict[str, Any]] = json.loads(said.out)
        return document

    return command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `backtest …`, which must fail with this code, and returns what it said, in one line."""

    def command(*arguments: Any, code: int = 2) -> str:
        assert run(["backtest", *map(str, arguments)]) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err

    return command


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_published_arms_give_exactly_the_document_of_the_contract(published: Path, backtested: Any) -> None:
    found = {one["arm"]: one for one in backtested(published)}
    assert list(found) == ["A", "B", "C", "D"]
    for one in found.values():
        assert list(one) == KEYS
        assert one["study"] == "published"
    b = found["B"]
    assert (b["verdict"], b["action"], b["step"], b["warn_step"], b["rule"]) == (
        "diverged",
        "abort",
        4000,
        3500,
        "regress",
    )
    assert b["hours_saved"] == pytest.approx(94.92 / 5, abs=1e-3)
    assert b["evidence"]["best_step"] == 3000
    for name in "ACD":
        assert found[name]["action"] in ("none", "warn")
        assert found[name]["hours_saved"] is None
        if found[name]["action"] == "none":
            assert [found[name][key] for key in KEYS[2:]] == ["healthy", "none", None, None, "", {}, None]


@pytest.mark.parametrize("scaling", [["0.7"], ["1.3"], ["regress.warn=0.7"], ["1.3", "regress.warn=1.0"]])
def test_scaled_levels_leave_the_published_verdicts(published: Path, backtested: Any, scaling: list[str]) -> None:
    options = [word for text in scaling for word in ("--scale-thresholds", text)]
    found = {one["arm"]: one for one in backtested(published, *options)}
    assert (found["B"]["action"], found["B"]["warn_step"], found["B"]["step"]) == ("abort", 3500, 4000)
    assert {found[name]["action"] for name in "ACD"} <= {"none", "warn"}


def test_levels_a_thousand_times_as_high_see_nothing(published: Path, backtested: Any) -> None:
    found = backtested(published, "--scale-thresholds", "1000")
    assert {one["verdict"] for one in found} == {"healthy"}


def test_twice_the_same_is_the_same_to_the_byte(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(2):
        assert run(["backtest", str(published), "--json"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].count("\n") == 1


def test_lines_of_two_studies_whose_arms_are_mixed(tmp_path: Path, backtested: Any) -> None:
    path = lines(
        tmp_path, line(0, healthy, 0), line("x", healthy, "b"), line(1, collapsing, 0), line("y", collapsing, "b")
    )
    found = backtested(path)
    assert [(one["study"], one["arm"], one["action"]) for one in found] == [
        (0, 0, "none"), (0, 1, "abort"), ("b", "x", "none"), ("b", "y", "abort"),
    ]  # fmt: skip
    assert {one["hours_saved"] for one in found} == {None}


def test_studies_do_not_see_each_other(tmp_path: Path, backtested: Any) -> None:
    flat = line("flat", lambda u: 1.0 - 0.02 * min(1.0, u / 0.1))
    learners = [line(k, lambda u, k=k: healthy(u) * (1 + 0.01 * k)) for k in range(3)]
    together = {str(one["arm"]): one for one in backtested(lines(tmp_path, *learners, flat))}
    assert (together["flat"]["verdict"], together["flat"]["rule"]) == ("stalled", "stall")
    others = [line(k, healthy, "other") for k in range(3)]
    apart = {str(one["arm"]): one for one in backtested(lines(tmp_path, *others, flat))}
    assert apart["flat"]["action"] == "none"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_files_of_other_systems(tmp_path: Path, backtested: Any, mark: str, end: str) -> None:
    found = backtested(lines(tmp_path, mark + line("a", healthy), line("b", collapsing), end=end))
    assert [one["action"] for one in found] == ["none", "abort"]


def test_values_that_are_not_finite_stay_json(tmp_path: Path, backtested: Any) -> None:
    loss = {"log_steps": [10, 20, 30], "train_loss": [1.0, None, 2.0]}
    (found,) = backtested(lines(tmp_path, line("a", healthy, **loss, hours=[None] * 20)))
    assert (found["verdict"], found["step"], found["evidence"]["value"]) == ("non_finite", 20, "nan")
    assert found["hours_saved"] is None


def test_higher_is_better_where_the_file_says_so(tmp_path: Path, backtested: Any) -> None:
    found = backtested(
        lines(tmp_path, line("a", lambda u: -collapsing(u), direction="max"), line("b", collapsing, direction="min"))
    )
    assert [(one["action"], one["step"]) for one in found] == [("abort", found[0]["step"])] * 2


def test_a_large_file_is_read_and_replayed(tmp_path: Path, backtested: Any) -> None:
    steps = list(range(5, 5001, 5))
    loss = [round(healthy(step / 5000), 6) for step in steps]
    found = backtested(
        lines(
            tmp_path, *(line(k, healthy, k // 10, log_steps=steps, train_loss=loss, grad_norm=loss) for k in range(60))
        )
    )
    assert len(found) == 60
    assert {one["action"] for one in found} == {"none"}


# ---- for a person ----------------------------------------------------------------------------------------------------


def test_what_a_person_reads(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backtest", str(published), "--usd-per-hour", "2"]) == 0
    said = capsys.readouterr().out
    assert "1 of 4 arms would have been stopped." in said
    assert re.search(r"\nB: regress: val/recon_lpips is 4\.\d % worse than its best of step 3000 \(step 4000, ", said)
    assert "Saved: 18.98 of 396.69 hours (4.8 %), 37.97 USD at 2 an hour." in said
    assert "Labels" not in said


def test_labels_tell_false_aborts_and_early_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(
        tmp_path,
        line("fine", healthy, label={"sick": False}),
        line("wronged", collapsing, label={"sick": False, "onset": None}),
        line("found", collapsing, label={"sick": True, "onset": 2500}),
        line("early", collapsing, label={"sick": True, "onset": 4900}),
        line("missed", healthy, label={"sick": True, "onset": 2500}),
    )
    assert run(["backtest", str(path)]) == 0
    said = capsys.readouterr().out
    assert "Labels: 1 of 2 healthy arms stopped by mistake, 2 of 3 sick arms recognised, 1 of them before they" in said
    assert "false abort: 0/wronged at step" in said


def test_names_in_a_file_cannot_draw_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path, line("\x1b[31m[bold]a", collapsing, "[red]s"), line("b", healthy, "t"))
    assert run(["backtest", str(path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "[bold]a" in said
    assert "[red]s" in said


# ---- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "action"),
    [
        ("armed", "abort"),
        ("default", "abort"),
        ("regress=abort", "abort"),
        ("regress=rescue", "abort"),
        ("regress=warn", "warn"),
        ("explosion=abort", "warn"),
        (" regress = shadow , stall=abort", "none"),
        ("hung=abort", "warn"),
    ],
)
def test_a_policy_in_words(published: Path, backtested: Any, policy: str, action: str) -> None:
    found = {one["arm"]: one for one in backtested(published, "--policy", policy)}
    assert found["B"]["action"] == action


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("policy:\n  detectors: {regress: warn}\n", "warn"),
        ("policy:\n  detectors: {stall: abort, hung: warn}\n", "abort"),
        ("policy: {tail: 0.25}\n", "verdict_only"),
        ("study: s\narm: B\npolicy: {detectors: {regress: rescue}, rescue: {max: 1}}\n", "abort"),
    ],
)
def test_the_policy_of_a_yaml_file(tmp_path: Path, published: Path, backtested: Any, text: str, action: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    found = {one["arm"]: one for one in backtested(published, "--policy", path)}
    assert found["B"]["action"] == action


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("own", "has no policy of its own"),
        ("", "there is no such file"),
        ("strict", "there is no such file"),
        ("regres=abort", "'regres' is no detector; allowed: non_finite, "),
        ("regres=abort", "did you mean 'regress'?"),
        ("regress=kill", "regress: 'kill'; allowed: shadow, warn, abort, rescue"),
        ("regress=abort,stall", "stall: ''; allowed"),
        ("regress=", "regress: ''; allowed"),
        ("=abort", "'' is no detector"),
    ],
)
def test_a_policy_that_makes_no_sense(published: Path, refused: Any, policy: str, said: str) -> None:
    assert said in refused(published, "--policy", policy)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("study: s\n", "policy: is no block"),
        ("policy: 3\n", "policy: is no block"),
        ("policy: {detectors: [regress]}\n", "policy.detectors: is no block"),
        ("policy: {detectors: {regress: kill}}\n", "'kill'; allowed: shadow"),
        ("policy: {detectors: {regress: [abort]}}\n", "allowed: shadow"),
        ("policy: {detectors: {regres: abort}}\n", "did you mean 'regress'"),
        ("policy: {tail: 1}\n", "policy.tail: 1 is not allowed"),
        ("policy: {tail: true}\n", "policy.tail"),
        ("policy: {tail: .nan}\n", "policy.tail"),
        ("policy: [\n", "policy.yaml"),
    ],
)
def test_a_policy_file_that_makes_no_sense(tmp_path: Path, published: Path, refused: Any, text: str, said: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    assert said in refused(published, "--policy", path)


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "wide", "regress=2", "regress.warm=2", "regress.warn=x"])
def test_a_scale_that_makes_no_sense(published: Path, refused: Any, scale: str) -> None:
    assert "--scale-thresholds: " in refused(published, "--scale-thresholds", scale)


def test_an_unknown_level_is_told_with_all_that_exist(published: Path, refused: Any) -> None:
    said = refused(published, "--scale-thresholds", "warn=2")
    assert all(name in said for name in LEVEL_NAMES)


# ---- what is no file of curves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "can't decode"),
        (b"\x00\x01\x02", "no JSON"),
        (b'{"study": 0}', "arm study: no checkpoints"),
        (b"step,loss\n1,2\n", "no JSON"),
    ],
)
def test_files_that_hold_no_curves(tmp_path: Path, refused: Any, content: bytes, said: str) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_bytes(content)
    told = refused(path)
    assert said in told
    assert str(path) in told


def test_what_is_neither_a_file_nor_a_study(tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("missing.json", "folder/missing.json", tmp_path / "folder", "./folder/"):
        assert "there is no file" in refused(name, "--home", tmp_path / "none")
    refused("nothing", "--home", tmp_path / "none", code=3)


def test_a_file_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = lines(Path(folder), line("a", healthy))
        # Another user may not be able to read our own code either: it is imported beforehand.
        assert run(["backtest", str(path)]) == 0
        path.chmod(0o000)
        Path(folder).chmod(0o755)
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                os._exit(run(["backtest", str(path), "--home", folder]))
            except BaseException:
                os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        Path(folder).chmod(0o755)
    assert code == 3


# ---- a study of a home -----------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredStudy]:
    """Four arms of a study with a dot in its name: three learn, one collapses; its policy stops nothing."""
    found = StoredStudy(Home(tmp_path / "runs"))
    policy = Policy({"regress": "warn"})
    for name, shape in (("A", healthy), ("B", collapsing), ("C", healthy)):
        arm = replace(with_primary(command_arm(arm=name, steps=5000, policy=policy)), study="trial-1.5")
        run_name = found.run(arm, state=RunState.FINISHED)
        found.attempt(run_name, 1)
        found.points(run_name, 1, "loss", {step: shape(step / 5000) for step in range(250, 5001, 250)})
    old = replace(with_primary(command_arm(arm="B", steps=5000)), study="trial-1.5")
    found.run(old, seed=9, superseded_by="trial-1.5/B-s0-00000002")
    yield found
    found.close()


def test_a_stored_study_under_its_own_policy_and_others(stored: StoredStudy, backtested: Any) -> None:
    home = ("--home", stored.home.root)
    own = {one["arm"]: one for one in backtested("trial-1.5", *home)}
    assert list(own) == ["A-s0", "B-s0", "C-s0"]
    assert {one["study"] for one in own.values()} == {"trial-1.5"}
    assert (own["B-s0"]["action"], own["B-s0"]["rule"]) == ("warn", "regress")
    assert backtested("trial-1.5", "--policy", "own", *home) == list(own.values())
    armed = {one["arm"]: one for one in backtested("trial-1.5", "--policy", "armed", *home)}
    assert armed["B-s0"]["action"] == "abort"
    # The time of step k is 100 + k seconds.
    assert armed["B-s0"]["hours_saved"] == pytest.approx((5000 - armed["B-s0"]["step"]) / 3600, abs=1e-4)


def test_it_only_reads(stored: StoredStudy, backtested: Any) -> None:
    stored.close()
    before = stored.home.database.read_bytes()
    backtested("trial-1.5", "--home", stored.home.root)
    assert stored.home.database.read_bytes() == before


def test_a_rule_that_a_person_overruled_stays_so(stored: StoredStudy, backtested: Any) -> None:
    arm = replace(with_primary(command_arm(arm="D", steps=5000)), study="other")
    run_name = stored.run(arm, overridden=["regress"])
    stored.attempt(run_name, 1)
    stored.points(run_name, 1, "loss", {step: collapsing(step / 5000) for step in range(250, 5001, 250)})
    (found,) = backtested("other", "--policy", "armed", "--home", stored.home.root)
    assert (found["action"], found["rule"]) == ("warn", "regress")


def test_a_run_whose_new_attempt_has_said_nothing_yet_is_healthy(stored: StoredStudy, backtested: Any) -> None:
    arm = replace(with_primary(command_arm(arm="D", steps=5000)), study="other")
    run_name = stored.run(arm, state=RunState.RUNNING)
    stored.attempt(run_name, 1)
    stored.points(run_name, 1, "loss", {100: 1.0})
    stored.attempt(run_name, 2)  # begins at 0 again and cuts off what was there
    (found,) = backtested("other", "--home", stored.home.root)
    assert (found["verdict"], found["hours_saved"]) == ("healthy", None)


def test_paired_scores_on_disk_withhold_an_abort(stored: StoredStudy, backtested: Any) -> None:
    arm = replace(with_primary(command_arm(arm="D", steps=5000), "val/recon_lpips"), study="other")
    run_name = stored.run(arm)
    stored.attempt(run_name, 1)
    values = [1.0, 0.9, 0.84, 0.80, 0.78, 0.77, 0.800, 0.801, 0.802, 0.802]
    stored.points(run_name, 1, "val/recon_lpips", {500 * k: value for k, value in enumerate(values, 1)})
    home = ("--policy", "armed", "--home", stored.home.root)
    assert backtested("other", *home)[0]["action"] == "abort"
    columns = ("run", "step", "weights", "sampler", "metric", "sample_id", "eval_seed", "value", "valid", "reason")
    for k in range(1, 11):
        folder = stored.home.root / run_name / "validation" / f"step_{500 * k:06d}"
        folder.mkdir(parents=True)
        with (folder / "scores.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(columns)
            for sample in range(25):
                moved = 0.001 * ((7 * sample) % 5 - 2) if k > 6 else 0.0
                table.writerow(("r", 500 * k, "ema", "common", "recon_lpips", sample, 0, 0.5 + moved, 1, ""))
        (folder / "meta.json").write_text(json.dumps({"step": 500 * k, "eval_set": "x"}))
    assert backtested("other", *home)[0]["action"] == "warn"


def test_an_unknown_study_and_a_policy_of_its_own(stored: StoredStudy, refused: Any) -> None:
    for name in ("nothing", "trial-1.4"):
        said = refused(name, "--home", stored.home.root)
        assert f"there is no study (and no file) '{name}'; next: runner status" in said


def test_every_detector_may_be_named_in_a_policy(published: Path, backtested: Any) -> None:
    policy = ",".join(f"{name}=shadow" for name in DETECTORS)
    assert {one["verdict"] for one in backtested(published, "--policy", policy)} == {"healthy"}

"""What a run is compared with: siblings on the same samples, and its own scores; a late look concludes the same."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from provisioning.local_shell import LocalShell
from provisioning.processes import identity_of
from runner.comparing import Comparing
from runner.detach import SUPERVISOR
from runner.follow import Follow
from runner.home import Home
from runner.judge.backtest import replay_study
from runner.launch_spec import attempt_dir
from runner.records import Policy, Primary, RunState, Series, Sibling
from runner.spec.models import ResolvedArm
from runner.store.curves import as_series, read_curves
from runner.store.facts import StoredRun, open_runs
from runner.store.recorded import eval_set, paired_scores, recorded_study
from tests.fakes.arms import command_arm, trainer_arm
from tests.fakes.stored_study import StoredStudy, with_primary

METRIC = "val/recon_lpips"
COLUMNS = ("run", "step", "weights", "sampler", "metric", "sample_id", "eval_seed", "value", "valid", "reason")


class Scene:
    """A home whose runs, points and validations a test writes."""

    def __init__(self, folder: Path) -> None:
        self.stored = StoredStudy(Home(folder))
        self.home = self.stored.home
        self.comparing = Comparing(self.home)

    def run(self, name: str, values: Mapping[int, float], *, total: int = 1000, **changes: Any) -> str:
        arm = replace(with_primary(command_arm(arm=name, steps=total)), **changes)
        run = self.stored.run(arm, state=RunState.RUNNING)
        self.stored.attempt(run, 1, phase="live")
        self.points(run, values)
        return run

    def points(self, run: str, values: Mapping[int, float], name: str = "loss") -> None:
        self.stored.points(run, 1, name, values)

    def facts(self, run: str) -> StoredRun:
        with self.stored.session.reading() as connection:
            return next(one for one in open_runs(connection) if one.run == run)

    def siblings(self, run: str, arm: ResolvedArm | None = None) -> tuple[Sibling, ...]:
        with self.stored.session.reading() as connection:
            series = as_series(read_curves(connection, run))
            asked = with_primary(command_arm()) if arm is None else arm
            return tuple(self.comparing.siblings(connection, self.facts(run), asked, series))

    def validation(self, run: str, step: int, rows: list[tuple[Any, ...]], *, samples: str | None = "set") -> None:
        """One complete validation; a row is (weights, sampler, metric, sample, seed, value, valid)."""
        folder = self.home.root / run / "validation" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        with (folder / "scores.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows(("0000", step, *row, "") for row in rows)
        if samples is not None:
            (folder / "meta.json").write_text(json.dumps({"step": step, "complete": True, "eval_set": samples}))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path / "runs")
    yield found
    found.stored.close()


def curve(last: int, every: int = 50, level: float = 1.0) -> dict[int, float]:
    return {step: level - step / 10_000 for step in range(every, last + 1, every)}


# ---- siblings --------------------------------------------------------------------------------------------------------


def test_siblings_are_the_other_runs_of_the_study_with_their_own_budgets(scene: Scene) -> None:
    mine, other, longer = scene.run("A", curve(500)), scene.run("B", curve(300)), scene.run("C", curve(900), total=2000)
    elsewhere = scene.run("D", curve(500), study="another")
    found = scene.siblings(mine)
    assert [(one.run, one.steps_total) for one in found] == [(other, 1000), (longer, 2000)]
    assert found[0].series == Series("loss", tuple(curve(300)), tuple(curve(300).values()))
    assert scene.siblings(elsewhere) == ()


def test_a_run_without_that_metric_or_without_a_budget_is_no_sibling(scene: Scene) -> None:
    mine = scene.run("A", curve(500))
    silent = scene.run("B", {})
    scene.points(silent, {50: 1.0}, "accuracy")
    scene.stored.attempt(unknown := scene.stored.run(command_arm(arm="C"), steps_total=None), 1)
    scene.points(unknown, curve(500))
    old = scene.stored.run(command_arm(arm="D", steps=1000), superseded_by=mine)
    scene.stored.attempt(old, 1)
    scene.points(old, curve(500))
    assert scene.siblings(mine) == ()


def test_nothing_is_read_before_any_rule_would_ask(scene: Scene) -> None:
    mine = scene.run("A", curve(400))
    scene.run("B", curve(500))
    assert scene.siblings(mine) == ()
    scene.points(mine, {450: 0.9})
    assert len(scene.siblings(mine)) == 1
    assert scene.siblings(mine, command_arm()) == ()  # an arm without a primary


def test_only_runs_on_the_same_samples_are_siblings(scene: Scene) -> None:
    names = {"A": "set", "same": "set", "other": "another", "none": None}
    runs = {name: scene.run(name, curve(500)) for name in names}
    for name, samples in names.items():
        if samples is not None:
            scene.validation(runs[name], 500, [], samples=samples)
    assert [one.run for one in scene.siblings(runs["A"])] == [runs["same"]]
    assert [one.run for one in scene.siblings(runs["other"])] == []


def test_what_was_read_is_kept_until_the_run_has_moved_on_by_a_hundredth(scene: Scene) -> None:
    mine, other = scene.run("A", curve(500)), scene.run("B", curve(500))
    first = scene.siblings(mine)
    scene.points(other, {550: 0.5})
    assert scene.siblings(mine) == first
    scene.points(mine, {510: 0.9})
    assert scene.siblings(mine)[0].series.steps[-1] == 550


def test_what_is_forgotten_is_read_again(scene: Scene) -> None:
    mine, other = scene.run("A", curve(500)), scene.run("B", curve(500))
    scene.siblings(mine)
    scene.points(other, {550: 0.5})
    scene.comparing.forget(mine)
    assert scene.siblings(mine)[0].series.steps[-1] == 550


# ---- scores ----------------------------------------------------------------------------------------------------------


def scored(value: float, count: int = 12, metric: str = "recon_lpips") -> list[tuple[Any, ...]]:
    return [("ema", "common", metric, f"{k:02}", 7, value + k / 100, 1) for k in range(count)]


def test_scores_are_those_of_the_protocol_that_are_valid_in_complete_validations(scene: Scene) -> None:
    run = scene.run("A", curve(500))
    rows = [
        ("ema", "common", "recon_lpips", "a", 7, 0.5, 1),
        ("ema", "common", "recon_lpips", "b", 7, "", 0),
        ("ema", "common", "text_lpips", "a", 7, 0.6, 1),
        ("raw", "common", "recon_lpips", "a", 7, 0.7, 1),
        ("ema", "native", "recon_lpips", "a", 7, 0.8, 1),
        ("raw", "native", "recon_lpips", "a", 7, 0.9, 1),
    ]
    scene.validation(run, 100, rows)
    scene.validation(run, 200, rows, samples=None)  # cut short: no meta.json yet
    folder = scene.home.root / run
    values = {"val": 0.5, "val_raw": 0.7, "val_native": 0.8, "val_raw_native": 0.9}
    assert {name: paired_scores(folder, f"{name}/recon_lpips") for name in values} == {
        name: {100: {"a/7": value}} for name, value in values.items()
    }
    assert paired_scores(folder, "val/nothing") == paired_scores(folder, "loss") == {}
    assert paired_scores(folder, "val_probe/recon_lpips") == {}
    assert (eval_set(folder), eval_set(scene.home.root / "none")) == ("set", "")


def test_scores_are_read_again_only_with_a_newer_validation(scene: Scene) -> None:
    arm = trainer_arm(primary=Primary(METRIC))
    run = scene.stored.run(arm, state=RunState.RUNNING)
    scene.validation(run, 100, scored(0.5))

    def scores(newest: int) -> Mapping[int, Mapping[str, float]]:
        series = {METRIC: Series(METRIC, (newest,), (1.0,))}
        return scene.comparing.scores(scene.facts(run), arm, series)

    assert list(scores(100)) == [100]
    scene.validation(run, 200, scored(0.6))
    assert list(scores(100)) == [100]
    assert list(scores(200)) == [100, 200]
    scene.comparing.forget(run)
    assert list(scores(100)) == [100, 200]


def test_a_command_arm_an_arm_without_primary_and_a_run_without_values_have_none(scene: Scene) -> None:
    run = scene.run("A", curve(500))
    series = {METRIC: Series(METRIC, (100,), (1.0,))}
    primary = Primary(METRIC)
    assert scene.comparing.scores(scene.facts(run), command_arm(primary=primary), series) == {}
    assert scene.comparing.scores(scene.facts(run), trainer_arm(primary=None), series) == {}
    assert scene.comparing.scores(scene.facts(run), trainer_arm(primary=primary), {}) == {}


# ---- in a live run ---------------------------------------------------------------------------------------------------

VALUES = [1.0, 0.9, 0.84, 0.80, 0.78, 0.77, 0.800, 0.801, 0.802, 0.802]


class LiveRun:
    """A trainer arm whose process is this one; its metrics come validation by validation."""

    def __init__(self, scene: Scene, *, shift: float) -> None:
        self.scene, self.shift = scene, shift
        policy = Policy({"regress": "abort"})
        self.arm = trainer_arm({"steps": 1000}, primary=Primary(METRIC), policy=policy)
        self.run = scene.stored.run(self.arm, state=RunState.RUNNING)
        identity = identity_of(os.getpid())
        assert identity is not None
        scene.stored.attempt(self.run, 1, phase="live", identity=asdict(identity), started=1.0)
        self.folder = attempt_dir(scene.home.root / self.run, 1)
        self.folder.mkdir(parents=True)
        self.clock_s = 0.0
        self.shell = LocalShell(str(SUPERVISOR))
        places: Any = SimpleNamespace(by_lease=lambda _lease: SimpleNamespace(shell=self.shell))
        self.follow = Follow(scene.stored.session, scene.home, places, lambda: 50.0, lambda: self.clock_s)

    def validate(self, number: int) -> None:
        """The trainer's next validation: scores of 25 samples, then the point."""
        step = 100 * number
        worse = self.shift if number > 6 else 0.0
        jiggle = [0.001 * ((7 * k) % 5 - 2) if number > 6 else 0.0 for k in range(25)]  # as often up as down
        rows = [("ema", "common", "recon_lpips", f"{k:02}", 7, 0.5 + worse + jiggle[k], 1) for k in range(25)]
        self.scene.validation(self.run, step, rows)
        with (self.folder / "metrics.jsonl").open("a") as file:
            point = {"step": step, "time": 100.0 + step, "kind": "val", METRIC: VALUES[number - 1]}
            file.write(json.dumps(point) + "\n")

    def look(self) -> Mapping[str, Any]:
        self.clock_s += 1000.0

        def guarded(run: StoredRun, act: Any) -> None:
            act(run)

        with self.scene.stored.session.reading() as connection:
            runs = open_runs(connection)
        self.follow.follow_all(runs, guarded)
        verdict = self.scene.facts(self.run).verdict
        assert verdict is not None
        return {key: verdict[key] for key in ("action", "rule", "reason", "health", "findings")}


@pytest.mark.parametrize(("shift", "action"), [(0.0, "warn"), (0.02, "abort")])
def test_a_late_look_concludes_what_timely_ones_did_and_so_does_a_replay(
    tmp_path: Path, shift: float, action: str
) -> None:
    seen = []
    for is_timely in (True, False):
        scene = Scene(tmp_path / f"{is_timely}")
        live = LiveRun(scene, shift=shift)
        for number in range(1, 10):
            live.validate(number)
            if is_timely:
                live.look()
        seen.append(live.look())
        with scene.stored.session.reading() as connection:
            arms, policy = recorded_study(connection, scene.home, live.arm.study)
        (replay,) = replay_study(arms, policy=policy)
        assert (replay.action, replay.rule, replay.reason) == tuple(
            seen[-1][key] for key in ("action", "rule", "reason")
        )
        live.shell.close()
        scene.stored.close()
    assert seen[0] == seen[1]
    assert (seen[0]["action"], seen[0]["rule"]) == (action, "regress")
    assert "paired_p" in seen[0]["findings"][-1]["evidence"]

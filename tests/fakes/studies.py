"""A seeded, made-up study as a report sees it: a baseline with two seeds, three other arms, curves, scores, images.

Arm B collapses and is aborted at step 600, C is better than the baseline by far more than the seeds differ, D by less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reports.study import (
    AttemptView,
    Curve,
    EventView,
    LintView,
    OriginView,
    PrimaryView,
    RunView,
    Score,
    StudyView,
    VerdictView,
)

STEPS, EVERY, SAMPLES = 800, 100, 48
EPOCH = 1_790_000_000.0
PRIMARY = PrimaryView("val/recon_rmse", "min", "last")
LEVELS = ("identical", "jittered", "blurred", "mean_image", "other_portrait", "noise")
CALIBRATION = {
    "recon_rmse": dict(zip(LEVELS, (0.0, 0.118, 0.171, 0.312, 0.437, 1.12), strict=True)),
    "recon_lpips": dict(zip(LEVELS, (0.0, 0.03, 0.09, 0.171, 0.184, 0.169), strict=True)),
}
RESCUE_CHANGE = ("trainer.optimizer.lr", 1e-3)
STREAMS = {"text": 0.031, "cls": 0.012, "patches": 0.094, "pose": 0.0002}


@dataclass(frozen=True)
class Plan:
    """What makes one made-up run: its end value of the primary, seconds a step, start, and where it stops."""

    arm: str
    seed: int
    end: float
    step_s: float
    start_s: float
    stop: int = STEPS
    changes: tuple[tuple[str, Any], ...] = ()
    collapse_from: int | None = None


PLANS = (
    Plan("A", 0, 0.212, 0.109, 0.0),
    Plan("A", 1, 0.226, 0.109, 165.0),
    Plan("B", 0, 0.218, 0.084, 0.0, 600, (("trainer.tread.enabled", True),), 400),
    Plan("C", 0, 0.163, 0.108, 61.0, STEPS, (("trainer.optimizer.name", "muon"), ("trainer.tread.enabled", True))),
    Plan("D", 0, 0.205, 0.131, 106.0, STEPS, (("trainer.repa.enabled", True), ("trainer.tread.enabled", True))),
)
TITLES = {"A": "Baseline", "B": "TREAD + AdamW", "C": "TREAD + Muon", "D": "Full stack"}


def quickstart(folder: Path | None = None, plans: tuple[Plan, ...] = PLANS) -> StudyView:
    """The study of all plans; with a folder, images are drawn into it."""
    return StudyView(
        study="portrait-quickstart",
        primary=PRIMARY,
        policy={"detectors": {"non_finite": "abort", "explosion": "abort", "regress": "abort"}, "tail": 0.04},
        runs=tuple(made_run(plan, folder) for plan in plans),
        superseded=("portrait-quickstart/D-s0-0a1b2c3d",),
        lint=(
            LintView("F12", "N", "1 seed: screening"),
            LintView("F08", "W", "muon vs adamw at one lr, neither swept", allowed="the quickstart sweeps nothing"),
        ),
    )


def command_study() -> StudyView:
    """Two arms of some script: a loss, no primary, nothing validated."""
    run = made_run(PLANS[0], None)
    loss = run.curves["train/loss"]
    bare = replace(
        run, kind="command", curves={"loss": loss}, scores=(), metas={}, images={}, best=None, parameters=None,
        config={"command": ["python3", "train.py", "--lr", "0.05"], "steps": STEPS},
    )  # fmt: skip
    faster = replace(bare, run="toy/fast-s0", arm="fast", baseline="slow", config={**bare.config, "command": ["x"]})
    return StudyView("toy", None, {}, (replace(bare, run="toy/slow-s0", arm="slow"), faster))


def seeded_study(seeds: int, effect: float, jitter: float = 0.004) -> StudyView:
    """Arms A and B with several paired seeds; B differs from A by `effect` and a little more for each seed."""
    generator = np.random.default_rng(5)
    plans = []
    for seed in range(seeds):
        base = 0.21 + float(generator.normal(0, jitter))
        plans.append(Plan("A", seed, base, 0.1, 0.0))
        plans.append(Plan("B", seed, base + effect + float(generator.normal(0, jitter / 4)), 0.1, 0.0))
    return replace(quickstart(None, tuple(plans)), superseded=(), lint=())


def made_autopsy(**changes: Any) -> dict[str, Any]:
    """What an autopsy of arm B writes: its guidance hurts at step 600 and did not at step 400."""

    def bounds(mean: float, half: float = 0.004) -> dict[str, Any]:
        return {"mean": mean, "low": mean - half, "high": mean + half, "samples": SAMPLES}

    levels = {"dense": (0.235, 0.237), "routed": (0.240, 0.242), "guided": (0.231, 0.262)}
    cells = [
        {"weights": weights, "pass": drawn, "best": best, "stop": stop, "delta": bounds(stop - best), "why_not": ""}
        for weights in ("raw", "ema", "ema_alt")
        for drawn, (best, stop) in levels.items()
    ]
    causes = {"weights": 0.002, "averaging": 0.0, "guidance": 0.029, "routing": 0.0}
    shares = [
        {"cause": cause, **bounds(mean), "above_limit": mean > 0.01, "fall": bounds(mean), "harm": None,
         "blamed": mean > 0.01, "apart": cause == "routing"}
        for cause, mean in causes.items()
    ]  # fmt: skip
    return {
        "run": "B-s0", "steps": {"best": 400, "stop": 600}, "notes": [], "metric": "recon_rmse", "direction": "min",
        "metric_reason": "checkpoint.keep.best is val/recon_rmse", "guidance": "self_guidance (scale 3)",
        "averages": {"ema": 0.05, "ema_alt": 0.2, "ema_alt_from": "stored", "profile_distance": {}},
        "best_score": 0.235, "threshold": 0.00235, "cells": cells, "shares": shares, "total": bounds(0.031),
        "blamed": ["guidance"], "w_means": "self_guidance",
        "w_sweep": [{"w": w, "best": 0.235, "stop": 0.237 + w / 100, "delta": bounds(w / 100)} for w in (1.0, 3.0)],
        "conclusion": "To blame: guidance.", "not_available": [], "eval_set": "5e1f00aa", "samples": SAMPLES,
        "samples_available": SAMPLES, "eval_seeds": 1, "seconds": 23.2,
    } | changes  # fmt: skip


def autopsied_study(**changes: Any) -> StudyView:
    """The quickstart with an autopsy of its collapsed run."""
    study = quickstart()
    runs = (replace(run, autopsy=made_autopsy(**changes)) if run.arm == "B" else run for run in study.runs)
    return replace(study, runs=tuple(runs))


def rescued_study(arm: str = "B", step: int = 300, stop: int = STEPS) -> StudyView:
    """The quickstart with a run that goes on from a checkpoint of the first run of `arm`, with another rate."""
    study = quickstart()
    place, parent = next((index, run) for index, run in enumerate(study.runs) if run.arm == arm)
    plan = Plan(f"{arm}-rescue1", parent.seed, 0.201, 0.084, 200.0, stop, (*parent.changes, RESCUE_CHANGE))
    made = made_run(plan, None)
    curves = {name: _from(found, step) for name, found in made.curves.items()}
    child = replace(
        made, title=f"{parent.title}, rescued at step {step}", baseline=parent.baseline or arm, curves=curves,
        scores=tuple(score for score in made.scores if score.step >= step),
        metas={at: meta for at, meta in made.metas.items() if at >= step},
        points=sum(len(found.steps) for found in curves.values()),
        parent=OriginView(parent.run, f"{arm}-s{parent.seed}", step, (RESCUE_CHANGE,)),
    )  # fmt: skip
    rescue = [replace(one, action="rescue") if one.is_stop else one for one in parent.verdicts]
    runs = [*study.runs[:place], replace(parent, verdicts=tuple(rescue)), child, *study.runs[place + 1 :]]
    return replace(study, runs=tuple(runs), superseded=())


def _from(curve: Curve, step: int) -> Curve:
    kept = [index for index, at in enumerate(curve.steps) if at >= step]
    columns = (tuple(column[index] for index in kept) for column in (curve.steps, curve.values, curve.times))
    return Curve(*columns, tuple(1 for _ in kept))


def without_points(run: RunView, state: str, reason: str = "") -> RunView:
    """The same run before it reported anything."""
    return replace(
        run, state=state, reason=reason, step=0, points=0, curves={}, scores=(), metas={}, images={}, verdicts=(),
        attempts=(), events=(), best=None, health="unknown",
    )  # fmt: skip


def with_curve(run: RunView, name: str, values: Mapping[int, float]) -> RunView:
    """The same run with one more curve (or another one in its place)."""
    steps = tuple(sorted(values))
    made = Curve(steps, tuple(values[s] for s in steps), tuple(EPOCH + s for s in steps), tuple(1 for _ in steps))
    return replace(run, curves={**run.curves, name: made})


def made_run(plan: Plan, folder: Path | None) -> RunView:
    """One run of a plan; equal plans give equal runs."""
    name = f"portrait-quickstart/{plan.arm}-s{plan.seed}-{abs(hash_of(plan)):08x}"
    steps = list(range(0, plan.stop + 1, EVERY))
    scores = tuple(_scores(plan, steps))
    curves = _train_curves(plan) | _validation_curves(plan, scores, steps)
    aborted = plan.stop < STEPS
    primary = curves[PRIMARY.metric]
    best = min((v, s) for s, v in zip(primary.steps, primary.values, strict=True) if s >= STEPS * 0.1)
    ended = EPOCH + plan.start_s + plan.stop * plan.step_s * 1.2
    return RunView(
        run=name, arm=plan.arm, seed=plan.seed, generation=1, title=TITLES.get(plan.arm, plan.arm),
        hypothesis=f"{TITLES.get(plan.arm, plan.arm)} helps.", baseline=None if plan.arm == "A" else "A",
        kind="trainer", changes=plan.changes, config=_config(plan), state="aborted(regress)" if aborted else "finished",
        reason="val/recon_rmse rose 3 validations in a row" if aborted else "",
        health="diverged" if aborted else "ok", step=plan.stop, steps_total=STEPS,
        points=sum(len(c.steps) for c in curves.values()), rejected_lines=0, curves=curves, scores=scores,
        metas={step: _meta(step, plan.stop) for step in steps}, images=_images(plan, folder, plan.stop),
        verdicts=_verdicts(plan), attempts=(
            AttemptView(1, "train", "cpu0", False, EPOCH + plan.start_s, ended, "exited", 75 if aborted else 0, 812),
        ),
        events=(EventView(EPOCH + 20, "repa_off", "linear stop", 200),) if plan.arm == "D" else (),
        provenance={
            "commit": "4f1c2d3e", "diff": "clean", "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
            "hardware": {"cpu": "a CPU", "cores": 2},
        },
        best=(best[1], best[0]), parameters=671_000, flops_per_sample=8.1e7, code_hash="9d2c51aa",
    )  # fmt: skip


def hash_of(plan: Plan) -> int:
    """A number for a plan that is the same in every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(f"{plan.arm}{plan.seed}{plan.end}")) % 2**32


def _config(plan: Plan) -> dict[str, Any]:
    base: dict[str, Any] = {
        "study": "portrait-quickstart", "arm": plan.arm, "seed": plan.seed, "trainer.batch": 16,
        "trainer.accumulation": 1, "trainer.steps": STEPS, "trainer.optimizer.name": "adamw",
        "trainer.optimizer.lr": 2e-3, "trainer.tread.enabled": False, "trainer.repa.enabled": False,
        "trainer.ema.half_lives": [0.05], "trainer.data.size": 32, "title": TITLES.get(plan.arm, plan.arm),
    }  # fmt: skip
    return base | dict(plan.changes)


def _generator(plan: Plan, what: str) -> np.random.Generator:
    return np.random.default_rng([hash_of(plan), *what.encode()])


def _curve(plan: Plan, steps: list[int], values: NDArray[np.float64]) -> Curve:
    times = [EPOCH + plan.start_s + step * plan.step_s * 1.2 for step in steps]
    return Curve(tuple(steps), tuple(float(v) for v in values), tuple(times), tuple(1 for _ in steps))


def _train_curves(plan: Plan) -> dict[str, Curve]:
    steps = list(range(10, plan.stop + 1, 10))
    progress = np.array(steps) / STEPS
    noise = _generator(plan, "train").normal(0, 1, len(steps))
    loss = (0.9 + 2.4 * np.exp(-6 * progress)) * (1 + 0.06 * noise) * (1.4 if plan.arm == "D" else 1.0)
    speed = 16 / plan.step_s * (1 + 0.01 * noise)
    made = {
        "train/loss": loss,
        "train/grad_norm": 0.6 + 0.1 * noise,
        "train/lr": 2e-3 * 0.5 * (1 + np.cos(np.pi * progress)),
        "sys/images_per_s": speed,
        "sys/iter_per_s": speed / 16,
        "sys/train_s": np.array(steps) * plan.step_s,
        "sys/eval_s": np.array(steps) * plan.step_s * 0.15,
        "memory/rss_gib": np.full(len(steps), 0.79),
    }
    return {name: _curve(plan, steps, values) for name, values in made.items()}


def _level(plan: Plan, step: int) -> float:
    """The mean score of a plan at a step: falls from 0.62 to its end value; a collapse turns it up again."""
    value = plan.end + (0.62 - plan.end) * math.exp(-5.5 * step / STEPS)
    if plan.collapse_from is not None and step > plan.collapse_from:
        value += 0.06 * (step - plan.collapse_from) / EVERY
    return value


def _scores(plan: Plan, steps: list[int]) -> Iterator[Score]:
    ids = [f"held-{index:04d}" for index in range(SAMPLES)]
    # How hard a sample is belongs to the sample: every arm and seed sees the same.
    hardness = np.random.default_rng(7).normal(0, 0.03, SAMPLES)
    for step in steps:
        own = _generator(plan, f"scores {step}")
        full = step == plan.stop
        kinds = [("ema", "common", SAMPLES, 0.0), ("raw", "common", SAMPLES // 3, 0.012)]
        kinds += [("ema", "native", SAMPLES, 0.006), ("raw", "native", SAMPLES // 3, 0.017)] if full else []
        for weights, sampler, count, shift in kinds:
            values = np.maximum(_level(plan, step) + shift + hardness + own.normal(0, 0.012, SAMPLES), 0.01)
            for index in range(count):
                yield Score(step, weights, sampler, "recon_rmse", ids[index], 0, float(values[index]), True)
                yield Score(step, weights, sampler, "recon_lpips", ids[index], 0, float(values[index]) / 2, True)
        if full:
            yield from _condition_scores(plan, step, ids, own)


def _condition_scores(plan: Plan, step: int, ids: list[str], own: np.random.Generator) -> Iterator[Score]:
    kinds = {f"use_{name}": size for name, size in STREAMS.items()}
    kinds |= {"text_manip_delta": 0.094, "text_manip_floor": 0.021}
    for metric, size in kinds.items():
        for sample_id, value in zip(ids, own.normal(size, 0.015, SAMPLES), strict=True):
            yield Score(step, "ema", "common", metric, sample_id, 0, float(value), True)


def _validation_curves(plan: Plan, scores: tuple[Score, ...], steps: list[int]) -> dict[str, Curve]:
    prefixes = {("ema", "common"): "val", ("raw", "common"): "val_raw", ("ema", "native"): "val_native",
                ("raw", "native"): "val_raw_native"}  # fmt: skip
    values: dict[str, dict[int, list[float]]] = {}
    for score in scores:
        name = f"{prefixes[score.weights, score.sampler]}/{score.metric}"
        values.setdefault(name, {}).setdefault(score.step, []).append(score.value or 0.0)
    curves = {
        name: _curve(plan, sorted(by_step), np.array([np.mean(by_step[s]) for s in sorted(by_step)]))
        for name, by_step in values.items()
    }
    curves["val/text_manip_hit"] = _curve(plan, steps[-1:], np.array([0.61]))
    curves["val/text_manip_spread"] = _curve(plan, steps[-1:], np.array([0.12]))
    return curves


def _meta(step: int, stop: int) -> dict[str, Any]:
    return {
        "step": step, "complete": True, "kind": "full" if step == stop else "light", "eval_set": "5e1f00aa",
        "held_out": SAMPLES, "first_third": SAMPLES // 3,
        "lpips": {"net": "alex", "backbone": "random (seed 0)", "hash": "77aa"},
        "samplers": {"common": {"kind": "dense", "steps": 8}, "native": {"kind": "self_guidance", "scale": 3.0}},
        "calibration": CALIBRATION, "labels": ["features are procedural and say nothing about DINO"],
        "train_ids_overlap": 0,
    }  # fmt: skip


def _verdicts(plan: Plan) -> tuple[VerdictView, ...]:
    if plan.collapse_from is None:
        return ()
    evidence = {"best": 0.2361, "value": 0.341, "rise_percent": 44.4, "validations": 3}
    reason = "val/recon_rmse rose 3 validations in a row"
    return (
        VerdictView("regress", "warn", plan.stop - EVERY, reason, evidence),
        VerdictView("regress", "abort", plan.stop, reason, evidence),
    )


def _images(plan: Plan, folder: Path | None, step: int) -> dict[tuple[int, str], dict[str, str]]:
    if folder is None:
        return {}
    blur = _level(plan, step)
    made: dict[tuple[int, str], dict[str, str]] = {}
    for index in range(8):
        sample_id = f"held-{index:04d}"
        reference = _portrait(index)
        noise = np.random.default_rng(index).normal(0, 1, reference.shape)
        for variant, pixels in (("reference", reference), ("ema_common", reference + 110 * blur * noise)):
            path = folder / f"{plan.arm}{plan.seed}" / variant / f"{sample_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
            made.setdefault((step, variant), {})[sample_id] = str(path)
    return made


def _portrait(index: int) -> NDArray[np.float64]:
    own = np.random.default_rng([11, index])
    y, x = np.mgrid[0:32, 0:32]
    pixels = np.ones((32, 32, 3)) * own.uniform(60, 220, 3)
    pixels[(x - 16) ** 2 / 90 + (y - 15) ** 2 / 150 < 1] = own.uniform(30, 110, 3)
    pixels[(x - 16) ** 2 / 55 + (y - 18) ** 2 / 90 < 1] = (225, 180, 150)
    pixels[((abs(abs(x - 16) - 3)) < 1) & (abs(y - 16) < 2)] = (40, 40, 60)
    pixels[(abs(x - 16) < 4) & (abs(y - 23) < 1)] = (170, 70, 70)
    return pixels


HOSTILE = (
    "[red]|`x`<script>alert(1)</script>\x1b[31m\u202e$x^2$ ![i](http://e.example/i) <b>&amp; @you #1 __b__ ~~s~~"
    "\n# head"
)


def hostile_autopsy() -> dict[str, Any]:
    """An autopsy whose every string tries to be markup."""
    made = made_autopsy()
    cells = [{**cell, "weights": HOSTILE, "pass": HOSTILE} for cell in made["cells"]]
    return made | {
        "metric": HOSTILE, "guidance": HOSTILE, "conclusion": HOSTILE, "notes": [HOSTILE], "eval_set": HOSTILE,
        "cells": cells, "shares": [{**share, "cause": HOSTILE} for share in made["shares"]],
        "not_available": [{"what": HOSTILE, "why": HOSTILE}],
        "averages": {**made["averages"], "ema_alt_from": HOSTILE},
    }  # fmt: skip


def hostile_study() -> StudyView:
    """A study in which every string that others write tries to be markup."""
    study = quickstart()
    runs = []
    for run in study.runs:
        arm = f"{HOSTILE}{run.arm}"
        curves = {**run.curves, f"memory/{HOSTILE}": run.curves["memory/rss_gib"]}
        runs.append(
            replace(
                run, run=f"{run.run}{HOSTILE}", arm=arm, title=HOSTILE, hypothesis=HOSTILE, reason=HOSTILE,
                curves=curves,
                baseline=None if run.baseline is None else f"{HOSTILE}{run.baseline}", health=HOSTILE,
                changes=((HOSTILE, HOSTILE),), config={**run.config, HOSTILE: f"{HOSTILE}{run.arm}"},
                verdicts=(VerdictView(HOSTILE, "abort", 1, HOSTILE, {HOSTILE: HOSTILE}),),
                events=(EventView(EPOCH, "repa_off", HOSTILE, 100), EventView(EPOCH, HOSTILE, HOSTILE, 1)),
                attempts=tuple(replace(a, slot=HOSTILE, cause=HOSTILE, host=HOSTILE) for a in run.attempts),
                provenance={HOSTILE: {HOSTILE: HOSTILE}}, code_hash=HOSTILE, autopsy=hostile_autopsy(),
                metas={step: {**meta, "labels": [HOSTILE], "lpips": {"net": HOSTILE, "backbone": HOSTILE}}
                       for step, meta in run.metas.items()},
            )
        )  # fmt: skip
    return replace(
        study, study=HOSTILE, runs=tuple(runs), superseded=(HOSTILE,), policy={HOSTILE: {HOSTILE: HOSTILE}},
        lint=(LintView(HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
    )  # fmt: skip


@cache
def degenerate_studies() -> dict[str, StudyView]:
    """Studies that lack something: each must still make a report."""
    study = quickstart()
    first = study.runs[0]
    runs = study.runs
    broken = {step: math.nan if step > 300 else 0.5 for step in range(0, 801, 100)}
    huge = {step: 10.0 ** (step / 3) for step in range(1, 801, 10)}
    return {
        "no runs": replace(study, runs=()),
        "one run": replace(study, runs=(first,)),
        "no seed pair": replace(study, runs=tuple(run for run in runs if run.seed == 0)),
        "command arms": command_study(),
        "queued": replace(study, runs=tuple(without_points(run, "queued") for run in runs)),
        "all failed": replace(study, runs=tuple(without_points(run, "failed", "config: no such key") for run in runs)),
        "only step 0": replace(study, runs=tuple(_cut(run, 0) for run in runs)),
        "running": replace(study, runs=tuple(_cut(run, 300) for run in runs)),
        "primary never reported": replace(study, primary=PrimaryView("val/other", "max", "best")),
        "no primary": replace(study, primary=None),
        "ends in nan": replace(study, runs=tuple(with_curve(run, PRIMARY.metric, broken) for run in runs)),
        "nothing finite": replace(
            study, runs=tuple(with_curve(r, PRIMARY.metric, {0: math.inf, 800: -math.inf}) for r in runs)
        ),
        "loss explodes": replace(study, runs=tuple(with_curve(run, "train/loss", huge) for run in runs)),
        "primary explodes": replace(study, runs=tuple(with_curve(run, PRIMARY.metric, huge) for run in runs)),
        "loss never finite": replace(study, runs=tuple(with_curve(run, "train/loss", {1: math.nan}) for run in runs)),
        "images gone": replace(
            study, runs=tuple(replace(r, images={(800, "ema_common"): {"x": "/nowhere/x.png"}}) for r in runs)
        ),
        "no scores": replace(study, runs=tuple(replace(run, scores=()) for run in runs)),
        "no metas": replace(study, runs=tuple(replace(run, metas={}, provenance={}) for run in runs)),
        "no baseline": replace(study, runs=tuple(replace(run, baseline=None) for run in runs)),
        "many arms": replace(study, runs=tuple(_many(runs))),
    }


def _cut(run: RunView, step: int) -> RunView:
    """The same run when it had come as far as a step."""
    curves = {}
    for name, c in run.curves.items():
        kept = [index for index, at in enumerate(c.steps) if at <= step]
        if kept:
            curves[name] = Curve(
                *(tuple(column[i] for i in kept) for column in (c.steps, c.values, c.times, c.attempts))
            )
    attempts = tuple(replace(attempt, ended=None, exit_code=None, cause="") for attempt in run.attempts)
    return replace(
        run, state="running", reason="", health="ok", step=step, curves=curves, verdicts=(), attempts=attempts,
        best=None,
        scores=tuple(score for score in run.scores if score.step <= step),
        metas={at: meta for at, meta in run.metas.items() if at <= step},
    )  # fmt: skip


def _many(runs: tuple[RunView, ...]) -> Iterator[RunView]:
    yield from runs
    for index in range(7):
        yield replace(runs[3], arm=f"arm-with-a-long-name-{index}", run=f"{runs[3].run}-{index}")

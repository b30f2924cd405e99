"""What one run says: values at steps, samples and seconds, per-sample scores, calibration. Pure look-ups."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from reports.study import Curve, RunView, Score

# The prefix of a metric's name says its protocol: which weights, which sampler.
PROTOCOLS: Mapping[str, tuple[str, str]] = {
    "val": ("ema", "common"),
    "val_raw": ("raw", "common"),
    "val_native": ("ema", "native"),
    "val_raw_native": ("raw", "native"),
}
PREFIXES = {protocol: prefix for prefix, protocol in PROTOCOLS.items()}
LARGEST_DRAWN = 1e100
EMPTY_CURVE = Curve((), (), (), ())


def run_label(run: RunView) -> str:
    """How tables and figures call a run: `B-s0`."""
    return f"{run.arm}-s{run.seed}"


def state_of(run: RunView) -> str:
    """The bare state, without the rule or class that may stand in brackets behind it."""
    return run.state.partition("(")[0]


def is_complete(run: RunView) -> bool:
    """Whether the run did all its steps."""
    return state_of(run) == "finished"


def curve(run: RunView, metric: str) -> Curve:
    """The curve of a metric, empty when the run has none."""
    return run.curves.get(metric, EMPTY_CURVE)


def last(run: RunView, metric: str) -> tuple[int, float] | None:
    """(step, value) of the newest point of a metric."""
    found = curve(run, metric)
    return (found.steps[-1], found.values[-1]) if found.steps else None


def as_line(found: Curve) -> dict[int, float]:
    """A curve by step."""
    return dict(zip(found.steps, found.values, strict=True))


def at(run: RunView, metric: str, step: int) -> float | None:
    """The value exactly at a step."""
    found = curve(run, metric)
    index = bisect_right(found.steps, step) - 1
    return found.values[index] if index >= 0 and found.steps[index] == step else None


def up_to(run: RunView, metric: str, step: int) -> tuple[int, float] | None:
    """(step, value) of the last point at or before a step."""
    found = curve(run, metric)
    index = bisect_right(found.steps, step) - 1
    return (found.steps[index], found.values[index]) if index >= 0 else None


def samples_per_step(run: RunView) -> int | None:
    """Training samples in one optimizer step (batch x accumulation), when the config tells."""
    batch = run.config.get("trainer.batch")
    accumulation = run.config.get("trainer.accumulation", 1)
    if isinstance(batch, int) and isinstance(accumulation, int) and batch * accumulation > 0:
        return batch * accumulation
    return None


def train_seconds(run: RunView, step: int) -> float | None:
    """Seconds of training alone, evaluation left out, that the first `step` steps took."""
    if step == 0:
        return 0.0
    found = up_to(run, "sys/train_s", step)
    return found[1] if found is not None and math.isfinite(found[1]) else None


def protocol(metric: str) -> tuple[str, str, str] | None:
    """(weights, sampler, bare name) of a full metric name; None when its prefix names no protocol."""
    prefix, _, bare = metric.partition("/")
    known = PROTOCOLS.get(prefix)
    return (*known, bare) if known is not None and bare else None


def scores_at(run: RunView, metric: str, step: int) -> dict[tuple[str, int], float]:
    """Valid finite scores of a full metric name at a step, by (sample id, evaluation seed)."""
    found = protocol(metric)
    if found is None:
        return {}
    return {
        (score.sample_id, score.eval_seed): score.value
        for score in run.scores
        if score.step == step
        and (score.weights, score.sampler, score.metric) == found
        and score.value is not None
        and _is_valid(score)
    }


def score_steps(run: RunView, metric: str) -> tuple[int, ...]:
    """Steps at which per-sample scores of a full metric name exist, increasing."""
    found = protocol(metric)
    return tuple(sorted({s.step for s in run.scores if (s.weights, s.sampler, s.metric) == found}))


def sample_counts(run: RunView, metric: str) -> dict[int, int]:
    """How many held-out samples stand behind each value of a full metric name, by step; no step without scores."""
    found = protocol(metric)
    ids: dict[int, set[str]] = {}
    for score in run.scores:
        if (score.weights, score.sampler, score.metric) == found and _is_valid(score):
            ids.setdefault(score.step, set()).add(score.sample_id)
    return {step: len(names) for step, names in ids.items()}


def paired_differences(
    minuend: Mapping[tuple[str, int], float], subtrahend: Mapping[tuple[str, int], float]
) -> dict[str, float]:
    """Difference per sample id over the (sample id, evaluation seed) keys that both have, averaged over seeds."""
    by_sample: dict[str, list[float]] = {}
    for key in sorted(minuend.keys() & subtrahend.keys()):
        by_sample.setdefault(key[0], []).append(minuend[key] - subtrahend[key])
    return {sample_id: math.fsum(values) / len(values) for sample_id, values in by_sample.items()}


def is_drawable(value: float) -> bool:
    """Whether an axis can show a value: finite, and not so large that the arithmetic of ticks overflows."""
    return math.isfinite(value) and abs(value) < LARGEST_DRAWN


def mean(values: list[float]) -> float:
    """Arithmetic mean, exactly rounded; nan for no values."""
    return math.fsum(values) / len(values) if values else math.nan


def evaluation_sets(run: RunView) -> frozenset[str]:
    """Hashes of the evaluation sets that the run was scored on."""
    return frozenset(str(meta["eval_set"]) for meta in run.metas.values() if meta.get("eval_set"))


def newest_meta(run: RunView) -> Mapping[str, Any]:
    """meta.json of the run's last complete validation; empty when it has none."""
    return run.metas[max(run.metas)] if run.metas else {}


def calibration(run: RunView, metric: str) -> dict[str, float]:
    """What reference images score on a metric by name (identical, blurred … noise), weakest damage first."""
    found = protocol(metric)
    floors = newest_meta(run).get("calibration", {})
    if found is None or not isinstance(floors, Mapping):
        return {}
    named = floors.get(found[2].replace("text_", "recon_", 1), {})
    if not isinstance(named, Mapping):
        return {}
    finite = {str(k): float(v) for k, v in named.items() if isinstance(v, int | float) and math.isfinite(v)}
    return dict(sorted(finite.items(), key=lambda item: (item[1], item[0])))


def _is_valid(score: Score) -> bool:
    return score.valid and score.value is not None and math.isfinite(score.value)

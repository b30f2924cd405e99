"""Which figures a study can have, and why the others are left out. Pure, so that the text and the drawings agree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reports.contrasts import Contrast, contrasts
from reports.pairing import baseline_arms
from reports.protocols import protocol_step
from reports.readings import curve, is_drawable, last, scores_at
from reports.study import RunView, StudyView

SHOWN_VARIANT = "ema_common"
REFERENCE = "reference"
MOST_SAMPLES = 8
NO_PRIMARY = "the study declares no primary metric"


@dataclass(frozen=True, slots=True)
class PlannedFigure:
    """A figure by file name and by the question that it answers; `why_not` is empty when it can be drawn."""

    name: str
    question: str
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row of the sample grid: a run, the step of its images, and their paths by sample id."""

    run: RunView
    step: int
    paths: Mapping[str, str]


def figure_plan(study: StudyView) -> tuple[PlannedFigure, ...]:
    """All named figures in the order in which a report shows them."""
    found = contrasts(study)
    rows: tuple[tuple[str, str, Callable[[], str]], ...] = (
        ("primary.png", "Where does each arm end?", lambda: _no_end(study)),
        ("contrasts.png", "Which arms differ from their baseline by more than its seeds do?", lambda: _no_delta(found)),
        ("curves.png", "How did each arm get there?", lambda: _no_curves(study)),
        ("costs.png", "Who leads at equal steps, equal samples and equal time?", lambda: _no_course(study)),
        ("protocols.png", "Do averaging (EMA) or guidance (native) change the order?", lambda: _no_protocols(study)),
        ("pairs.png", "Does an arm differ on most samples, or on a few?", lambda: _no_pairs(found)),
        ("samples.png", "What do the arms make of the same noise?", lambda: _no_images(study)),
    )
    return tuple(PlannedFigure(f"figures/{name}", question, why_not()) for name, question, why_not in rows)


def loss_name(run: RunView) -> str | None:
    """The series that shows a run's training: train/loss, a series named loss, or the one its arm names."""
    declared = run.config.get("metrics.loss")
    names = ["train/loss", "loss", *([declared] if isinstance(declared, str) else [])]
    return next((name for name in names if curve(run, name).steps), None)


def arms_of(study: StudyView) -> tuple[str, ...]:
    """Arms in the order in which every figure shows them: baselines first, then as the study lists them."""
    first = baseline_arms(study)
    return tuple(dict.fromkeys([*first, *(run.arm for run in study.runs)]))


def last_values(study: StudyView) -> list[tuple[RunView, float]]:
    """The last value of the primary of every run in which it is finite and later than step 0."""
    if study.primary is None:
        return []
    found = [(run, last(run, study.primary.metric)) for run in study.runs]
    return [(run, end[1]) for run, end in found if end is not None and end[0] > 0 and is_drawable(end[1])]


def contrast_scores(contrast: Contrast) -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]]:
    """Per-sample scores of the first pair, (arm, baseline), on the samples that both have."""
    pair = contrast.pairs[0]
    arm = scores_at(pair.arm, contrast.metric, pair.arm_step)
    baseline = scores_at(pair.baseline, contrast.metric, pair.baseline_step)
    common = sorted(arm.keys() & baseline.keys())
    return {key: arm[key] for key in common}, {key: baseline[key] for key in common}


def sample_rows(study: StudyView) -> tuple[SampleRow, ...]:
    """The lowest seed of each arm that has images, at the last step that has them."""
    rows = []
    for arm in arms_of(study):
        runs = sorted((run for run in study.runs if run.arm == arm), key=lambda run: run.seed)
        held = [(run, step) for run in runs if (step := _image_step(run)) is not None]
        if held:
            run, step = held[0]
            rows.append(SampleRow(run, step, run.images[step, SHOWN_VARIANT]))
    return tuple(rows)


def sample_ids(rows: tuple[SampleRow, ...]) -> tuple[str, ...]:
    """At most 8 ids, chosen by the hash of the id alone, among those that all rows have (else that any has)."""
    held = [set(row.paths) for row in rows]
    common = set.intersection(*held) if held else set()
    ids = common or set().union(*held)
    by_hash = sorted(ids, key=lambda sample_id: hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).digest())
    return tuple(by_hash[:MOST_SAMPLES])


def reference_paths(rows: tuple[SampleRow, ...]) -> dict[str, str]:
    """Path of the reference image by sample id, from whichever run kept it."""
    paths: dict[str, str] = {}
    for row in reversed(rows):
        for step, variant in sorted(row.run.images):
            if variant == REFERENCE:
                paths.update(row.run.images[step, variant])
    return paths


def _image_step(run: RunView) -> int | None:
    return max(
        (step for (step, variant), paths in run.images.items() if variant == SHOWN_VARIANT and paths), default=None
    )


def _no_end(study: StudyView) -> str:
    if study.primary is None:
        return NO_PRIMARY
    return "" if last_values(study) else f"no run has a finite last {study.primary.metric} after step 0"


def _no_course(study: StudyView) -> str:
    if study.primary is None:
        return NO_PRIMARY
    for run in study.runs:
        if sum(is_drawable(value) for value in curve(run, study.primary.metric).values) >= 2:
            return ""
    return f"no run has two finite values of {study.primary.metric}"


def _no_delta(found: tuple[Contrast, ...]) -> str:
    drawable = any(contrast.delta is not None and is_drawable(contrast.delta) for contrast in found)
    return "" if drawable else "no arm can be compared with a baseline"


def _no_curves(study: StudyView) -> str:
    metric = study.primary.metric if study.primary is not None else ""
    shown = any(loss_name(run) is not None or curve(run, metric).steps for run in study.runs)
    return "" if shown else "no run has reported a loss or a validation"


def _no_protocols(study: StudyView) -> str:
    if study.primary is None:
        return NO_PRIMARY
    found = any(protocol_step(run, study.primary.metric) is not None for run in study.runs)
    return "" if found else f"no run has {study.primary.metric} under a second protocol"


def _no_pairs(found: tuple[Contrast, ...]) -> str:
    scored = any(contrast.pairs and contrast_scores(contrast)[0] for contrast in found)
    return "" if scored else "no pair of runs has per-sample scores"


def _no_images(study: StudyView) -> str:
    return "" if sample_rows(study) else "no run has written sample images"

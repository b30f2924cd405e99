"""Does the model use its conditions? Stream use and text manipulation, read from the last full validation. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from reports.intervals import Interval, paired_bootstrap
from reports.readings import at, last, mean, paired_differences, run_label, score_steps, scores_at
from reports.study import RunView, StudyView

NOT_USED = "stream not used"
_USE = "val/use_"


@dataclass(frozen=True, slots=True)
class StreamUse:
    """What shuffling one stream across samples costs: score with it shuffled minus true score, same noise."""

    run: RunView
    stream: str
    step: int
    cost: float
    interval: Interval | None

    @property
    def finding(self) -> str:
        """In words; an interval that includes zero, or none at all, supports no claim of use."""
        if self.interval is None:
            return "no interval: nothing is claimed"
        if self.interval.includes_zero:
            return NOT_USED
        return "used" if self.interval.low > 0 else "scores better when shuffled"


@dataclass(frozen=True, slots=True)
class Manipulation:
    """How far an edited caption moves the image (LPIPS), beside what a paraphrase of the same meaning does.

    `hit` is the share of samples whose edited region moved more than half-way to the render of the edited scene.
    """

    run: RunView
    step: int
    delta: float
    floor: float | None
    spread: float | None
    hit: float | None
    interval: Interval | None

    @property
    def above_floor(self) -> float | None:
        """delta - floor."""
        return None if self.floor is None else self.delta - self.floor

    @property
    def finding(self) -> str:
        """In words; direction is never claimed without the hit rate."""
        if self.above_floor is None:
            return "no paraphrase floor: nothing is claimed"
        moved = self.above_floor > 0 if self.interval is None else self.interval.low > 0
        size = "moves the image more than a paraphrase" if moved else "no more than a paraphrase"
        return f"{size}; direction not measured" if self.hit is None else size


def stream_uses(study: StudyView) -> tuple[StreamUse, ...]:
    """All runs and streams that a full validation has written, in the order of the runs."""
    return tuple(_stream_use(study, run, name) for run in study.runs for name in sorted(run.curves) if _is_use(name))


def manipulations(study: StudyView) -> tuple[Manipulation, ...]:
    """Text manipulation of all runs that have it."""
    return tuple(found for run in study.runs if (found := _manipulation(study, run)) is not None)


def _is_use(name: str) -> bool:
    return name.startswith(_USE)


def _stream_use(study: StudyView, run: RunView, name: str) -> StreamUse:
    step, value = run.curves[name].steps[-1], run.curves[name].values[-1]
    nothing = dict.fromkeys(scores_at(run, name, step), 0.0)
    differences = list(paired_differences(scores_at(run, name, step), nothing).values())
    interval = paired_bootstrap(differences, f"{study.study}/{run_label(run)}/{name}")
    return StreamUse(run, name.removeprefix(_USE), step, mean(differences) if differences else value, interval)


def _manipulation(study: StudyView, run: RunView) -> Manipulation | None:
    delta = last(run, "val/text_manip_delta")
    if delta is None:
        return None
    step = delta[0]
    interval = None
    if step in score_steps(run, "val/text_manip_floor"):
        moved, floor = (scores_at(run, f"val/text_manip_{part}", step) for part in ("delta", "floor"))
        differences = list(paired_differences(moved, floor).values())
        interval = paired_bootstrap(differences, f"{study.study}/{run_label(run)}/text_manip")
    floor_value, spread, hit = (at(run, f"val/text_manip_{part}", step) for part in ("floor", "spread", "hit"))
    return Manipulation(run, step, delta[1], floor_value, spread, hit, interval)

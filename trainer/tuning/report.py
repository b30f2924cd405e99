"""A tuning as a table for a person and as one JSON document for scripts. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.tuning.candidate import Candidate
from trainer.tuning.outcome import Outcome
from trainer.tuning.plan import choose, fits
from trainer.tuning.process import Place

_HEAD = ("micro-batch", "checkpointing", "compiled", "compute", "s/step", "±", "images/s", "waits", "MiB", "")


@dataclass(frozen=True, slots=True)
class Tuning:
    """Everything that a tuning found; `complete` unless it was interrupted. `place` is None before any trial ran."""

    config: str
    samples_per_step: int
    own: Candidate
    outcomes: Sequence[Outcome]
    estimates: Mapping[Candidate, float]
    place: Place | None
    limit_mib: float | None
    synthetic: bool
    complete: bool

    @property
    def chosen(self) -> Outcome | None:
        """The choice so far; None if nothing fits or nothing was measured."""
        return None if self.limit_mib is None else choose(self.outcomes, self.limit_mib, self.own)


def document(tuning: Tuning, written: str | None) -> dict[str, Any]:
    """The tuning as JSON values; `written` is the file that holds the choice."""
    chosen = tuning.chosen
    return {
        "config": tuning.config,
        "complete": tuning.complete,
        "synthetic": tuning.synthetic,
        "samples_per_step": tuning.samples_per_step,
        "device": tuning.place and tuning.place.device,
        "device_name": tuning.place and tuning.place.name,
        "train_images": tuning.place and tuning.place.images,
        "limit_mib": _rounded(tuning.limit_mib),
        "candidates": [_facts(tuning, outcome) for outcome in tuning.outcomes],
        "chosen": None if chosen is None else _facts(tuning, chosen),
        "speedup": _rounded(_speedup(tuning)),
        "written": written,
    }


def table(tuning: Tuning) -> str:
    """The candidates in the order in which they were tried, and what was chosen."""
    chosen = tuning.chosen
    rows = [_HEAD, *(_row(tuning, outcome, chosen) for outcome in tuning.outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    shown = ["  ".join([*(cell.rjust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    return "\n".join([_title(tuning), *(line.rstrip() for line in shown), *_conclusion(tuning, chosen)])


def _title(tuning: Tuning) -> str:
    where = "nowhere yet" if tuning.place is None else f"{tuning.place.device} ({tuning.place.name})"
    data = "noise instead of data, loading not measured" if tuning.synthetic else "the data of the configuration"
    limit = "" if tuning.limit_mib is None else f", at most {tuning.limit_mib:,.0f} MiB"
    return f"{tuning.config}: steps of {tuning.samples_per_step} images on {where}{limit}; {data}"


def _row(tuning: Tuning, outcome: Outcome, chosen: Outcome | None) -> tuple[str, ...]:
    each = outcome.candidate
    cut = f"{each.batch} x {each.accumulation}"
    choice = (cut, each.checkpointing, "yes" if each.compiled else "no", each.compute)
    if outcome.kind != "measured":
        return (*choice, "", "", "", "", "", f"{outcome.kind.replace('_', ' ')}: {outcome.why}")
    marks = [
        *(["as configured"] if each == tuning.own else []),
        *(["chosen"] if outcome is chosen else []),
        *([] if tuning.limit_mib is None or fits(outcome, tuning.limit_mib) else ["does not fit"]),
    ]
    speed = f"{tuning.samples_per_step / outcome.median_s:.4g}"
    times = (f"{outcome.median_s:.4g}", f"{outcome.spread_s:.2g}", speed, f"{outcome.data_share:.0%}")
    return (*choice, *times, f"{outcome.peak_mib:,.0f}", ", ".join(marks))


def _conclusion(tuning: Tuning, chosen: Outcome | None) -> list[str]:
    lines = [] if tuning.complete else ["interrupted: only what is above was measured"]
    if chosen is None:
        return lines
    speedup = _speedup(tuning)
    if chosen.candidate == tuning.own:
        return [*lines, "chosen: the configuration as it is; nothing that was tried is faster beyond noise"]
    than = "" if speedup is None else f", {speedup:.2f} times as fast as configured"
    return [*lines, f"chosen: {chosen.candidate}{than}"]


def _speedup(tuning: Tuning) -> float | None:
    """How many times as fast as the configuration the choice is; None if either was not measured."""
    own = next((each for each in tuning.outcomes if each.candidate == tuning.own and each.kind == "measured"), None)
    return own.median_s / tuning.chosen.median_s if own is not None and tuning.chosen is not None else None


def _facts(tuning: Tuning, outcome: Outcome) -> dict[str, Any]:
    each, measured = outcome.candidate, outcome.kind == "measured"
    return {
        "batch": each.batch,
        "accumulation": each.accumulation,
        "activation_checkpointing": each.checkpointing,
        "compile": each.compiled,
        "precision": each.compute,
        "as_configured": each == tuning.own,
        "estimated_mib": _rounded(tuning.estimates[each]),
        "outcome": outcome.kind,
        "why": outcome.why,
        "steps_timed": len(outcome.step_s),
        "step_s": _rounded(outcome.median_s) if measured else None,
        "spread_s": _rounded(outcome.spread_s) if measured else None,
        "images_per_s": _rounded(tuning.samples_per_step / outcome.median_s) if measured else None,
        "data_share": _rounded(outcome.data_share) if measured else None,
        "peak_mib": _rounded(outcome.peak_mib),
    }


def _rounded(value: float | None) -> float | None:
    """Six significant digits."""
    return None if value is None else float(f"{value:.6g}")

"""What the autopsy of a run found, as tables: which of weights, averaging, guidance and routing is to blame. Pure.

It is about two checkpoints of one run, so nothing here says that one arm or method is better than another. The content
comes from a file of the run's folder: whatever has not the shape of an autopsy makes a section that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from reports.readings import run_label
from reports.sections import Table
from reports.study import RunView, StudyView
from reports.wording import NOT_AVAILABLE, counted, escape, exact, number, seconds, signed

UNREADABLE = "autopsy/autopsy.json of this run is not what an autopsy writes, so nothing of it is shown"
_LONGEST_PARAGRAPH = 4000  # the conclusion is one paragraph of ours, longer than a foreign string may be

_EMPTY = Table((), ())


@dataclass(frozen=True, slots=True)
class AutopsySection:
    """One run's autopsy for the report. `unreadable`, when set, is all there is."""

    title: str
    facts: str = ""
    conclusion: str = ""
    shares: Table = _EMPTY
    cells: Table = _EMPTY
    sweep: Table = _EMPTY
    remarks: tuple[str, ...] = ()
    unreadable: str = ""


def autopsies(study: StudyView) -> list[AutopsySection]:
    """A section for every run that has an autopsy, in the order of the runs."""
    return [_section(run, run.autopsy) for run in study.runs if run.autopsy is not None]


def autopsy_rows(study: StudyView) -> list[tuple[Any, ...]]:
    """The same numbers as lines of a data file (tables.AUTOPSY); an autopsy that cannot be read has none."""
    rows: list[tuple[Any, ...]] = []
    for run in study.runs:
        try:
            rows += [] if run.autopsy is None else list(_data(run, run.autopsy))
        except _WRONG_SHAPE:
            continue  # its section in the report says so
    return rows


# ---- the section -----------------------------------------------------------------------------------------------------

_WRONG_SHAPE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def _section(run: RunView, found: Mapping[str, Any]) -> AutopsySection:
    try:
        return _readable(run, found)
    except _WRONG_SHAPE:
        return AutopsySection(f"{run_label(run)}: not readable", unreadable=UNREADABLE)


def _readable(run: RunView, found: Mapping[str, Any]) -> AutopsySection:
    best, stop = (int(found["steps"][name]) for name in ("best", "stop"))
    return AutopsySection(
        title=f"{run_label(run)}: steps {best} and {stop}, this checkpoint pair, these {int(found['samples'])} samples",
        facts=_facts(found),
        conclusion=Markup(escape(_text(found["conclusion"]), _LONGEST_PARAGRAPH)),
        shares=Table(["cause", "share", "95 % interval", "finding"], [*_share_rows(found)]),
        cells=Table(
            ["weights", "pass", f"step {best}", f"step {stop}", "change", "95 % interval"], [*_cell_rows(found)]
        ),
        sweep=Table(["w", f"step {best}", f"step {stop}", "change", "95 % interval"], [*_sweep_rows(found)]),
        remarks=(
            *(_text(note) for note in found["notes"]),
            *(f"n/a: {_text(one['what'])}: {_text(one['why'])}" for one in found["not_available"]),
        ),
    )


def _facts(found: Mapping[str, Any]) -> str:
    better = "lower" if found["direction"] == "min" else "higher"
    averages = found["averages"]
    other = f"half-life {number(_value(averages['ema_alt']))} ({_text(averages['ema_alt_from'])})"
    return (
        f"{_text(found['metric'])} ({better} is better); guided: {_text(found['guidance'])}; ema: "
        f"{_average(averages['ema'])}, ema_alt: {other}; blamed above "
        f"{number(_value(found['threshold']))}, 1 % of the best score; {int(found['samples'])} of "
        f"{counted(int(found['samples_available']), 'held-out sample')}, evaluation set {_text(found['eval_set'])}, "
        f"{seconds(float(found['seconds']))}"
    )


def _average(name: Any) -> str:
    return "the published one" if name == "published" else f"half-life {number(_value(name))} of the run"


def _share_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for share in found["shares"]:
        finding = "blamed" if share["blamed"] else "not blamed"
        if share["above_limit"] and not share["blamed"]:
            finding = "not blamed: an advantage that shrank, nothing has fallen or is harmed by it"
        apart = " (apart from the sum)" if share["apart"] else ""
        yield [_text(share["cause"]) + apart, *_bounds_text(share), finding]
    if found["total"] is not None:
        yield ["sum", *_bounds_text(found["total"]), ""]


def _cell_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for cell in found["cells"]:
        yield [_text(cell["weights"]), _text(cell["pass"]), *_pair(cell), *_change(cell)]


def _sweep_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    for point in found["w_sweep"]:
        yield [number(_value(point["w"])), *_pair(point), *_change(point)]


def _pair(entry: Mapping[str, Any]) -> list[str]:
    return [number(_value(entry["best"])), number(_value(entry["stop"]))]


def _change(entry: Mapping[str, Any]) -> list[str]:
    return [NOT_AVAILABLE, NOT_AVAILABLE] if entry["delta"] is None else _bounds_text(entry["delta"])


def _bounds_text(bounds: Mapping[str, Any]) -> list[str]:
    mean, low, high = (_value(bounds[name]) for name in ("mean", "low", "high"))
    return [signed(mean), NOT_AVAILABLE if low is None or high is None else f"{signed(low)} to {signed(high)}"]


# ---- the data file ---------------------------------------------------------------------------------------------------


def _data(run: RunView, found: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    pair = (int(found["steps"]["best"]), int(found["steps"]["stop"]), _text(found["metric"]))
    for cell in found["cells"]:
        yield (run.run, "cell", _text(cell["weights"]), _text(cell["pass"]), "", "", *pair, *_numbers(cell), "")
    for point in found["w_sweep"]:
        yield (run.run, "w", "ema", "guided", "", exact(_value(point["w"])), *pair, *_numbers(point), "")
    for share in found["shares"]:
        blamed = int(bool(share["blamed"]))
        yield (run.run, "share", "", "", _text(share["cause"]), "", *pair, "", "", *_bounds(share), blamed)
    if found["total"] is not None:
        yield (run.run, "sum", "", "", "", "", *pair, "", "", *_bounds(found["total"]), "")


def _numbers(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    bounds = ("", "", "", "") if entry["delta"] is None else _bounds(entry["delta"])
    return (exact(_value(entry["best"])), exact(_value(entry["stop"])), *bounds)


def _bounds(bounds: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(exact(_value(bounds[name])) for name in ("mean", "low", "high")), int(bounds["samples"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text was expected, not {type(value).__name__}")
    return value


def _value(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise TypeError(f"a number or null was expected, not {type(value).__name__}")
    return None if value is None else float(value)

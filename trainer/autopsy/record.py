"""An autopsy as files and as a table: autopsy/autopsy.json and autopsy/scores.csv in the run directory."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.autopsy.conclusion import conclude, told
from trainer.autopsy.examined import Examined
from trainer.autopsy.measure import Row
from trainer.autopsy.passes import PASSES, WEIGHTS
from trainer.autopsy.shares import APART, LEVEL, Cell, Estimate, Finding
from trainer.evaluate.scores import COLUMNS, NOT_FINITE

FOLDER = "autopsy"
SCORES = (*COLUMNS, "pass")


def as_document(examined: Examined) -> dict[str, Any]:
    """The content of autopsy.json; JSON values only, numbers that cannot be had are null with a reason beside them."""
    found, pair = examined.finding, examined.pair
    averages = examined.averages
    return {
        "run": examined.run,
        "steps": {"best": pair.best, "stop": pair.stop},
        "notes": list(pair.notes),
        "metric": examined.metric,
        "metric_reason": examined.reason,
        "direction": examined.direction,
        "guidance": examined.native,
        "averages": {
            "ema": averages.first,
            "ema_alt": averages.other,
            "ema_alt_from": "stored" if averages.stored else "rebuilt from stored averages",
            "profile_distance": {str(step): distance for step, distance in examined.distances.items()},
        },
        "best_score": None if found is None else _number(found.best_score),
        "threshold": None if found is None else _number(found.threshold),
        "cells": [] if found is None else [_cell(examined, found, cell) for cell in _grid()],
        "shares": [] if found is None else _shares(found),
        "total": None if found is None else _estimate(found.total),
        "blamed": [] if found is None else list(found.blamed),
        "w_sweep": [] if found is None else _sweep(examined, found),
        "w_means": examined.passes.sweep_kind,
        "conclusion": conclude(examined),
        "not_available": [{"what": what, "why": why} for what, why in examined.not_measured.items()],
        "intervals": f"{LEVEL:.0%}, paired bootstrap over samples: this checkpoint pair, these samples",
        "eval_set": examined.eval_set,
        "samples": examined.samples,
        "samples_available": examined.available,
        "eval_seeds": examined.eval_seeds,
        "seconds": round(examined.seconds, 3),
    }


def write(run_dir: Path, document: Mapping[str, Any], rows: Sequence[Row]) -> Path:
    """Write scores.csv, then autopsy.json, each atomically; returns the path of the latter."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / "scores.tmp").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SCORES)
        writer.writerows(_csv_row(document["run"], document["metric"], row) for row in rows)
        _flush(file.fileno(), file.flush)
    (folder / "scores.tmp").replace(folder / "scores.csv")
    with (folder / "autopsy.tmp").open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, allow_nan=False)
        _flush(file.fileno(), file.flush)
    return (folder / "autopsy.tmp").replace(folder / "autopsy.json")


def as_table(document: Mapping[str, Any]) -> str:
    """The document for a person at a terminal."""
    best, stop = document["steps"]["best"], document["steps"]["stop"]
    better = "lower" if document["direction"] == "min" else "higher"
    lines = [
        f"autopsy of {document['run']}: step {best} against step {stop}, {document['metric']} ({better} is better), "
        f"{document['samples']} of {document['samples_available']} samples, {document['seconds']:.1f} s",
        *(f"note: {note}" for note in document["notes"]),
        *_distance_lines(document),
        "",
    ]
    if document["cells"]:
        lines += [*_cell_lines(document, best, stop), "", *_share_lines(document), "", *_sweep_lines(document), ""]
    missing = (f"n/a: {one['what']}: {one['why']}" for one in document["not_available"])
    return "\n".join([*lines, *missing, document["conclusion"]])


def _flush(descriptor: int, flush: Any) -> None:
    flush()
    os.fsync(descriptor)


def _csv_row(run: str, metric: str, row: Row) -> tuple[Any, ...]:
    value, reason = (repr(row.value), "") if math.isfinite(row.value) else ("", NOT_FINITE)
    return (
        run, row.step, row.weights, row.sampler, metric, row.sample_id, row.eval_seed, value, int(not reason),
        reason, row.drawn,
    )  # fmt: skip


# ---- autopsy.json ----------------------------------------------------------------------------------------------------


def _grid() -> Iterable[Cell]:
    return (Cell(weights, drawn) for weights in WEIGHTS for drawn in PASSES)


def _cell(examined: Examined, found: Finding, cell: Cell) -> dict[str, Any]:
    means = found.means.get(cell)
    why = "" if means else _why_not(examined, cell)
    return {
        "weights": cell.weights,
        "pass": cell.drawn,
        "best": means.best if means else None,
        "stop": means.stop if means else None,
        "delta": _estimate(found.deltas.get(cell)),
        "why_not": why,
    }


def _why_not(examined: Examined, cell: Cell) -> str:
    reasons = (examined.not_measured.get(key) for key in (cell.drawn, cell.weights, f"{cell.weights}, {cell.drawn}"))
    return next((reason for reason in reasons if reason), "")


def _shares(found: Finding) -> list[dict[str, Any]]:
    return [
        {
            "cause": share.cause,
            **_bounds(share.estimate),
            "above_limit": share.above_limit,
            "fall": _bounds(share.fall),
            "harm": _estimate(share.harm),
            "blamed": share.blamed,
            "apart": share.cause in APART,
        }
        for share in found.shares
    ]


def _sweep(examined: Examined, found: Finding) -> list[dict[str, Any]]:
    points = []
    for w, drawn in examined.passes.sweep.items():
        cell = Cell("ema", drawn)
        means = found.means.get(cell)
        points.append(
            {
                "w": w,
                "best": means.best if means else None,
                "stop": means.stop if means else None,
                "delta": _estimate(found.deltas.get(cell)),
            }
        )
    return points


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else _bounds(found)


def _bounds(found: Estimate) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "low": _number(found.low),
        "high": _number(found.high),
        "samples": found.samples,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---- the table -------------------------------------------------------------------------------------------------------


def _distance_lines(document: Mapping[str, Any]) -> list[str]:
    averages = document["averages"]
    return [
        f"ema_alt (half-life {averages['ema_alt']:g}) at step {step}: rebuilt, weight profile {distance:.3f} from its "
        "target (total variation)"
        for step, distance in averages["profile_distance"].items()
    ]


def _cell_lines(document: Mapping[str, Any], best: int, stop: int) -> list[str]:
    lines = [_line("weights", "pass", f"step {best}", f"step {stop}", "change, above 0 is worse [95 %]")]
    for cell in document["cells"]:
        change = "n/a" if cell["delta"] is None else _told(cell["delta"])
        lines.append(_line(cell["weights"], cell["pass"], _score(cell["best"]), _score(cell["stop"]), change))
    return lines


def _share_lines(document: Mapping[str, Any]) -> list[str]:
    lines = [f"{'cause':<11}share [95 %], blamed above {_score(document['threshold'])}"]
    for share in document["shares"]:
        spared = "  above it, but without a fall or harm" if share["above_limit"] else ""
        remarks = ("  blamed" if share["blamed"] else spared) + ("  (apart from the sum)" if share["apart"] else "")
        lines.append(f"{share['cause']:<11}{_told(share)}{remarks}")
    return [*lines, f"{'sum':<11}{_told(document['total'])}"] if document["total"] else lines


def _sweep_lines(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for point in document["w_sweep"]:
        change = "n/a" if point["delta"] is None else _told(point["delta"])
        lines.append(_line("ema", f"w = {point['w']:g}", _score(point["best"]), _score(point["stop"]), change))
    return [f"{document['w_means']} at other strengths", *lines] if lines else lines


def _line(weights: str, drawn: str, best: str, stop: str, change: str) -> str:
    return f"{weights:<9}{drawn:<9}{best:>11}{stop:>11}  {change}"


def _score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _told(bounds: Mapping[str, Any]) -> str:
    missing = math.nan if bounds["low"] is None else bounds["low"]
    return told(Estimate(bounds["mean"], missing, bounds["high"] or 0.0, bounds["samples"]))

"""The numbers of docs/adamw_tread.md, read from a home in which the arms of arms/extras/collapse have run.

    python -m benchmarks.collapse measure HOME [PART/PARTS]   score what a training does not (minutes; once)
    python -m benchmarks.collapse tables HOME [FOLDER]        print the tables; with FOLDER draw the figures there

The judge's verdicts come from the replay that `runner backtest STUDY --policy armed` uses, with the primary metric
exchanged for the same metric of other weights or of guided drawing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

from benchmarks.collapse_cells import FILE, Cells, measure, read_cells
from benchmarks.collapse_figures import draw
from benchmarks.collapse_signs import SIGNS, Curve, Sign, fires, last_half
from runner.home import Home
from runner.judge import regress, starvation
from runner.judge.backtest import RecordedArm, Replay, replay_study
from runner.judge.curves import Curves
from runner.judge.policy import FINAL
from runner.naming import NamedRun
from runner.records import Finding, Primary, Series
from runner.store.database import reading
from runner.store.queries import read_named_runs
from runner.store.recorded import recorded_study
from trainer.document import load_document

STUDIES = ("collapse-small", "collapse-large")
METRIC = "recon_rmse"
BEST_FROM = 0.10  # of the run: earlier scores count for no best
RECORDED = "ema/dense"
CELLS = (RECORDED, "raw/dense", "ema/guided", "long/dense", "long/guided")


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what its home recorded, its folder, and its scores by cell, step and sample."""

    recorded: RecordedArm
    folder: Path
    cells: Cells
    depth: int

    @property
    def arm(self) -> str:
        """Its arm, without the seed."""
        return self.recorded.arm.rpartition("-s")[0]

    def curve(self, cell: str) -> Curve:
        """The mean over samples at each step; empty for a cell that this run does not have."""
        return {step: fmean(scores.values()) for step, scores in sorted(self.cells.get(cell, {}).items())}

    def as_judged(self, cell: str) -> RecordedArm:
        """The run as if `cell` were its primary metric, with its paired scores, and without the judge's own probes."""
        if cell == RECORDED:
            return self.recorded
        name = f"val_{cell.replace('/', '_')}/{METRIC}"
        curve = self.curve(cell)
        kept = {key: one for key, one in self.recorded.series.items() if not key.startswith(("val/", "val_probe/"))}
        series = Series(name, tuple(curve), tuple(curve.values()))
        paired = self.cells[cell]
        return replace(self.recorded, series={**kept, name: series}, primary=Primary(name, "min"), paired=paired)


def folders(home: Home, study: str) -> dict[str, Path]:
    """Run directory by arm and seed (`B-s0`), newest generations only."""
    found = {run.path.partition("/")[2]: home.root / run.run for run in read_named_runs(home) if _is_of(run, study)}
    if not found:
        raise SystemExit(f"{home.root} has no study {study}; next: runner launch arms/extras/collapse/*.yaml --home …")
    return found


def _is_of(run: NamedRun, study: str) -> bool:
    return run.study == study and not run.superseded


def load(home: Home, study: str) -> list[Run]:
    """The runs of a study, by arm and seed. Raises FileNotFoundError where `measure` has not been."""
    where = folders(home, study)
    with reading(home) as connection:
        arms, _ = recorded_study(connection, home, study)
    runs = []
    for arm in arms:
        folder = where[arm.arm]
        cells = {RECORDED: {step: dict(scores) for step, scores in arm.paired.items()}, **read_cells(folder)}
        runs.append(Run(arm, folder, cells, load_document(folder / "config.yaml").config.model.depth))
    return runs


# ---- does it collapse? -----------------------------------------------------------------------------------------------


def score_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Per cell and arm, seed by seed: last score, its distance to A's, and what becomes of the curve."""
    rows = []
    for cell in CELLS:
        having = [run for run in runs if run.cells.get(cell)]
        replays = replay_study([run.as_judged(cell) for run in having])
        for arm in dict.fromkeys(run.arm for run in having):
            judged = [(run, replay) for run, replay in zip(having, replays, strict=True) if run.arm == arm]
            rows.append(_score_row(cell, judged, [run for run in having if run.arm == "A"]))
    return rows


def _score_row(cell: str, judged: Sequence[tuple[Run, Replay]], base: Sequence[Run]) -> list[str]:
    lasts, rises = [], []
    for run, _ in judged:
        curve = {step: value for step, value in run.curve(cell).items() if step >= BEST_FROM * _total(run)}
        lasts.append(curve[max(curve)])
        rises.append(100 * (lasts[-1] / min(curve.values()) - 1))
    arm = judged[0][0].arm
    theirs = [curve[max(curve)] for curve in (run.curve(cell) for run in base)]
    apart = [mine - other for mine, other in zip(lasts, theirs, strict=True)] if base and arm != "A" else []
    metric = [next((one.step for one in _metric_findings(run.as_judged(cell))), None) for run, _ in judged]
    return [
        cell,
        arm,
        ", ".join(f"{last:.4f}" for last in lasts),
        f"{fmean(abs(one - other) for one, other in combinations(lasts, 2)):.4f}",
        ", ".join(f"{one:+.4f}" for one in apart),
        ", ".join(f"{rise:.1f} %" for rise in rises),
        _fired(metric),
        ", ".join("never" if one.warn_step is None else f"{one.warn_step}" for _, one in judged),
        ", ".join(f"{one.step} ({one.rule})" if one.action in FINAL else "never" for _, one in judged),
    ]


def _metric_findings(arm: RecordedArm) -> Sequence[Finding]:
    """What the rule about the primary metric alone says."""
    assert arm.primary is not None
    own = {key: one for key, one in arm.series.items() if key == arm.primary.metric or key.startswith("val_probe/")}
    return regress.detect(_curves(arm, own), regress.LEVELS)


def _curves(arm: RecordedArm, series: Mapping[str, Series]) -> Curves:
    return Curves(series, arm.steps_total, arm.primary, arm.events, paired=arm.paired)


def _total(run: Run) -> int:
    assert run.recorded.steps_total is not None
    return run.recorded.steps_total


# ---- does an indicator lead? -----------------------------------------------------------------------------------------


def sign_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Per indicator: level in each arm, ratio to A and C, and where the rule that was fitted on A fires."""
    return [_sign_row(sign, runs) for sign in SIGNS]


def _sign_row(sign: Sign, runs: Sequence[Run]) -> list[str]:
    curves: dict[str, list[Curve]] = {"A": [], "B": [], "C": []}
    for run in runs:
        curves[run.arm].append(sign.of(run.recorded.series, run.depth))
    total = _total(runs[0])
    levels = {arm: [last_half(curve, total) for curve in found] for arm, found in curves.items()}
    healthy = [curve for curve in curves["A"] if curve]
    others = [[one for one in healthy if one is not curve] for curve in healthy]
    return [
        sign.name,
        *(_told(levels[arm]) for arm in "ABC"),
        _against(sign, levels["B"], levels["A"]),
        _against(sign, levels["B"], levels["C"]),
        _fired([fires(sign, healthy, curve, total) for curve in curves["B"]]) if healthy else "no A",
        _fired([fires(sign, healthy, curve, total) for curve in curves["C"]]) if healthy else "no A",
        _fired([fires(sign, rest, curve, total) for rest, curve in zip(others, healthy, strict=True)])
        if healthy
        else "no A",
    ]


def _told(levels: Sequence[float]) -> str:
    known = [level for level in levels if math.isfinite(level)]
    return f"{median(known):.3g} [{min(known):.3g}, {max(known):.3g}]" if known else "n/a"


def _against(sign: Sign, mine: Sequence[float], base: Sequence[float]) -> str:
    """Median, least and largest over seeds of the ratio (or difference) of two arms, paired by seed."""
    if not mine or not base or not all(map(math.isfinite, [*mine, *base])):
        return "n/a"
    pairs = zip(mine, base, strict=True)
    apart = [one / other if sign.is_ratio else one - other for one, other in pairs]
    mark = "x" if sign.is_ratio else "+"
    return f"{mark} {median(apart):.3g} [{min(apart):.3g}, {max(apart):.3g}]"


def _fired(steps: Sequence[int | None]) -> str:
    return ", ".join("never" if step is None else f"{step}" for step in steps) or "n/a"


def starvation_rows(runs: Sequence[Run]) -> list[list[str]]:
    """What the judge's own rule about the optimizer said of each run."""
    rows = []
    for run in runs:
        found = starvation.detect(_curves(run.recorded, run.recorded.series), starvation.LEVELS)
        rows.append([run.recorded.arm, found[0].summary if found else "nothing"])
    return rows


# ---- the command line ------------------------------------------------------------------------------------------------

TABLES: tuple[tuple[str, str, Callable[[Sequence[Run]], list[list[str]]]], ...] = (
    ("scores", "cell|arm|last|seeds apart|minus A|last above best|metric warned|first warning|stopped", score_rows),
    ("indicators", "indicator|A|B|C|B by A|B by C|fires in B|in C|in A by its siblings", sign_rows),
    ("starvation", "run|the judge's rule", starvation_rows),
)


def main(argv: Sequence[str]) -> int:
    """The command line of this module's docstring."""
    if len(argv) < 2 or argv[0] not in ("measure", "tables"):
        print(__doc__, file=sys.stderr)
        return 2
    home = Home(Path(argv[1]).resolve())
    if argv[0] == "measure":
        part, parts = map(int, argv[2].split("/")) if len(argv) > 2 else (0, 1)
        for index, folder in enumerate(sorted(path for study in STUDIES for path in folders(home, study).values())):
            if index % parts == part and not (folder / FILE).exists():
                measure(folder)
                print(folder.name, flush=True)
        return 0
    studies = {study: load(home, study) for study in STUDIES}
    for study, runs in studies.items():
        for title, head, rows in TABLES:
            print(f"\n## {study}: {title}\n\n{as_markdown(head.split('|'), rows(runs))}")
    if len(argv) > 2:
        for path in draw(studies, Path(argv[2])):
            print(path)
    return 0


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

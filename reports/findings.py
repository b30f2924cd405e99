"""What the numbers of a study say, in sober sentences: for the headline, for the tables and above the figures. Pure.

No sentence says "better" from an interval over samples; the words are lower, higher, within seed spread, and how many
seeds stand behind them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from reports.contrasts import WITHIN, Contrast
from reports.lineage import dependent
from reports.overlap import Overlap, apart
from reports.readings import is_complete, last, run_label, state_of
from reports.study import RunView, StudyView
from reports.wording import clean, counted, label, listed, number, signed

SIGNIFICANT = 0.05
MOST_NUMBERS = 4  # contrasts that the line above a figure tells one by one
MOST_METRICS = 8  # names told in place of a primary that nobody reported
NO_RESULT = "no result"
ENDED_EARLY = frozenset({"aborted", "failed", "lost", "preempted", "cancelled"})


def ended_early(run: RunView) -> bool:
    """Whether a run ended before all its steps were done."""
    return state_of(run) in ENDED_EARLY


def ending(run: RunView) -> str:
    """`aborted(regress) at step 600: why`, or the state alone of a run that did not end early."""
    if not ended_early(run):
        return run.state
    why = _why(run)
    return f"{run.state} at step {run.step}" + (f": {why}" if why else "")


def short_ending(run: RunView) -> str:
    """`aborted at 600 (regress)`: for a mark in a figure."""
    rule = run.state.partition("(")[2].removesuffix(")") or _newest_abort(run)
    return f"{state_of(run)} at {run.step}" + (f" ({rule})" if rule and ended_early(run) else "")


def states(study: StudyView) -> str:
    """`5 runs: 4 finished, 1 aborted`."""
    counts = Counter(state_of(run) for run in study.runs)
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"{counted(len(study.runs), 'run')}: {told}" if told else "no runs yet"


def better_is(direction: str) -> str:
    """Which way the metric is meant to go."""
    return "higher is better" if direction == "max" else "lower is better"


def reading(contrast: Contrast) -> str:
    """What may be said of a contrast: within seed spread, not shown, or lower/higher with its word.

    Where a run ended early, all are read half-way, at the last step in common: that is no result, however far apart.
    """
    if contrast.delta is None:
        return f"n/a: {contrast.why_not}"
    if early := _early(contrast):
        told = some([f"{run_label(run)} {state_of(run)}" for run in early])
        return f"{NO_RESULT} ({told}): {_so_far(contrast)}"
    if contrast.within_seed_spread:
        return WITHIN
    if contrast.delta == 0 or (contrast.interval is not None and contrast.interval.includes_zero):
        return "no difference shown"
    side = "lower" if contrast.delta < 0 else "higher"
    spread = "seed spread not known" if contrast.seed_floor is None else "beyond seed spread"
    if contrast.word == "supported" and contrast.p_holm is not None and contrast.p_holm > SIGNIFICANT:
        return f"indicative: {side}, {spread}, p above {SIGNIFICANT} after Holm"
    return f"{contrast.word}: {side}, {spread}"


def short_reading(contrast: Contrast) -> str:
    """The same for the line above a figure."""
    if contrast.delta is None:
        return f"{contrast.arm}: not comparable"
    told = reading(contrast).removeprefix(f"{contrast.word}: ").removeprefix("indicative: ")
    told = NO_RESULT if _early(contrast) else told
    early = any(not is_complete(run) for pair in contrast.pairs for run in (pair.arm, pair.baseline))
    where = f" at step {contrast.pairs[0].arm_step}" if early else ""
    return f"{contrast.arm} {signed(contrast.delta, 2)}{where} ({told})"


def short_findings(found: Sequence[Contrast]) -> str:
    """All contrasts in the line above a figure, with how much their seeds can carry; empty when there are none."""
    if not found:
        return ""
    told = " · ".join(_short_list(found))
    words = {c.word: c.paired_seeds for c in found if c.delta is not None and not _early(c)}
    carried = listed([f"{word} ({counted(seeds, 'paired seed')})" for word, seeds in sorted(words.items())])
    return f"{told}. " + (f"Evidence: {carried}. " if carried else "")


def some(names: list[str]) -> str:
    """All of a few names, the first four of many."""
    return listed(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} more"


def sentence(contrast: Contrast) -> str:
    """A contrast in one sentence with every number that limits it."""
    if contrast.delta is None:
        return f"{contrast.arm} against {contrast.baseline}: n/a, {contrast.why_not}."
    parts = [
        f"{contrast.arm} against {contrast.baseline}: {contrast.metric} {signed(contrast.delta)} "
        f"({better_is(contrast.direction)})",
        f"seed floor {number(contrast.seed_floor, 3)}"
        if contrast.seed_floor is not None
        else f"{contrast.baseline} has fewer than two seeds, so its seed spread is not known",
        counted(contrast.paired_seeds, "paired seed"),
    ]
    notes = "".join(f" {_capital(note)}." for note in contrast.notes)
    return f"{'; '.join(parts)}. {_capital(reading(contrast))}.{notes}"


def cannot_be_said(study: StudyView, found: tuple[Contrast, ...], shared: tuple[Overlap, ...]) -> list[str]:
    """The limits of this study, one sentence each."""
    limits = []
    weak = [c.arm for c in found if c.delta is not None and c.paired_seeds < 3 and not _early(c)]
    if weak:
        limits.append(
            f"With fewer than 3 paired seeds ({listed(weak)}) a contrast is a screening: it says which arm deserves "
            "more seeds, not which method is better."
        )
    if any(contrast.interval is not None and contrast.interval.kind == "samples" for contrast in found):
        limits.append(
            "An interval over samples speaks of one pair of checkpoints and these samples; two seeds of one arm can "
            "differ by more than its width."
        )
    unknown = sorted({c.baseline for c in found if c.delta is not None and c.seed_floor is None})
    if unknown:
        limits.append(f"Without a second seed of {listed(unknown)} no seed floor is known: nothing is ruled out.")
    early = [run_label(run) for run in study.runs if ended_early(run)]
    if early:
        limits.append(
            f"{some(early)} ended early: read at the last common step where there is one, and no result; a failure or "
            "an abort is not a score."
        )
    rescued = dependent(study)
    if rescued:
        limits.append(
            f"Rescued runs share their first steps with the runs they come from ({some(rescued)}): such a pair is no "
            "independent evidence, and a rescue shows what its changes did after one collapse, not how its arm trains."
        )
    waiting = [run_label(run) for run in study.runs if state_of(run) not in ENDED_EARLY | {"finished"}]
    if waiting:
        limits.append(f"{listed(waiting)} {'is' if len(waiting) == 1 else 'are'} not done: these numbers will change.")
    later = apart(shared)
    if later:
        told = some([f"{run_label(one.run)} (against {run_label(one.baseline)})" for one in later])
        limits.append(
            f"{told} did not train at the same time as what {'it is' if len(later) == 1 else 'they are'} read against: "
            "what else the machine did in the meantime is part of any difference in speed."
        )
    limits.append("All numbers hold for this data, model size and schedule; nothing here was tried at another.")
    return limits


def headline(study: StudyView, found: tuple[Contrast, ...]) -> list[str]:
    """What can be said, one sentence each."""
    if study.primary is None:
        return ["The study declares no primary metric, so its arms are not ranked; the loss curves are shown."]
    if not any(last(run, study.primary.metric) for run in study.runs):
        nothing = f"No run has reported {study.primary.metric} yet: nothing can be compared."
        return [nothing, *_reported_instead(study, study.primary.metric)]
    if not found:
        return ["No arm names a baseline, so there is nothing to contrast; the values stand for themselves."]
    return [sentence(contrast) for contrast in found]


def _newest_abort(run: RunView) -> str:
    """The rule of the last abort that nobody overruled."""
    aborts = (one.rule for one in reversed(run.verdicts) if one.is_stop and one.rule not in run.overridden)
    return next(aborts, "")


def _why(run: RunView) -> str:
    """The reason without what the state and the step before it say already."""
    why = re.sub(rf" at step {run.step}(?!\d)", "", run.reason or _newest_abort(run), count=1)
    code = re.fullmatch(r"failed\(exit (\d+)\)", run.state)
    if code is None:
        return why
    return re.sub(rf"^exit code {code[1]}(?!\d)(: )?", "", why)


def _early(contrast: Contrast) -> list[RunView]:
    """Runs of a contrast that ended before all their steps were done."""
    runs = {run.run: run for pair in contrast.pairs for run in (pair.arm, pair.baseline) if ended_early(run)}
    return list(runs.values())


def _so_far(contrast: Contrast) -> str:
    """What the last common step shows, without a word that would call it evidence."""
    if contrast.within_seed_spread:
        return WITHIN
    if not contrast.delta or (contrast.interval is not None and contrast.interval.includes_zero):
        return "no difference shown"
    return "lower so far" if contrast.delta < 0 else "higher so far"


def _reported_instead(study: StudyView, wanted: str) -> list[str]:
    """The names that the runs did report, the most similar first: most often one of them is what was meant."""
    names = {name for run in study.runs for name, found in run.curves.items() if found.steps}
    if not names:
        return ["The runs have reported no metric at all."] if study.runs else []

    def unlikeness(name: str) -> tuple[float, str]:
        return -SequenceMatcher(None, wanted.lower(), name.lower(), autojunk=False).ratio(), name

    nearest = [clean(name, 40) for name in sorted(names, key=unlikeness)]
    more = f" and {len(nearest) - MOST_METRICS} more" if len(nearest) > MOST_METRICS else ""
    return [f"Metrics that runs did report, the nearest name first: {', '.join(nearest[:MOST_METRICS])}{more}."]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short_list(found: Sequence[Contrast]) -> list[str]:
    """Each contrast with its number, or, when they are many, the arms by what is said of them."""
    if len(found) <= MOST_NUMBERS:
        return [label(short_reading(contrast), 70) for contrast in found]
    groups: dict[str, list[str]] = {}
    for contrast in found:
        told = "not comparable" if contrast.delta is None else reading(contrast).rpartition(": ")[2]
        told = NO_RESULT if _early(contrast) else told
        groups.setdefault(told, []).append(label(contrast.arm, 16))
    return [f"{told}: {some(arms)}" for told, arms in groups.items()]

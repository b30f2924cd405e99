"""What a reader must know before trusting a number: labels that stand in every report. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from reports.completeness import is_a_little_short, overruled, steps_read, unseen
from reports.differences import value_text
from reports.findings import some
from reports.pairing import baseline_of, sets_differ
from reports.readings import newest_meta, run_label
from reports.study import RunView, StudyView
from reports.wording import counted, listed


def labels(study: StudyView) -> list[str]:
    """Labels of the evaluation (as its own files state them), of the learning rate, of the data, of the primary."""
    found = dict.fromkeys(text for run in study.runs for text in [*_lpips(run), *_stated(run), *_overlap(run)] if text)
    by_run = [text for run in study.runs for text in [*_extended(run), *_remarks(run)]]
    return [*found, *by_run, *_nearly_done(study), *_learning_rate(study), *_sets(study), *_selection(study)]


def _lpips(run: RunView) -> list[str]:
    lpips = newest_meta(run).get("lpips")
    if not isinstance(lpips, Mapping):
        return []
    backbone, digest = str(lpips.get("backbone", "unknown")), str(lpips.get("hash", "unknown"))
    told = f"LPIPS ({lpips.get('net', 'unknown')}): backbone {backbone}, hash {digest}."
    if "random" in backbone:
        told += (
            " A random backbone is no perceptual judge: it can rank pure noise before another portrait. Its values "
            "compare with no published ones."
        )
    return [told]


def _stated(run: RunView) -> list[str]:
    stated = newest_meta(run).get("labels")
    return [_sentence(str(text)) for text in stated] if isinstance(stated, list | tuple) else []


def _overlap(run: RunView) -> list[str]:
    overlap = newest_meta(run).get("train_ids_overlap")
    if not isinstance(overlap, int) or overlap == 0:
        return []
    return [f"{run_label(run)}: {counted(overlap, 'held-out sample')} were also trained on."]


def _extended(run: RunView) -> list[str]:
    """A longer budget that was given after the launch: an annealed run that goes on is not one planned so long."""
    declared = [one for one in run.events if one.what == "extended" and one.reason.startswith("extended from ")]
    return [f"{run_label(run)} was {one.reason} (asked at step {one.step})." for one in declared]


def _remarks(run: RunView) -> list[str]:
    found = [overruled(run), f"finished, but {unseen(run)}" if unseen(run) else ""]
    return [f"{run_label(run)}: {text}." for text in found if text]


def _nearly_done(study: StudyView) -> list[str]:
    """One line for all runs that ended a step or a record before their budget: with scripts this is usual."""
    found = [f"{run_label(run)} ({steps_read(run)})" for run in study.runs if is_a_little_short(run)]
    if not found:
        return []
    return [
        f"Finished, the last step read below the budget by one interval of the records at most: {some(found)}. Steps "
        "that are counted from 0 or logged now and then look like this."
    ]


def _learning_rate(study: StudyView) -> list[str]:
    key = "trainer.optimizer.lr"
    rates = {value_text(run.config, key) for run in study.runs if key in run.config}
    if not rates:
        return []
    if len(rates) == 1:
        return [f"lr shared, not swept: {rates.pop()} for every arm, whatever its optimizer."]
    return ["lr differs between arms and was not swept within any of them."]


def _sets(study: StudyView) -> list[str]:
    apart = [
        run_label(run)
        for run in study.runs
        if (baseline := baseline_of(study, run)) is not None and sets_differ(run, baseline)
    ]
    return [f"{listed(apart)}: scored on another evaluation set than the baseline; not compared."] if apart else []


def _selection(study: StudyView) -> list[str]:
    if study.primary is None or study.primary.select == "last":
        return []
    return [
        "The study selects each run by its own best value, which flatters noisy curves; the headline and every "
        "contrast here take the last value, and the best stands beside it in the table of runs."
    ]


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")

"""Renders a study as Markdown and data files. Pure: the same view gives the same bytes on every machine.

Every value that a template prints passes through `escape` on its way, whoever wrote it; only the template's own words
are Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports import sections, tables
from reports.autopsy import autopsies, autopsy_rows
from reports.budgets import times_to_quality
from reports.conditioning import manipulations, stream_uses
from reports.contention import Busyness, busyness
from reports.contrasts import contrasts
from reports.differences import LAUNCHED, provenance_rows, shown_provenance
from reports.figure_plan import figure_plan
from reports.findings import better_is, cannot_be_said, ended_early, headline, states
from reports.happenings import happenings, liveness_remarks
from reports.labels import labels
from reports.lineage import rescues
from reports.money import machines_table, shares_table
from reports.overlap import apart, overlaps
from reports.readings import run_label
from reports.reproduction import relaunch
from reports.study import StudyView
from reports.wording import counted, escape, number

REPORT = "report.md"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def render(study: StudyView) -> dict[str, str]:
    """The report and its data files, text by path relative to the report's folder."""
    found = contrasts(study)
    busy = busyness(study)
    origin = provenance_rows(study)
    shared = overlaps(study)
    uses, moved = stream_uses(study), manipulations(study)
    data = {
        "data/points.csv": tables.points_csv(study),
        "data/scores.csv": tables.scores_csv(study),
        "data/runs.csv": tables.runs_csv(study, busy),
        "data/contrasts.csv": tables.contrasts_csv(found),
        "data/streams.csv": tables.streams_csv(uses),
        "data/provenance.csv": tables.provenance_csv(origin),
        "data/text_manipulation.csv": tables.manipulation_csv(moved),
    }
    examined = autopsy_rows(study)
    if examined:
        data["data/autopsy.csv"] = tables.autopsy_csv(examined)
    again = relaunch(study)
    context: dict[str, Any] = {
        "study": study,
        "states": states(study),
        "better": better_is(study.primary.direction) if study.primary is not None else "",
        "headline": headline(study, found),
        "limits": cannot_be_said(study, found, shared),
        "figures": {_short(planned.name): planned for planned in figure_plan(study)},
        "runs": sections.runs_table(study),
        "reference_levels": sections.reference_levels(study),
        "ended": _ended(study),
        "happened": happenings(study),
        "arms": sections.arm_differences(study),
        "contrasts": sections.contrasts_table(found),
        "budgets": sections.budgets_table(found),
        "quality": sections.quality_table(times_to_quality(study, busy)),
        "protocols": sections.protocols_table(study),
        "streams": sections.streams_table(uses),
        "manipulation": sections.manipulation_table(moved),
        "throughput": sections.throughput_table(study, busy),
        "level": _level(busy),
        "apart": "; ".join(sections.apart_text(one) for one in apart(shared)),
        "shared": sections.overlap_table(shared),
        "attempts": sections.attempts_table(study),
        "machines": machines_table(study),
        "shares": shares_table(study),
        "policy": _policy(study),
        "overruled": sections.overruled_rules(study),
        "rescues": rescues(study),
        "verdicts": sections.verdicts_table(study),
        "liveness": liveness_remarks(study),
        "autopsies": autopsies(study),
        "labels": labels(study),
        "provenance": sections.Table(tables.PROVENANCE, shown_provenance(origin)),
        "has_foreign": any(key.startswith(LAUNCHED) for key, *_ in origin),
        "launch_command": Markup(again.command),
        "launch_note": again.note,
        "command_name": _command_name(study.study),
        "data_files": ", ".join(sorted(data)),
    }
    context["left_out"] = _left_out(context)
    return {REPORT: _report(context), **data}


def _left_out(context: Mapping[str, Any]) -> list[str]:
    """Titles of the sections for which no run has anything; the template shows the others."""
    kept = {
        "Native beside common, averaged beside raw": context["protocols"].rows or not _why_not(context, "protocols"),
        "Stream use": context["streams"].rows,
        "Text manipulation": context["manipulation"].rows,
        "Samples": not _why_not(context, "samples"),
        "Throughput and memory": context["throughput"].rows,
    }
    return [title for title, has_something in kept.items() if not has_something]


def _report(context: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        finalize=_literal,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(f"{REPORT}.j2").render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _literal(value: Any) -> Markup:
    """What the template prints: macros and literal names as they are, everything else escaped for Markdown."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def _why_not(context: Mapping[str, Any], figure: str) -> str:
    return str(context["figures"][figure].why_not)


def _short(name: str) -> str:
    return name.removeprefix("figures/").removesuffix(".png")


def _ended(study: StudyView) -> list[str]:
    ended = [run for run in study.runs if ended_early(run)]
    early = [f"{run_label(run)} ({run.run}): {sections.told_state(study, run)}" for run in ended]
    return [*early, *(f"{name}: superseded by a newer generation" for name in study.superseded)]


def _level(busy: Busyness) -> str | None:
    return None if busy.level is None else counted(busy.level, "other slot")


def _policy(study: StudyView) -> str:
    return ", ".join(f"{key} {_policy_value(value)}" for key, value in sorted(study.policy.items()))


def _policy_value(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key}: {_policy_value(one)}" for key, one in sorted(value.items())) + ")"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_policy_value(one) for one in value) + "]"
    return number(value) if isinstance(value, float) else str(value)


def _command_name(study: str) -> Markup:
    """A study's name inside a code block, where nothing can be escaped: only a plain one is shown."""
    return Markup(study if _PLAIN_NAME.match(study) else "STUDY")

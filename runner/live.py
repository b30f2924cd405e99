"""The status document as a person sees it: a table that fits 80 columns, or plain lines where stdout is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from runner.records import ENDED
from runner.screen import printable

STATE_STYLES = {
    "queued": "dim",
    "running": "green",
    "starting": "cyan",
    "staging": "cyan",
    "placed": "cyan",
    "stopping": "yellow",
    "finished": "bold green",
    "aborted": "bold red",
    "failed": "bold red",
    "lost": "bold red",
    "cancelled": "yellow",
    "preempted": "yellow",
}
HEALTH_STYLES = {
    "ok": "green",
    "warned": "yellow",
    "diverged": "bold red",
    "stalled": "yellow",
    "hung": "bold red",
    "unknown": "dim",
}
BAR_CELLS = 8
NAMED_RUNS = 4
"""So many runs are named that have one reason; the others are counted."""

_ENDED = frozenset(str(state) for state in ENDED)


def render(status: Mapping[str, Any], width: int) -> RenderableType:
    """All studies of a status document, one table each, with the reasons of everything that did not simply go well."""
    parts: list[RenderableType] = []
    for study in status["studies"]:
        parts.append(_table(study, width))
        parts.extend(_remarks(study))
        if unheard := _unheard(study):
            parts.append(Text(f"  {unheard}", style="yellow", overflow="fold"))
    if warning := unattended(status):
        parts.append(Text(warning, style="bold red", overflow="fold"))
    return Group(*parts) if parts else Text("No study here yet. Start one: runner launch arms/*.yaml", style="dim")


def lines(status: Mapping[str, Any]) -> Iterator[str]:
    """One plain line a run, for logs and pipes."""
    for study in status["studies"]:
        for run in study["runs"]:
            cells = [f"{study['study']}/{run['arm']}-s{run['seed']}", run["run"], run["state"], run["health"]]
            cells.append(f"step {run['step']}/{run['steps_total'] or '?'}")
            if run["slot"]:
                cells.append(run["slot"])
            if run["primary"] and run["primary"]["value"] is not None:
                cells.append(f"{run['primary']['name']} {_number(run['primary']['value'])}")
            if _notable(run):
                cells.append(run["reason"] or (run["verdict"] or {}).get("reason", ""))
            yield printable("  ".join(cells))


def machine_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """One plain line for every machine that is held, and what it costs."""
    for study in status["studies"]:
        yield from (printable(f"{study['study']}  {_machine(one)}") for one in _held(study))


def _held(study: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in study.get("machines", ()) if one["state"] != "released"]


def _machine(one: Mapping[str, Any]) -> str:
    said = f"{one['machine'] or one['label']}: {one['stage'] or 'ordered'}, {one['gpus']} x {one['gpu_name']}"
    if one["because"]:
        said += f", is being given back ({one['because']})"
    return f"{said}, {one['usd']:.2f} USD so far at {one['usd_per_h']:.3f} USD/h, at most {one['ceiling_usd']:.2f}"


def _unheard(study: Mapping[str, Any]) -> str:
    count = study.get("notices_given_up", 0)
    were = "1 notice was" if count == 1 else f"{count} notices were"
    return f"{printable(study['study'])}: {were} given up; `runner doctor` says why" if count else ""


def unattended(status: Mapping[str, Any]) -> str:
    """What a person must know when runs are open and no controller looks after them; empty when all is well."""
    is_open = any(run["state"].split("(")[0] not in _ENDED for study in status["studies"] for run in study["runs"])
    if not is_open or (status.get("controller") or {"alive": True})["alive"]:
        return ""
    return (
        "no controller is at work here: what runs goes on, but nothing is read, judged, stopped or started; "
        "`runner resume` starts it"
    )


def print_status(console: Console, status: Mapping[str, Any]) -> None:
    """The table on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        console.print(render(status, console.width))
    else:
        unheard = [_unheard(study) for study in status["studies"]]
        for line in filter(None, (*lines(status), *machine_lines(status), *unheard, unattended(status))):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(study: Mapping[str, Any], width: int) -> Table:
    wide = width >= 110
    is_paid = any(run["usd"] for run in study["runs"])
    has_speed = any("sys/images_per_s" in run["latest"] for run in study["runs"])
    has_best = wide or not (is_paid and has_speed)  # what it costs, and when it ends, come first
    primary = next((run["primary"]["name"] for run in study["runs"] if run["primary"]), None)
    table = Table(title=_title(study, primary), title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True, overflow="ellipsis", max_width=24 if wide else 14)
    seed_cells = max((len(str(run["seed"])) for run in study["runs"]), default=1)
    table.add_column("s", justify="right", no_wrap=True, min_width=seed_cells)
    table.add_column("slot", no_wrap=True, max_width=14)
    table.add_column("state", no_wrap=True, max_width=20 if wide else 11 if has_speed else 18)
    if wide:
        table.add_column("health", no_wrap=True)
    table.add_column("step", no_wrap=True)
    if has_speed:
        table.add_column("img/s", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("primary" if primary else "", justify="right", no_wrap=True)
    if has_best:
        table.add_column("best@step" if primary else "", justify="right", no_wrap=True)
    if is_paid:
        table.add_column("USD", justify="right", no_wrap=True)
    for run in study["runs"]:
        paid = [Text(f"{run['usd']:.2f}")] if is_paid else []
        table.add_row(*_cells(run, wide, has_speed, has_best), *paid)
    return table


def _title(study: Mapping[str, Any], primary: str | None) -> Text:
    title = Text(printable(study["study"]), style="bold")
    if primary:
        title.append(f"  primary {printable(primary)}", style="dim")
    if study["superseded"]:
        title.append(f"  ({len(study['superseded'])} superseded)", style="dim")
    return title


def _cells(run: Mapping[str, Any], wide: bool, has_speed: bool, has_best: bool) -> Sequence[Text]:
    state, health = str(run["state"]), str(run["health"])
    style = STATE_STYLES.get(state.split("(")[0], "")
    health_text = Text(health, style=HEALTH_STYLES.get(health, ""))
    primary = run["primary"] or {}
    best = "" if primary.get("best") is None else f"{_number(primary['best'])}@{primary['best_step']}"
    state_text = Text(printable(state), style=style)
    if not wide and health in ("warned", "diverged", "stalled", "hung"):
        state_text = Text("! ", style=HEALTH_STYLES.get(health, "")) + state_text
    cells = [Text(printable(run["arm"])), Text(str(run["seed"])), Text(printable(run["slot"] or "-")), state_text]
    if wide:
        cells.append(health_text)
    latest = run["latest"]
    cells.append(_progress(run["step"], run["steps_total"], BAR_CELLS if wide or has_best else 0))
    if has_speed:
        cells.append(Text(_number(latest.get("sys/images_per_s"))))
    return [
        *cells,
        Text(_duration(run["eta_s"])),
        Text(_number(latest.get("train/loss", latest.get("loss")))),
        Text(_number(primary.get("value"))),
        *([Text(best)] if has_best else []),
    ]


def _remarks(study: Mapping[str, Any]) -> Iterator[Text]:
    for one in _held(study):
        yield Text(f"  {printable(_machine(one))}", style="dim", overflow="fold")
    told: dict[str, list[str]] = {}
    for run in study["runs"]:
        verdict = run["verdict"] or {}
        notes = _why(run)
        if (
            verdict.get("reason")
            and verdict["reason"] != run["reason"]
            and verdict.get("action") not in ("none", "shadow")
        ):
            notes.append(f"{verdict['action']}: {verdict['reason']}")
        notes.extend(run["warnings"])
        notes.extend(run.get("extended", ()))
        for note in dict.fromkeys(notes):
            if not any(note != other and note in other for other in notes):  # a reason repeats what led to it
                told.setdefault(note, []).append(f"{run['arm']}-s{run['seed']}")
    for note, names in told.items():
        yield Text(f"  {printable(_listed(names))}: {printable(note)}", style="yellow", overflow="fold")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_RUNS} more" if len(names) > NAMED_RUNS else ""
    return ", ".join(names[:NAMED_RUNS]) + more


def _why(run: Mapping[str, Any]) -> list[str]:
    """The reason of a state that a person will ask about, behind its whole name where that has a rule in it."""
    state, reason = str(run["state"]), run["reason"]
    if not (_notable(run) and reason):
        return []
    return [f"{state}: {reason}" if "(" in state else reason]


def _notable(run: Mapping[str, Any]) -> bool:
    if run["state"] == "queued":
        return str(run["reason"]).startswith("waits: ")
    if run["state"] == "finished":
        return bool(run["step"] < (run["steps_total"] or 1))  # it ended well before its budget, or said nothing
    return str(run["state"]).split("(")[0] in ("aborted", "failed", "lost", "cancelled", "preempted", "stopping")


def _progress(step: int, total: int | None, cells: int) -> Text:
    if not total or not cells:
        return Text(f"{step}/{total}" if total else str(step))
    filled = round(cells * min(1.0, step / total))
    bar = Text("━" * filled, style="green") + Text("┄" * (cells - filled), style="bright_black")
    return bar + Text(f" {step}/{total}")


def _number(value: Any) -> str:
    """At most seven characters before a minus sign, so that one wild value squeezes no other column; words (nan, inf)
    stay words."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    size = abs(value)
    if 1e4 <= size < 1e6:
        return f"{value:.0f}"
    if size and not 1e-3 <= size < 1e4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}" if size < 1 else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}"

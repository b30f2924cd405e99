"""`runner check`, and the plan as a document and as a page: runs, waves, slots, disk, time, fairness."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reports.wording import counted
from runner.code_files import LeftOut
from runner.errors import EXIT_OK, EXIT_RUN_FAILED, EXIT_USAGE, UnmetHosts, UsageError
from runner.home import Home, find_home
from runner.launching import Options, Prepared, prepare, why_silent
from runner.screen import printable
from runner.spec import document
from runner.spec.lint import blocking
from runner.spec.models import ResolvedArm
from runner.spec.yaml12 import dump

_ASSUMED_SHARE = 0.4
_ASSUMED_FLOPS_PER_S = _ASSUMED_SHARE * 989e12  # dense bf16 of an H100 SXM by its data sheet
BRIEF_RUNS = 20
"""A launch of more than twice as many names only so many."""
SHOWN = 4
"""Of the paths that are left out for one reason so many are named."""


def check(
    paths: Sequence[Path], options: Options, home_path: Path | None, *, resolve: bool, strict: bool, as_json: bool
) -> int:
    """Print the plan (or the resolved configurations) and return 2 on fairness errors, 1 on warnings with `strict`."""
    prepared = planned(find_home(home_path), paths, options)
    if resolve:
        _print_resolved(prepared, as_json)
    elif as_json:
        print(json.dumps(plan_document(prepared)))
    else:
        print_plan(prepared)
    remarks = [remark for found in prepared.remarks.values() for remark in found]
    if blocking(remarks):
        return EXIT_USAGE
    warned = any(remark.severity == "W" and not remark.allowed for remark in remarks)
    warned = warned or bool(prepared.budget_notes or prepared.notice_notes)
    return EXIT_RUN_FAILED if strict and warned else EXIT_OK


def planned(home: Home, paths: Sequence[Path], options: Options) -> Prepared:
    """As `prepare`, for a command that writes nothing. Raises UsageError for hosts that nobody has said yes to: to keep
    their keys would be to write."""
    try:
        return prepare(home, paths, options)
    except UnmetHosts as unmet:
        shown = "; ".join(f"{place} shows {fingerprint}" for place, fingerprint in unmet.hosts)
        raise UsageError(
            f"not known yet: {shown}. A plan stores no key, with --accept-new neither: let ssh ask once and keep it in "
            "~/.ssh/known_hosts (`ssh -p PORT USER@ADDRESS true`, and compare with the host's own: ssh-keygen -lf "
            "/etc/ssh/ssh_host_*_key.pub), or launch without --dry-run, which asks, or trusts it with --accept-new "
            "(nothing was started)"
        ) from None


def plan_document(prepared: Prepared) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
        "home": str(prepared.home.root),
        "runs": [
            {
                "run": run.id,
                "study": run.study,
                "arm": run.arm,
                "seed": run.seed,
                "generation": run.generation,
                "intent": str(run.intent),
                "says": run.sentence,
                "steps": run.steps,
                "wave": run.wave,
                "run_dir": run.folder,
            }
            for run in prepared.plan.runs
        ],
        "waves": [list(wave) for wave in prepared.plan.waves],
        "slots": sorted({str(slot) for slots in prepared.slots.values() for slot in slots}),
        "left_out": sorted({str(one) for found in prepared.left_out.values() for one in found}),
        "silent": {host: why_silent(host, why, prepared.hosts) for host, why in prepared.silent.items()},
        "rent": _rent_document(prepared),
        "disk_mib": prepared.plan.disk_mib,
        "hours": prepared.plan.hours,
        "budget": list(prepared.budget_notes),
        "notify": list(prepared.notice_notes),
        "lint": [
            {"study": study, "rule": one.rule, "severity": one.severity, "message": one.message, "allowed": one.allowed}
            for study, remarks in prepared.remarks.items()
            for one in remarks
        ],
        "arms": [
            {
                "arm": arm.name,
                "parameters": arm.check.parameters if arm.check else None,
                "memory_mib": arm.check.memory_mib if arm.check else None,
                "flops_per_sample": arm.check.flops_per_sample if arm.check else None,
                "notes": list(arm.check.notes) if arm.check else [],
                "code": {
                    "hash": prepared.snapshots[arm.name].hash,
                    "files": len(prepared.snapshots[arm.name].files),
                    "size_bytes": prepared.snapshots[arm.name].size_bytes,
                    "left_out": [[one.path, one.reason] for one in prepared.snapshots[arm.name].left_out],
                },
            }
            for arm in prepared.arms
        ],
    }


def print_plan(prepared: Prepared, *, brief: bool = False) -> None:
    """The plan for a person, on stdout."""
    for line in _plan_lines(prepared, brief):
        print(printable(line))


def sizes(arm: ResolvedArm) -> Iterator[str]:
    """What the trainer says about the size of a run, and what that comes to on a GPU that everybody knows."""
    known = arm.check
    if known is None:
        return
    if known.parameters is not None:
        yield f"{known.parameters:,} parameters"
    if known.memory_mib is not None:
        yield f"about {known.memory_mib:.0f} MiB"
    if known.flops_per_sample is not None:
        yield f"{known.flops_per_sample / 1e12:.3g} TFLOP per sample"
        if arm.resources.gpus and known.samples_per_step is not None:
            hours = known.flops_per_sample * known.samples_per_step * arm.steps / _ASSUMED_FLOPS_PER_S / 3600
            speed = f"{_ASSUMED_SHARE:.0%} of an H100's bf16"
            yield f"{hours:.2g} h of training if it ran at {speed} (assumed, not measured)"


def _plan_lines(prepared: Prepared, brief: bool) -> Iterator[str]:
    runs = prepared.plan.runs
    shown = runs[:BRIEF_RUNS] if brief and len(runs) > 2 * BRIEF_RUNS else runs
    for run in shown:
        wave = "" if run.wave is None or brief else f"   wave {run.wave + 1}"
        yield f"{run.name}  {run.id}  {run.sentence}{wave}"
    if len(shown) < len(runs):
        yield f"… and {len(runs) - len(shown)} more runs; `runner check` lists them all"
    for study, remarks in prepared.remarks.items():
        for remark in remarks:
            note = f" (allowed: {remark.allowed})" if remark.allowed else ""
            yield f"{study}  {remark.rule} {_severity(remark.severity)}: {remark.message}{note}"
    for note in (*prepared.budget_notes, *prepared.notice_notes):
        yield f"warning: {note}"
    for host, why in prepared.silent.items():
        yield f"warning: {host} is left out: {why_silent(host, why, prepared.hosts)}"
    yield from _rent_lines(prepared)
    if brief:
        return
    yield ""
    yield from _needs(prepared)


def _rent_lines(prepared: Prepared) -> Iterator[str]:
    if prepared.hire is not None:
        from runner.hiring import sentence

        for machine in prepared.hire.machines:
            yield f"rent   {sentence(machine)}"
        if prepared.hire.machines and prepared.hire.left_usd is not None:
            yield f"       left in the account: {prepared.hire.left_usd:.2f} USD"


def _rent_document(prepared: Prepared) -> dict[str, Any] | None:
    if prepared.hire is None:
        return None
    from runner.hiring import document as hire_document

    return hire_document(prepared.hire)


def _severity(letter: str) -> str:
    return {"E": "error", "W": "warning", "N": "note"}[letter]


def _needs(prepared: Prepared) -> Iterator[str]:
    if prepared.hire is None:  # else the slots are those of what is rented, and there are none before
        yield from _slots(prepared)
    plan = prepared.plan
    names = {run.folder: f"{run.arm}-s{run.seed}" for run in plan.runs}
    waves = "; ".join(", ".join(names[folder] for folder in wave) for wave in plan.waves)
    yield f"waves  {len(plan.waves)}: {waves or 'nothing to start'}"
    unknown = f", without those of {', '.join(plan.disk_unknown)}" if plan.disk_unknown else ""
    yield f"disk   about {plan.disk_mib:.0f} MiB of checkpoints{unknown}"
    time = "unknown until an arm has run here once" if plan.hours is None else f"about {plan.hours * 60:.0f} min"
    yield f"time   {time}"
    told: set[str] = set()
    for arm in prepared.arms:
        snapshot = prepared.snapshots[arm.name]
        code = f"code {snapshot.hash[:12]} ({counted(len(snapshot.files), 'file')})"
        yield f"{arm.name}  {', '.join((*sizes(arm), code))}"
        for note in arm.check.notes if arm.check else ():
            yield f"  {note}"
        for note in snapshot.notes:
            yield f"  {note}"
        if snapshot.hash not in told:
            yield from _left_out(snapshot.left_out)
        told.add(snapshot.hash)


def _slots(prepared: Prepared) -> Iterator[str]:
    slots = sorted({str(slot) for found in prepared.slots.values() for slot in found})
    shared = any(slot.shares_cores for found in prepared.slots.values() for slot in found)
    yield f"slots  {', '.join(slots) or 'none'}" + (" (cores are shared: timings are not comparable)" if shared else "")
    for one in dict.fromkeys(one for found in prepared.left_out.values() for one in found):
        yield f"  left out: {one}"


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """What is not part of the frozen code, by reason; arms share their code, so it is said once for all of them."""
    reasons = dict.fromkeys(left.reason for left in left_out)
    for reason in reasons:
        paths = [left.path for left in left_out if left.reason == reason]
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        yield f"  left out: {', '.join(paths[:SHOWN])}{more} ({reason})"


def _print_resolved(prepared: Prepared, as_json: bool) -> None:
    """One configuration for each arm (its first seed), exactly as a run folder would hold it."""
    runs = {(run.study, run.arm, run.seed): run.id for run in prepared.plan.runs}
    documents = [document(arm, arm.seeds[0], runs[arm.study, arm.arm, arm.seeds[0]]) for arm in prepared.arms]
    if as_json:
        print(json.dumps(documents if len(documents) > 1 else documents[0]))
    else:
        print("---\n".join(dump(one) for one in documents), end="")

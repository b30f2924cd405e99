"""On which machine, and with what, a run trained: as its process said, else as its slot and its lease tell. Pure.

What a process says comes from wherever it ran, so it may be anything: what has another shape than ours is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reports.study import AttemptView, RunView
from reports.wording import clean

LOCAL = "local"
MOST = 16  # names of a list that are told
_SAID = (("device", "device"), ("cuda", "CUDA"), ("cpu", "cpu"), ("cores", "cores"))


def trained_elsewhere(run: RunView) -> bool:
    """Whether a run has trained, or is to train, on another machine than the one that launched it."""
    trained = _trained(run)
    return any(one.provider != LOCAL for one in trained) if trained else run.launch.provider != LOCAL


def trained_on(run: RunView) -> dict[str, str]:
    """What is known of where a run trained, by name; attempts that differ are told one by one."""
    attempts = _trained(run)
    told = {one.number: _told(run, one) for one in attempts}
    found: dict[str, str] = {}
    for key in dict.fromkeys(key for one in told.values() for key in one):
        values = {number: one[key] for number, one in told.items() if key in one}
        if len(set(values.values())) == 1:
            found[key] = next(iter(values.values()))
        else:
            found[key] = "; ".join(f"attempt {number}: {value}" for number, value in values.items())
    return found


def hardware(run: RunView) -> str:
    """The machine that a run trained on, in one canonical line; empty when unknown. Two hosts of which nothing but the
    name is known are two machines."""
    if not trained_elsewhere(run):
        found = run.provenance.get("hardware")
        return json.dumps(found, sort_keys=True, default=str) if found else ""
    kinds = {json.dumps(_kind(one), sort_keys=True, default=str) for one in _trained(run)}
    return "; ".join(sorted(kinds))


def _trained(run: RunView) -> list[AttemptView]:
    return [one for one in run.attempts if one.kind == "train" and one.started is not None]


def _kind(attempt: AttemptView) -> Mapping[str, Any]:
    said = {key: attempt.said.get(key) for key in ("cpu", "cores", "gpus")}
    return said if said["cpu"] else {"host": attempt.host, "provider": attempt.provider, **attempt.place}


def _told(run: RunView, attempt: AttemptView) -> dict[str, str]:
    said, is_local = attempt.said, attempt.provider == LOCAL
    found = {} if is_local else {"machine": _machine(attempt)}
    gpus = _names(said.get("gpus"))
    if gpus:
        found["GPUs"] = gpus
    elif not is_local:
        found["GPUs"] = _slot_gpus(attempt)
    for key, name in _SAID:
        value = said.get(key)
        is_told_of_launch = is_local and key in ("cpu", "cores")  # its hardware stands in the provenance of the launch
        if isinstance(value, str | int) and value != "" and not is_told_of_launch:
            found[name] = clean(str(value))
    python = _python(run, attempt)
    if python:
        found["python"] = python
    packages = said.get("packages")
    versions = dict(packages) if isinstance(packages, Mapping) else {}
    if "torch" not in versions and isinstance(said.get("torch"), str):
        versions["torch"] = said["torch"]  # of a trainer that named nothing else
    if versions:
        named = [f"{name} {version}" for name, version in sorted(versions.items()) if isinstance(version, str)]
        found["packages"] = clean(", ".join(named[:MOST]))
    elif not is_local:
        found["packages"] = "not told by its process"
    return found


def _machine(attempt: AttemptView) -> str:
    place = attempt.place
    rented = ""
    if isinstance(place.get("gpu_name"), str):
        rented = f", rented as {place.get('gpus_rented', '?')} x {place['gpu_name']}"
    return clean(f"{attempt.host} ({attempt.provider}{rented})")


def _slot_gpus(attempt: AttemptView) -> str:
    """What the slot has, by the name that was rented where the process did not say one."""
    place = attempt.place
    count = place.get("gpus")
    if not count:
        return "none in its slot"
    memory = f" with {place['vram_mib']} MiB" if place.get("vram_mib") else ""
    name = f" {place['gpu_name']}" if isinstance(place.get("gpu_name"), str) else ""
    return clean(f"{count} x{name or ' GPU'}{memory} in its slot; not named by its process")


def _python(run: RunView, attempt: AttemptView) -> str:
    said = attempt.said
    if isinstance(said.get("python"), str):
        where = said.get("executable")
        return clean(said["python"] + (f" ({where})" if isinstance(where, str) else ""))
    if attempt.provider == LOCAL:
        return ""
    wanted = run.config.get("environment.python") or (
        None if run.config.get("environment.setup") else attempt.place.get("python")
    )
    return clean(f"{wanted}, version not told") if isinstance(wanted, str) else "not told by its process"


def _names(value: Any) -> str:
    """`4 x NVIDIA GeForce RTX 4090` from a list of names; empty for anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        return ""
    counts = {name: value.count(name) for name in value}
    return clean(", ".join(f"{count} x {name}" for name, count in list(counts.items())[:MOST]))

"""From arm files to a request: everything is checked before anything is written, then code is frozen and one row asked.

The launch command is a client of the controller: it reads the database, freezes code and inserts one request.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from provisioning import PROVIDERS, RENTED, Setting
from provisioning.base import Handle, NoCapacity, Provider, ProvisioningError, Request, Slot
from provisioning.gpus import MASK, NvmlDriver, usable_gpus
from provisioning.ssh_host import ListsHosts, SshHost, UnknownHostKey
from reports.study import LintView
from runner.accept import capacity_of, known_runs, rented_capacity
from runner.budgets import budget_notes
from runner.detach import SUPERVISOR, start_controller
from runner.errors import HomeError, InfrastructureError, NotInThisVersion, UnmetHosts, UsageError, Where
from runner.home import RESERVE_MIB, Home, create_home
from runner.lock import HomeLock, is_held
from runner.places import left_out, live_slots, refuse_occupied
from runner.plan import Capacity, KnownRun, Plan, make_plan
from runner.provenance import Provenance
from runner.quarantine import Withheld
from runner.renting_options import refuse_ignored
from runner.schedule import Shape, shape_of
from runner.snapshot import Seen, Snapshot, preview, take
from runner.spec import ResolvedArm, StoredStudy, from_json, to_json
from runner.spec.hosts import read_hosts
from runner.spec.lint import blocking, lint, parse_allow
from runner.spec.notices import notice_problems
from runner.spec.study_limit import read_arms
from runner.store import requests, tables
from runner.store.database import check_revision, create_or_upgrade, reading
from runner.store.history import seconds_per_step
from runner.store.hosts import host_document

if TYPE_CHECKING:
    from runner.hiring import Hire

ANSWER_WITHIN_S = 30.0
START_AGAIN_S = 3.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the arm files. `wanted` is what is asked of a rented machine, `allow_upload`
    names files that may go there although they look like secrets. `hosts` is the file that lists machines reached over
    ssh; `accepts` says whether the key of one that is met for the first time is right (place, fingerprint). `max_usd`
    is what a study may cost in all; None leaves that to the arms, or to what is stored."""

    sets: tuple[str, ...] = ()
    seeds: str | None = None
    arms: str | None = None
    slots: int | None = None
    provider: str = "local"
    fresh: bool = False
    amend: bool = False
    allow: tuple[str, ...] = ()
    priority: int = 0
    share_gpus: bool = False
    hosts: str | None = None
    accepts: Callable[[str, str], bool] = lambda _place, _fingerprint: False
    wanted: Mapping[str, Any] = field(default_factory=dict)
    allow_upload: tuple[str, ...] = ()
    max_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A launch that is ready to be asked for; nothing was written so far."""

    home: Home
    arms: tuple[ResolvedArm, ...]
    snapshots: Mapping[str, Snapshot]
    plan: Plan
    slots: Mapping[Shape, tuple[Slot, ...]]
    remarks: Mapping[str, tuple[LintView, ...]]
    options: Options
    budget_notes: tuple[str, ...] = ()
    left_out: Mapping[Shape, tuple[Withheld, ...]] = field(default_factory=dict)
    notice_notes: tuple[str, ...] = ()
    hosts: tuple[SshHost, ...] = ()
    silent: Mapping[str, Exception] = field(default_factory=dict)
    hire: Hire | None = None


@dataclass(frozen=True, slots=True)
class _Past:
    """What the home knows already."""

    studies: tuple[StoredStudy, ...] = ()
    runs: tuple[KnownRun, ...] = ()
    arms: tuple[ResolvedArm, ...] = ()
    seconds_per_step: Mapping[str, float] | None = None
    home_id: str = ""
    live: tuple[Slot, ...] = ()


def prepare(home: Home, paths: Sequence[str | Path], options: Options) -> Prepared:
    """Read, check and plan. Raises SpecError, UsageError (exit 2) or InfrastructureError (exit 3); writes nothing."""
    if options.provider not in PROVIDERS:
        raise NotInThisVersion(
            Where("--provider"), f"{options.provider!r} is not in this version", allowed=list(PROVIDERS)
        )
    if options.slots is not None and options.slots < 1:
        raise UsageError(f"--slots {options.slots}: at least one slot is needed")
    refuse_ignored(options.provider, RENTED, options.hosts, options.wanted, options.allow_upload)
    hosts = () if options.hosts is None else read_hosts(options.hosts)
    allow = parse_allow(options.allow)
    past = _read_past(home)
    arms = read_arms(
        paths, options.sets, options.seeds, options.arms, stored=past.studies, amend=options.amend,
        max_usd=options.max_usd,
    )  # fmt: skip
    seen = Seen()
    snapshots = {arm.name: preview(arm, home, seen) for arm in arms}
    seen_there = _look(home, arms, hosts, options, past)
    plan = make_plan(
        arms,
        {name: snapshot.hash for name, snapshot in snapshots.items()},
        past.runs,
        capacity=seen_there.capacity,
        fresh=options.fresh,
        seconds_per_step=past.seconds_per_step,
    )
    studies = dict.fromkeys(arm.study for arm in arms)
    remarks = {study: lint(_members(study, arms, past.arms), allow) for study in studies}
    notes = budget_notes(arms, plan, past.seconds_per_step or {})
    told = _notice_notes(arms, home)
    hire = None
    if options.provider in RENTED:
        from runner.hiring import estimate  # what talks to a provider is loaded only for one

        hire = estimate(arms, plan, options.slots, options.wanted, os.environ)
        notes = (*notes, *hire.notes)
    return Prepared(
        home, arms, snapshots, plan, seen_there.slots, remarks, options, notes, seen_there.left_out, told, hosts,
        seen_there.silent, hire,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _There:
    """What a look at the hosts of a provider found; nothing where each must be rented first."""

    capacity: Capacity
    slots: Mapping[Shape, tuple[Slot, ...]] = field(default_factory=dict)
    left_out: Mapping[Shape, tuple[Withheld, ...]] = field(default_factory=dict)
    silent: Mapping[str, Exception] = field(default_factory=dict)


def _look(home: Home, arms: Sequence[ResolvedArm], hosts: Sequence[SshHost], options: Options, past: _Past) -> _There:
    if options.provider in RENTED:
        return _There(rented_capacity(arms, options.slots, options.provider))
    setting = Setting(str(SUPERVISOR), os.environ, home.root, hosts, None, options.accepts)
    provider = PROVIDERS[options.provider](setting)
    try:
        slots, silent = _slots(provider, arms, options)
        kept = _left_out(provider, slots, options, past)
    finally:
        provider.close()
    refuse_silence(slots, silent, hosts)
    return _There(capacity_of(slots, options.provider), slots, kept, silent)


def _notice_notes(arms: Sequence[ResolvedArm], home: Home) -> tuple[str, ...]:
    """Why some `notify` could tell nobody; arms with the same one say it once."""

    def is_program(path: str) -> bool:
        return shutil.which(path) is not None

    found = (notice_problems(arm.notify, str(home.root), os.environ, is_program) for arm in arms)
    return tuple(dict.fromkeys(problem for problems in found for problem in problems))


def refuse_unfair(prepared: Prepared) -> None:
    """Raises UsageError when the fairness lint found an error that nobody allowed."""
    for remarks in prepared.remarks.values():
        for remark in blocking(remarks):
            raise UsageError(
                f"{remark.rule}: {remark.message}; "
                f"to launch all the same: --allow {remark.rule}='reason' (the report prints the reason)"
            )


def commit(prepared: Prepared) -> int:
    """Freeze the code, ask for the launch, and return the request's number.

    Raises HomeError when the home cannot take it; then nothing was started.
    """
    home = prepared.home
    if prepared.plan.to_run:
        refuse_occupied(prepared.slots, prepared.left_out)
    create_home(home)
    _require_disk(prepared)
    ready_database(home)
    gpus = [gpu.name for gpu in usable_gpus(NvmlDriver(), os.environ.get(MASK)).gpus]
    provenance = Provenance(os.environ, gpus)
    entries, seen, frozen = [], Seen(), {}
    for arm in prepared.arms:
        snapshot = frozen[arm.name] = take(arm, home, seen)
        entries.append(
            {
                "document": to_json(arm),
                "snapshot": {"hash": snapshot.hash, "root": snapshot.root, "arm_dir": snapshot.arm_dir},
                "provenance": provenance(arm, snapshot),
            }
        )
    if prepared.hire is not None and prepared.hire.machines:
        from runner.hiring import refuse_secrets

        refuse_secrets({home.root / one.root: one.files for one in frozen.values()}, prepared.options.allow_upload)
    payload = {
        "arms": entries,
        "slots": prepared.options.slots,
        "provider": prepared.options.provider,
        "fresh": prepared.options.fresh,
        "priority": prepared.options.priority,
        "share_gpus": prepared.options.share_gpus,
        "hosts": [host_document(host) for host in prepared.hosts],
        "machines": {} if prepared.hire is None else {one.study: one.request() for one in prepared.hire.machines},
        "answering": sorted({host.name for host in prepared.hosts} - prepared.silent.keys()),
        "lint": {study: [asdict(remark) for remark in found] for study, found in prepared.remarks.items()},
    }
    return requests.ask(home, "launch", payload)


def ready_database(home: Home) -> None:
    """Make sure the database exists and is of this version. A live controller has seen to that already."""
    lock = HomeLock(home.lock)
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while check_revision(home.database) is None or not is_held(home.lock):
        if lock.acquire():
            try:
                create_or_upgrade(home, lock)
            finally:
                lock.release()
            return
        if time.monotonic() > deadline:
            raise HomeError(f"{home.lock}: held for {ANSWER_WITHIN_S:.0f} s without a database; see {home.log}")
        time.sleep(POLL_S)


def ensure_controller(home: Home) -> None:
    """Start the home's controller unless one is alive."""
    if not is_held(home.lock):
        start_controller(home)


def wait_for_answer(home: Home, request: int, sleep: Callable[[float], None] = time.sleep) -> requests.Answer:
    """The controller's answer, starting a controller when none is alive. Raises InfrastructureError when none comes."""
    ensure_controller(home)
    started = last_start = time.monotonic()
    while True:
        with reading(home) as connection:
            answer = requests.read_answer(connection, request)
        if answer is not None:
            return answer
        now = time.monotonic()
        if now - started > ANSWER_WITHIN_S:
            raise InfrastructureError(
                f"{home.root}: the controller did not answer within {ANSWER_WITHIN_S:.0f} s; the request is kept and "
                f"`runner resume` tries again; its log: {home.log}"
            )
        if now - last_start > START_AGAIN_S and not is_held(home.lock):
            start_controller(home)
            last_start = now
        sleep(POLL_S)


def _read_past(home: Home) -> _Past:
    if not home.root.is_dir() or check_revision(home.database) is None:
        return _Past()
    with reading(home) as connection:
        home_id = connection.execute(select(tables.home.c.home_id)).scalar_one_or_none()
        return _Past(
            _stored_studies(connection),
            known_runs(connection),
            _stored_arms(connection),
            seconds_per_step(connection),
            home_id or "",
            live_slots(connection),
        )


def _stored_arms(connection: Connection) -> tuple[ResolvedArm, ...]:
    """The newest form of every arm that was launched here, with all seeds it has run with. What a rescue made of one is
    in no file, and nobody compares it before it is there."""
    runs = tables.runs
    launched = runs.c.superseded_by.is_(None) & runs.c.parent.is_(None)
    rows = connection.execute(select(runs).where(launched).order_by(runs.c.launch)).all()
    seeds: dict[tuple[str, str], set[int]] = {}
    newest: dict[tuple[str, str], ResolvedArm] = {}
    for row in rows:
        seeds.setdefault((row.study, row.arm), set()).add(row.seed)
        newest[row.study, row.arm] = from_json(row.arm_document)
    return tuple(replace(arm, seeds=tuple(sorted(seeds[key]))) for key, arm in newest.items())


def _members(study: str, arms: Sequence[ResolvedArm], stored: Sequence[ResolvedArm]) -> list[ResolvedArm]:
    """The arms of a study as they will stand after this launch: those named now, and the others that ran before."""
    before = {arm.arm: arm for arm in stored if arm.study == study}
    members = {arm.arm: arm for arm in arms if arm.study == study}
    for name, arm in members.items():
        if name in before:
            members[name] = replace(arm, seeds=tuple(sorted({*arm.seeds, *before[name].seeds})))
    return [*members.values(), *(arm for name, arm in before.items() if name not in members)]


def _stored_studies(connection: Connection) -> tuple[StoredStudy, ...]:
    arms: dict[str, set[str]] = {}
    for study, arm in connection.execute(select(tables.runs.c.study, tables.runs.c.arm)):
        arms.setdefault(study, set()).add(arm)
    return tuple(
        StoredStudy(row.study, row.document, row.source, tuple(sorted(arms.get(row.study, ()))))
        for row in connection.execute(select(tables.studies))
    )


def _slots(
    provider: Provider, arms: Sequence[ResolvedArm], options: Options
) -> tuple[dict[Shape, tuple[Slot, ...]], dict[str, Exception]]:
    """The hosts cut for each shape that the arms ask for, and why some of them do not answer; looking takes nothing."""
    provider.offers(Request(options.slots, 0, 1))  # all are asked at once, so that none is waited for alone
    silent: dict[str, Exception] = dict(provider.silent) if isinstance(provider, ListsHosts) else {}
    found: dict[Shape, tuple[Slot, ...]] = {}
    for arm in arms:
        needs = arm.resources
        request = Request(options.slots, needs.gpus, needs.cpus, needs.min_vram_gib)
        cut: list[Slot] = []
        for host in provider.hosts():
            try:
                cut += provider.slots(Handle(provider.name, "armature//plan", host.offer_id), request)
            except NoCapacity:
                continue
            except ProvisioningError as error:
                silent.setdefault(host.offer_id, error)
        found[shape_of(needs, options.provider)] = tuple(cut)
    return found, silent


def refuse_silence(
    slots: Mapping[Shape, Sequence[Slot]], silent: Mapping[str, Exception], hosts: Sequence[SshHost] = ()
) -> None:
    """Raises UnmetHosts when there are hosts that nobody has said yes to, InfrastructureError when none of `hosts` can
    be used."""
    unmet = [error for error in silent.values() if isinstance(error, UnknownHostKey)]
    if unmet:
        raise UnmetHosts([(error.place, error.fingerprint) for error in unmet])
    if silent and not any(slots.values()):
        said = "; ".join(f"{host}: {why_silent(host, error, hosts)}" for host, error in silent.items())
        answered = any(_has_spoken(error) for error in silent.values())
        what = "no host can be used" if answered else "no host answers"
        raise InfrastructureError(f"{what}: {said} (nothing was started)")


def why_silent(name: str, error: Exception, hosts: Sequence[SshHost]) -> str:
    """Why nothing can be placed on a host, without its name, and what in the list of hosts it may be."""
    python = next((host.python for host in hosts if host.name == name), None)
    said = str(error).removeprefix(f"{name}: ")
    if python is None or not _has_spoken(error) or python.removeprefix("~/") not in said:
        return said
    return f"{said}; `python:` of {name} in the list of hosts says what runs our agent there"


def _has_spoken(error: Exception) -> bool:
    """Whether the host answered and our agent did not: then its shell, or its Python, says why."""
    return "; it said: " in str(error)


def _left_out(
    provider: Provider, cut: Mapping[Shape, Sequence[Slot]], options: Options, past: _Past
) -> dict[Shape, tuple[Withheld, ...]]:
    """Who keeps runs off GPUs now; the runs of this home do not count."""
    label = f"armature/{past.home_id}/plan"
    return left_out(provider, label, cut, past.live, share_gpus=options.share_gpus)


def _require_disk(prepared: Prepared) -> None:
    wanted_mib = prepared.plan.disk_mib + RESERVE_MIB
    free_mib = shutil.disk_usage(prepared.home.root).free / 2**20
    if wanted_mib > free_mib:
        raise HomeError(
            f"{prepared.home.root}: this launch needs about {wanted_mib:.0f} MiB of disk and only "
            f"{free_mib:.0f} MiB are free; lower checkpoint.keep, launch fewer runs, or choose another --home "
            "(nothing was started)"
        )

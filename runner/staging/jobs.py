"""The jobs that make a host ready for a run, each an attempt of a supervisor like any other, and what became of one.

A job is known by what it makes: runs that need the same on one host mean the same job, and asking for it twice starts
it once. That it is done is its exit record with code 0, nothing else. `begin`, `state` and `newest` ask a shell; the
rest is pure.
"""

from __future__ import annotations

import hashlib
import os.path
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from provisioning import fetch
from provisioning.base import Shell, Spawned
from runner.launch_spec import HEARTBEAT_S, TERM_S, attempt_dir, attempt_name, reap_spec
from runner.observe import look
from runner.run_facts import Phase
from runner.spec.models import ResolvedArm
from runner.staging import data
from runner.staging.environment import folder_of, python_of

SETUP_DEADLINE_S = 3600.0
DATA_DEADLINE_S = 12 * 3600.0
GRACE_S = 5.0
"""A job that is told to stop has nothing to save."""

PREFLIGHT = "preflight"
MOST_TRIES = 3
LAST_LINES = 20

# The folder begins empty, whatever an earlier try left in it. -e ends at the first command that fails.
_SETUP = """\
rm -rf -- "$RUNNER_ENVIRONMENT" && mkdir -p -- "$RUNNER_ENVIRONMENT" || exit 73
/bin/sh -e -c "$1" setup || exit $?
"$2" -c '' || { echo "the set-up command ended well, and its interpreter $2 cannot be started" >&2; exit 69; }
"""

_WITH_PROGRAMS = 'PATH="${1:+$1:}$PATH"; export PATH; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class Site:
    """Where the jobs of one home work on one host. Paths are absolute.

    `folder` is the staging folder there, `seen` the same folder as the host's shell reads and writes it (another one
    where reading is reading a copy). `arm_dir` is the arm's folder in the frozen code there. `python` runs programs of
    ours there, any from 3.10 on. `environment` is what every process of the arm there gets beside what holds there
    (`env` of the arm filled in): it may hold secrets, so this value is never stored or printed.
    """

    home_id: str
    folder: Path
    seen: Path
    arm_dir: Path
    python: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Job:
    """One thing that must be there, and the process that makes it.

    `name` is for people: `setup`, `data portraits`, `preflight`; `makes` says what is there afterwards. `run_dir` is
    the job's folder on the host, `seen_dir` the same as its shell sees it, to be followed while it runs. `files` (paths
    as the shell sees them) are written before it starts. Jobs whose names are in `after` must be done before.
    `number` counts its tries from 1. `env` may hold secrets.
    """

    name: str
    key: str
    run: str
    argv: tuple[str, ...]
    cwd: str
    run_dir: Path
    seen_dir: Path
    deadline_s: float
    makes: str
    env: Mapping[str, str] = field(repr=False)
    home_id: str
    files: tuple[tuple[Path, bytes], ...] = field(default=(), repr=False)
    after: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    number: int = 1

    @property
    def attempt(self) -> str:
        """The name of this try, unique on its host."""
        return attempt_name(self.home_id, self.run, self.number)

    @property
    def attempt_dir(self) -> Path:
        """The folder of this try on the host."""
        return attempt_dir(self.run_dir, self.number)

    def launch_spec(self) -> dict[str, Any]:
        """The JSON line for the supervisor."""
        return {
            "attempt": self.attempt,
            "argv": list(self.argv),
            "cwd": self.cwd,
            "env": dict(self.env),
            "run_dir": str(self.run_dir),
            "attempt_dir": str(self.attempt_dir),
            "cores": list(self.cores),
            "deadline_s": self.deadline_s,
            "grace_s": GRACE_S,
            "term_s": TERM_S,
            "heartbeat_s": HEARTBEAT_S,
        }


@dataclass(frozen=True, slots=True)
class NotBegun:
    """No supervisor has it, as far as the shell shows; asking for it again does no harm."""


@dataclass(frozen=True, slots=True)
class Running:
    """A supervisor has it, or its process may still live where we cannot see it."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Its supervisor and its process are gone and left no exit record; what they started may live on: see `reap`."""


@dataclass(frozen=True, slots=True)
class Done:
    """It ended with exit code 0."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It ended otherwise. `lines` are the last ones it wrote, as it wrote them: not yet fit for a terminal.

    `may_pass` is false where the same would happen again.
    """

    reason: str
    lines: tuple[str, ...]
    may_pass: bool


State = NotBegun | Running | Gone | Done | Failed


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a host stands after one step: `waiting` are not done yet, `tried_again` failed and were begun once more,
    `failed` will not be done. The host is ready when nothing waits and nothing failed."""

    waiting: tuple[Job, ...] = ()
    tried_again: tuple[tuple[Job, Failed], ...] = ()
    failed: tuple[tuple[Job, Failed], ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether runs may start."""
        return not self.waiting and not self.failed


def site_of(shell: Shell, home_id: str, seen: Path, arm_dir: Path, environment: Mapping[str, str]) -> Site:
    """The site behind a shell. `seen` is the staging folder, `arm_dir` the arm's folder in the frozen code, both as the
    shell knows them. Raises HostLost while nobody has heard where things are there."""
    return Site(
        home_id=home_id,
        folder=Path(shell.path_there(str(seen))),
        seen=seen,
        arm_dir=Path(shell.path_there(str(arm_dir))),
        python=shell.python,
        environment=environment,
    )


def jobs(arm: ResolvedArm, site: Site, environment_key: str | None = None) -> tuple[Job, ...]:
    """What must be done on a host before a run of this arm starts there, in an order that respects `after`; () when
    nothing is. `environment_key` is environment.key(…) of an arm with a set-up command, None without one."""
    setup = None if environment_key is None else _setup(arm, site, environment_key)
    found = {} if setup is None else {setup.key: setup}
    for name, text in arm.data.items():
        reference = data.parse(text)
        found.setdefault(reference.key, _fetch(name, reference, arm, site, setup))
    return tuple(found.values())


def run_python(arm: ResolvedArm, site: Site, environment_key: str | None = None) -> str:
    """The interpreter of the arm's runs on that host, for Launchable.python."""
    made = None if environment_key is None else folder_of(str(site.folder), environment_key)
    return python_of(arm, made, site.python)


def run_variables(arm: ResolvedArm, site: Site, environment_key: str | None = None) -> dict[str, str]:
    """What the arm's runs there find in their environment: RUNNER_DATA_<NAME>, and RUNNER_ENVIRONMENT if it has one."""
    found = data.variables(data.places(arm.data, str(site.folder)))
    if environment_key is not None:
        found["RUNNER_ENVIRONMENT"] = folder_of(str(site.folder), environment_key)
    return found


def advance(shell: Shell, wanted: Sequence[Job]) -> Progress:
    """One bounded step of all these jobs: begins what may begin, looks at the rest, and waits for nothing. To be called
    again until the host is ready; it keeps nothing, so another controller goes on with it. Raises HostLost and
    SpawnRefused."""
    waiting, tried_again, failed = [], [], []
    done: set[str] = set()
    for job in (newest(shell, one) for one in wanted):
        found = state(shell, job) if done.issuperset(job.after) else Running()
        if isinstance(found, Done):
            done.add(job.name)
            continue
        if isinstance(found, NotBegun):
            begin(shell, job)
        elif isinstance(found, Gone):
            reap(shell, job)
        elif isinstance(found, Failed):
            following = again(job, found)
            if following is None:
                failed.append((job, found))
                continue
            if not begin(shell, following).existing:  # what the shell shows may be older than that try
                tried_again.append((job, found))
        waiting.append(job)
    return Progress(tuple(waiting), tuple(tried_again), tuple(failed))


def begin(shell: Shell, job: Job) -> Spawned:
    """Start a job, or find it started: its files first, then its supervisor. Raises HostLost and SpawnRefused."""
    for path, content in job.files:
        shell.write(str(path), content)
    (spawned,) = shell.spawn([job.launch_spec()])
    return spawned


def reap(shell: Shell, job: Job) -> None:
    """End what a job that is gone has left; when that is done it has failed. Raises HostLost and SpawnRefused."""
    shell.spawn([reap_spec(job.home_id, job.run, job.run_dir, job.number)])


def state(shell: Shell, job: Job) -> State:
    """What became of this try of a job. Raises HostLost."""
    seen = look(shell, attempt_dir(job.seen_dir, job.number), Phase.INTENDED, None)
    if seen.phase is Phase.INTENDED:
        return NotBegun()
    if seen.phase is Phase.LIVE:
        return Running()
    if seen.exit is None:
        return Gone()
    return _ended(job, seen.exit)


def newest(shell: Shell, job: Job) -> Job:
    """The job as its newest try that the shell shows: a controller that starts anew knows no numbers."""
    numbers = [int(name[8:]) for name in shell.names(str(job.seen_dir)) if re.fullmatch(r"attempt-[1-9]\d{0,5}", name)]
    return replace(job, number=max(numbers, default=1))


def again(job: Job, failed: Failed) -> Job | None:
    """The next try of a job that failed; None when it would not help, or MOST_TRIES were made."""
    return replace(job, number=job.number + 1) if failed.may_pass and job.number < MOST_TRIES else None


def _ended(job: Job, record: Mapping[str, Any]) -> Done | Failed:
    code, cause = record.get("code"), record.get("cause")
    if cause == "exited" and code == 0:
        return Done()
    lines = tuple(str(record.get("tail", "")).splitlines()[-LAST_LINES:])
    if cause == "deadline":
        return Failed(f"{job.name}: not done after {job.deadline_s:g} s", lines, False)
    if cause == "spawn_failed":
        return Failed(f"{job.name}: {record.get('error', 'it could not be started')}", lines, False)
    if cause == "stopped":
        request = record.get("stop_request")
        why = request.get("reason", "") if isinstance(request, Mapping) else ""
        return Failed(f"{job.name}: it was stopped; {why}", lines, True)
    if cause == "killed" and record.get("error"):
        return Failed(f"{job.name}: {record['error']}", lines, True)
    how = f"exit code {code}" if code is not None else f"signal {record.get('signal')}"
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return Failed(f"{job.name}: {how}: {said[:300]}", lines, code is None or code not in _final_codes(job))


def _final_codes(job: Job) -> Collection[int]:
    """Exit codes after which the same would happen again. Of a set-up command none is known to say that; a step that
    failed by itself fails once more."""
    if job.name.startswith("data "):
        return _FINAL_OF_FETCH
    return range(256) if job.name == PREFLIGHT else ()


_FINAL_OF_FETCH = (fetch.USAGE, fetch.WRONG, fetch.ABSENT, fetch.NO_PROGRAM, fetch.NO_ROOM, fetch.FORBIDDEN)


def _setup(arm: ResolvedArm, site: Site, key: str) -> Job:
    made = folder_of(str(site.folder), key)
    python = python_of(arm, made, site.python)
    return _job(
        site,
        "setup",
        key,
        ("/bin/sh", "-c", _SETUP, "setup", arm.environment["setup"], python),
        cwd=site.arm_dir,
        deadline_s=SETUP_DEADLINE_S,
        makes=f"the environment {made}",
        env={"RUNNER_ENVIRONMENT": made},
    )


def _fetch(name: str, reference: data.Reference, arm: ResolvedArm, site: Site, setup: Job | None) -> Job:
    source = fetch_source()
    program = f"fetch-{hashlib.sha256(source).hexdigest()[:16]}.py"
    target = reference.place(str(site.folder))
    # The programs that these kinds need may come with the environment.
    tools = setup if reference.kind in ("hf", "s3", "rsync") else None
    job = _job(
        site,
        f"data {name}",
        reference.key,
        (
            *_with_programs(arm, site, tools),
            site.python,
            "-I",
            "-S",
            str(site.folder / program),
            reference.text,
            target,
        ),
        cwd=Path("/"),
        deadline_s=DATA_DEADLINE_S,
        makes=target,
        env={},
    )
    return replace(job, files=((site.seen / program, source),), after=() if tools is None else (tools.name,))


def _with_programs(arm: ResolvedArm, site: Site, setup: Job | None) -> tuple[str, ...]:
    """What goes in front of a command so that it finds the programs beside the environment's interpreter first. What
    PATH holds on the host is known only there."""
    if setup is None:
        return ()
    return ("/bin/sh", "-c", _WITH_PROGRAMS, "fetch", os.path.dirname(run_python(arm, site, setup.key)))


def fetch_source() -> bytes:
    """The program that runs on the host."""
    assert fetch.__file__ is not None
    return Path(fetch.__file__).read_bytes()


def _job(
    site: Site,
    name: str,
    key: str,
    argv: Sequence[str],
    *,
    cwd: Path,
    deadline_s: float,
    makes: str,
    env: Mapping[str, str],
) -> Job:
    folder = f"jobs/{name.split()[0]}-{key[:32]}"
    return Job(
        name=name,
        key=key,
        run=f"staging/{name.split()[0]}-{key[:32]}",
        argv=tuple(argv),
        cwd=str(cwd),
        run_dir=site.folder / folder,
        seen_dir=site.seen / folder,
        deadline_s=deadline_s,
        makes=makes,
        env={**site.environment, **env},
        home_id=site.home_id,
    )

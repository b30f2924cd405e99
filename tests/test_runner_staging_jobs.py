"""Jobs on a host, run by real supervisors: made once, told when they fail, made anew after that."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from provisioning.base import HostLost, Shell
from provisioning.host_worker import HostWorker
from provisioning.local_shell import LocalShell
from provisioning.mirrored_shell import MirroredShell
from provisioning.processes import is_alive
from provisioning.ssh_connection import Deadlines
from runner.detach import SUPERVISOR
from runner.spec.models import ResolvedArm
from runner.staging import environment, jobs
from runner.staging.jobs import Done, Failed, Gone, Job, NotBegun, Progress, Running, Site
from tests.fakes.arms import command_arm
from tests.fakes.sshd import Sshd

KEY = "ab" * 32
MAKE = 'mkdir "$RUNNER_ENVIRONMENT/bin"; ln -s "$REAL" "$RUNNER_ENVIRONMENT/bin/python"; echo made >> "$MADE"'


@pytest.fixture
def shell() -> Iterator[LocalShell]:
    found = LocalShell(str(SUPERVISOR))
    yield found
    found.close()


@pytest.fixture
def site(tmp_path: Path, shell: LocalShell) -> Site:
    code = tmp_path / "code"
    (code / "lab").mkdir(parents=True)
    values = {"PATH": os.environ["PATH"], "REAL": sys.executable, "MADE": str(tmp_path / "made"), "TOKEN": "s3cret"}
    return jobs.site_of(shell, "home", tmp_path / "staging", code / "lab", values)


def arm(setup: str | None = None, data: dict[str, str] | None = None, **changes: Any) -> ResolvedArm:
    return command_arm(environment={"python": None, "setup": setup}, data=data or {}, **changes)


def until_settled(shell: Shell, wanted: tuple[Job, ...], within_s: float = 60.0) -> list[Progress]:
    """Steps until nothing waits any more."""
    deadline, steps = time.monotonic() + within_s, []
    while not steps or steps[-1].waiting:
        assert time.monotonic() < deadline, steps[-1]
        steps.append(jobs.advance(shell, wanted))
        time.sleep(0.02)
    return steps


def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_arm_that_needs_nothing_has_no_jobs(shell: LocalShell, site: Site) -> None:
    assert jobs.jobs(arm(), site) == ()
    assert jobs.advance(shell, ()).is_ready
    assert jobs.run_python(arm(), site) == sys.executable
    assert jobs.run_variables(arm(), site) == {}


def test_an_environment_is_made_once_for_all_who_need_it(shell: LocalShell, site: Site, tmp_path: Path) -> None:
    wanted = jobs.jobs(arm(f"{MAKE}; pwd > where"), site, KEY)
    (job,) = wanted
    assert isinstance(jobs.state(shell, job), NotBegun)
    steps = until_settled(shell, wanted)
    assert not steps[0].is_ready
    assert steps[-1].is_ready
    assert isinstance(jobs.state(shell, job), Done)
    other_run = jobs.jobs(arm(f"{MAKE}; pwd > where", arm="B"), site, KEY)
    assert jobs.advance(LocalShell(str(SUPERVISOR)), other_run).is_ready
    assert jobs.begin(shell, job).existing
    assert (tmp_path / "made").read_text() == "made\n"
    assert (site.arm_dir / "where").read_text().strip() == str(site.arm_dir)
    python = jobs.run_python(arm("x"), site, KEY)
    assert python == f"{environment.folder_of(str(site.folder), KEY)}/bin/python"
    assert subprocess.run([python, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout == "42\n"
    variables = jobs.run_variables(arm("x"), site, KEY)
    assert variables == {"RUNNER_ENVIRONMENT": environment.folder_of(str(site.folder), KEY)}


def test_a_failed_set_up_is_told_and_made_anew_in_an_empty_folder(
    shell: LocalShell, site: Site, tmp_path: Path
) -> None:
    setup = (
        f'ls "$RUNNER_ENVIRONMENT" >> {tmp_path}/found; touch "$RUNNER_ENVIRONMENT/half"\n'
        f'test -e {tmp_path}/go || {{ touch {tmp_path}/go; echo "no such package: [red]x" >&2; exit 3; }}\n{MAKE}'
    )
    steps = until_settled(shell, jobs.jobs(arm(setup), site, KEY))
    assert steps[-1].is_ready
    ((job, failed),) = [pair for step in steps for pair in step.tried_again]
    assert job.number == 1
    assert failed.reason == "setup: exit code 3: no such package: [red]x"
    assert failed.lines == ("no such package: [red]x",)
    assert (tmp_path / "found").read_text() == ""  # neither try found anything


def test_the_tries_are_bounded(shell: LocalShell, site: Site) -> None:
    steps = until_settled(shell, jobs.jobs(arm("false; echo never"), site, KEY))
    ((job, failed),) = steps[-1].failed
    assert job.number == jobs.MOST_TRIES
    assert sum(len(step.tried_again) for step in steps) == jobs.MOST_TRIES - 1
    assert "exit code 1: it said nothing" in failed.reason
    assert not steps[-1].is_ready
    names = sorted(os.listdir(job.run_dir))
    assert names == ["attempt-1", "attempt-2", "attempt-3"]


def test_a_set_up_without_an_interpreter_has_failed(shell: LocalShell, site: Site) -> None:
    (job,) = jobs.jobs(arm("true"), site, KEY)
    jobs.begin(shell, job)
    until(lambda: isinstance(jobs.state(shell, job), Failed))
    failed = jobs.state(shell, job)
    assert isinstance(failed, Failed)
    assert "cannot be started" in failed.reason


def test_a_deadline_ends_a_job_for_good(shell: LocalShell, site: Site) -> None:
    (job,) = jobs.jobs(arm("sleep 60"), site, KEY)
    hasty = dataclasses.replace(job, deadline_s=0.3)
    (step,) = [step for step in until_settled(shell, (hasty,)) if step.failed]
    assert step.failed[0][1].reason == "setup: not done after 0.3 s"


def test_what_a_killed_supervisor_left_is_ended_before_the_next_try(
    shell: LocalShell, site: Site, tmp_path: Path
) -> None:
    setup = f"test -e {tmp_path}/go || {{ touch {tmp_path}/go; setsid sleep 300 & wait; }}\n{MAKE}"
    wanted = jobs.jobs(arm(setup), site, KEY)
    first = jobs.begin(shell, wanted[0])
    until(lambda: "sleep" in marked(wanted[0]))
    assert isinstance(jobs.state(shell, wanted[0]), Running)
    os.kill(first.identity.pid, signal.SIGKILL)
    until(lambda: not is_alive(first.identity) and isinstance(jobs.state(shell, wanted[0]), Gone))
    assert "sleep" in marked(wanted[0])
    steps = until_settled(shell, wanted)
    assert steps[-1].is_ready
    assert "its supervisor was lost" in next(pair[1].reason for step in steps for pair in step.tried_again)
    assert not marked(wanted[0])


def marked(job: Job) -> list[str]:
    """What the processes of a job are called. Its name alone is also that of another test's at the same time."""
    found, mark = [], f"RUNNER_ATTEMPT_DIR={job.attempt_dir}".encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(Path(f"/proc/{pid}/comm").read_text().strip())
        except OSError:
            continue
    return found


def test_data_on_the_host_is_looked_at_and_what_is_missing_is_final(
    shell: LocalShell, site: Site, tmp_path: Path
) -> None:
    wanted = jobs.jobs(arm(data={"code": str(site.arm_dir), "again": str(site.arm_dir), "no": "/no/where"}), site)
    assert [job.name for job in wanted] == ["data code", "data no"]
    last = until_settled(shell, wanted)[-1]
    ((job, failed),) = last.failed
    assert (job.name, job.number, failed.may_pass) == ("data no", 1, False)
    assert failed.reason == "data no: exit code 66: fetch: /no/where: there is no /no/where on this host"
    assert jobs.run_variables(arm(data={"code": "/x"}), site) == {"RUNNER_DATA_CODE": "/x"}


def test_data_waits_for_the_programs_of_the_environment(shell: LocalShell, site: Site, tmp_path: Path) -> None:
    script = '#!/bin/sh\\nmkdir "$6"; echo face > "$6/a"\\n'
    program = f"printf '{script}' > $RUNNER_ENVIRONMENT/bin/hf; chmod 700 $RUNNER_ENVIRONMENT/bin/hf"
    both = arm(f"{MAKE}; {program}", {"faces": "hf://datasets/org/faces"})
    wanted = jobs.jobs(both, site, KEY)
    assert [(job.name, job.after) for job in wanted] == [("setup", ()), ("data faces", ("setup",))]
    first = jobs.advance(shell, wanted)
    assert [job.name for job in first.waiting] == ["setup", "data faces"]
    assert not wanted[1].run_dir.exists()
    last = until_settled(shell, wanted)[-1]
    assert last.is_ready, last.failed
    folder = Path(jobs.run_variables(both, site, KEY)["RUNNER_DATA_FACES"])
    assert (folder / "a").read_text() == "face\n"
    assert str(folder).startswith(f"{site.folder}/data/")


def test_data_whose_set_up_failed_is_not_begun(shell: LocalShell, site: Site) -> None:
    wanted = jobs.jobs(arm("exit 1", {"faces": "hf://datasets/org/faces"}), site, KEY)
    steps = [jobs.advance(shell, wanted)]
    until(lambda: bool(steps.append(jobs.advance(shell, wanted)) or steps[-1].failed))
    assert [job.name for job, _ in steps[-1].failed] == ["setup"]
    assert not wanted[1].run_dir.exists()


def test_secrets_travel_only_through_the_pipe(shell: LocalShell, site: Site, tmp_path: Path) -> None:
    wanted = jobs.jobs(arm(f'test -n "$TOKEN"; {MAKE}'), site, KEY)
    assert "s3cret" not in repr(wanted) + repr(site)
    assert until_settled(shell, wanted)[-1].is_ready
    for path in site.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"s3cret" not in path.read_bytes()


def test_on_another_machine_the_copy_is_read(tmp_path: Path) -> None:
    with ExitStack() as stack:
        sshd = Sshd(tmp_path / "host", "host")
        stack.callback(sshd.stop)
        sshd.start()
        worker = HostWorker(sshd.agent(tmp_path / "known_hosts", Deadlines(5, 5)), look_s=0.02, pause_s=0.05)
        stack.callback(worker.close)
        shell = MirroredShell(worker, tmp_path / "home", "~/runs", sshd.host.python)
        until(lambda: hears(shell))
        far = jobs.site_of(shell, "home", tmp_path / "home" / ".staging", tmp_path / "home" / "code", {})
        assert str(far.folder).startswith(str(sshd.home))
        (far.arm_dir / "faces").mkdir(parents=True)
        setup = 'python3 -m venv --without-pip "$RUNNER_ENVIRONMENT"; test -d faces; echo "made here"'
        wanted = jobs.jobs(arm(setup, {"faces": f"{far.arm_dir}/faces", "no": "/no/where"}), far, KEY)
        shell.follow({str(job.seen_dir): () for job in wanted})
        steps = until_settled(shell, wanted)
        ((job, failed),) = steps[-1].failed
        assert (job.name, "there is no /no/where on this host" in failed.reason) == ("data no", True)
        assert isinstance(jobs.state(shell, wanted[0]), Done)
        assert (wanted[0].seen_dir / "attempt-1" / "stdout.log").read_text() == "made here\n"
        assert not (far.seen / "environments").exists()  # what was made stays there
        assert os.access(jobs.run_python(arm(setup), far, KEY), os.X_OK)


def hears(shell: MirroredShell) -> bool:
    try:
        shell.about()
    except HostLost:
        return False
    return True

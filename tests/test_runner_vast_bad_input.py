"""What a launch on rented machines refuses, and machines that are not what was rented: a clear word, nothing left."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from runner.accept import rented_capacity
from runner.cli import run as runner
from runner.hiring import sentence
from runner.home import Home, create_home
from runner.launching import Options, commit, prepare, ready_database
from runner.renting.decide import Limits
from runner.store import requests
from runner.store.database import reading
from tests.fakes.lab import ROOT
from tests.fakes.vast import Boot
from tests.fakes.vast_lab import KEY, VastLab, VastRounds, step_all, vast_lab, vast_rounds

TRAINING = """
for step in range(1, 21):
    print(f"step {step}/20 loss={1.0 / step:.9f}", flush=True)
"""

CREATE = "PUT /api/v0/asks/{id}/"
VAST = ("--provider", "vast")
LIMIT = ("--max-usd", "40", "--hours", "1")

PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"


def arm(lab: VastLab) -> Path:
    return lab.arm("A", TRAINING, "20", steps=20, resources={"gpus": 1})


class Refused:
    """One command in this process, and what it said; `out` is the output of the last one."""

    def __init__(self, lab: VastLab, capsys: pytest.CaptureFixture[str]) -> None:
        self.lab = lab
        self.out = ""
        self._capsys = capsys

    def __call__(self, *arguments: str | Path, **environment: str | None) -> tuple[int, str]:
        """Exit code and error stream."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RUNNER_HOME", str(self.lab.home))
            for name, value in {**self.lab.extra_environment, **environment}.items():
                patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
            patch.chdir(self.lab.folder)
            code = runner([str(one) for one in arguments])
        said = self._capsys.readouterr()
        assert KEY not in said.out + said.err
        self.out = said.out
        return code, " ".join(said.err.split())


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[VastLab]:
    with vast_lab(tmp_path) as found:
        yield found


@pytest.fixture
def refused(lab: VastLab, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(lab, capsys)


def check_nothing_was_asked_for(lab: VastLab) -> None:
    """No machine was rented and nobody was told to rent one."""
    assert lab.ever() == []
    assert lab.fake.counts()[CREATE] == 0
    assert not lab.fake.breaches
    if lab.home.exists():
        with reading(Home(lab.home)) as connection:
            assert requests.pending(connection) == ()


@pytest.mark.parametrize(
    ("options", "environment", "code", "words"),
    [
        (LIMIT, {"VAST_API_KEY": None}, 2, ["VAST_API_KEY is not set", "manage-keys", "nothing was rented"]),
        (LIMIT, {"VAST_API_KEY": "wrong-key"}, 2, ["check VAST_API_KEY", "manage-keys", "nothing was rented"]),
        (LIMIT, {"VAST_URL": "http://example.org"}, 2, ["VAST_URL", "nothing was rented"]),
        ((*LIMIT, "--gpu", "H200"), {}, 3, ["nothing to rent", "15 offers: 15 have another GPU than H200"]),
        ((*LIMIT, "--disk-gb", "900"), {}, 3, ["nothing to rent", "15 have less than 900 GB of disk"]),
        (("--max-usd", "1", "--hours", "1"), {}, 4, ["limit is 1.00 USD", "USD at most", "nothing was rented"]),
        (("--hours", "1"), {}, 2, ["no limit", "--max-usd", "nothing was rented"]),
        ((*LIMIT, "--hours", "-1"), {}, 2, ["hours"]),
        ((*LIMIT, "--bid-usd-per-h", "0.3"), {}, 2, ["bid_usd_per_h", "is_interruptible"]),
    ],
)
def test_what_cannot_be_rented_is_refused(
    refused: Refused, options: tuple[str, ...], environment: dict[str, str | None], code: int, words: list[str]
) -> None:
    found, said = refused("launch", arm(refused.lab), *VAST, *options, "--yes", **environment)
    assert found == code, said
    for word in words:
        assert word in said
    check_nothing_was_asked_for(refused.lab)


def test_an_empty_account_rents_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with vast_lab(tmp_path, balance_usd=0.0) as lab:
        code, said = Refused(lab, capsys)("launch", arm(lab), *VAST, *LIMIT, "--yes")
        assert code == 3
        assert "the account is empty (0.00 USD): nothing was rented" in said
        check_nothing_was_asked_for(lab)


def test_without_a_terminal_somebody_must_have_said_yes(refused: Refused) -> None:
    code, said = refused("launch", arm(refused.lab), *VAST, *LIMIT)
    assert code == 2
    assert "at most 1.39 USD as planned, with other offers or more hours for up to 40.00 USD (max_usd)" in said
    assert "--yes" in said
    check_nothing_was_asked_for(refused.lab)


def test_the_plan_names_what_it_costs_and_what_bounds_the_study(lab: VastLab) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lab.extra_environment.items():
            patch.setenv(name, value)
        options = Options(provider="vast", wanted={"hours": 1.0}, sets=("budget.study.max_usd=40",))
        hire = prepare(Home(lab.home), [arm(lab)], options).hire
    assert hire is not None
    said = sentence(hire.machines[0])
    assert "at most 1.39 USD until 3.25 h; with other offers or more hours: max_usd 40.00 USD" in said
    assert "\n" not in said
    assert hire.max_usd == 40.0


@pytest.mark.parametrize(
    ("seeds", "slots", "rented"), [([0], 4, 1), ([0], 9, 1), ([0], None, 1), ([0, 1], 4, 2), ([0, 1, 2], 2, 2)]
)
def test_no_machine_has_more_slots_than_there_are_runs(
    lab: VastLab, seeds: list[int], slots: int | None, rented: int
) -> None:
    path = lab.arm("A", TRAINING, "20", steps=20, resources={"gpus": 1}, seeds=seeds)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lab.extra_environment.items():
            patch.setenv(name, value)
        options = Options(provider="vast", wanted={"hours": 1.0}, max_usd=40.0, slots=slots)
        prepared = prepare(Home(lab.home), [path], options)
    assert prepared.hire is not None
    (machine,) = prepared.hire.machines
    assert (machine.slots, machine.wanted.gpus, machine.request()["slots"]) == (rented, rented, rented)
    assert rented_capacity(prepared.arms, slots, "vast").gpu_slots == rented
    assert ("1 slot on 1 x RTX 4090" in sentence(machine)) == (rented == 1)


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        (("--max-usd", "40"), None),
        (("--max-usd", "1"), "its limit is 1.00 USD"),
        ((), "the study has no limit: --max-usd USD"),
    ],
)
def test_a_dry_run_says_what_would_be_refused(refused: Refused, limit: tuple[str, ...], why: str | None) -> None:
    assert refused("launch", arm(refused.lab), *VAST, "--hours", "1", *limit, "--dry-run", "--json") == (0, "")
    told = json.loads(refused.out)["refused"]
    assert told is None if why is None else why in told
    check_nothing_was_asked_for(refused.lab)


def test_a_plan_on_a_rented_machine_names_its_slots_money_and_refusal_once(refused: Refused) -> None:
    limit = ("--max-usd", "1", "--hours", "1")
    assert refused("launch", arm(refused.lab), *VAST, *limit, "--dry-run") == (0, "")
    lines = refused.out.splitlines()
    (rent,) = [number for number, line in enumerate(lines) if line.startswith("rent   lab  1 slot on 1 x RTX 4090")]
    assert lines[rent + 1] == "       left in the account: 100.00 USD"
    assert not any(line.startswith("slots") for line in lines)
    assert lines[-1].startswith("this launch would be refused: lab: the best offer now can cost")


def test_an_unfair_launch_is_said_to_be_refused_by_a_dry_run(refused: Refused) -> None:
    path = refused.lab.folder / "dead.yaml"
    base = ROOT / "arms" / "base" / "quickstart.yaml"
    path.write_text(f"extends: {base}\narm: A\nchanges: {{trainer.tread.ratio: 0.25}}\n")
    assert refused("launch", path, "--dry-run")[0] == 0
    assert "this launch would be refused: F17" in refused.out


def test_one_command_asks_for_the_balance_once(refused: Refused) -> None:
    lab = refused.lab
    other = lab.arm("B", TRAINING, "20", steps=20, resources={"gpus": 1}, study="other")
    assert refused("launch", arm(lab), other, *VAST, *LIMIT, "--dry-run") == (0, "")
    assert lab.fake.counts()["GET /api/v0/users/current/"] == 1


def test_a_gpu_is_rented_by_the_name_that_the_service_gives_it(lab: VastLab) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lab.extra_environment.items():
            patch.setenv(name, value)
        options = Options(provider="vast", wanted={"hours": 1.0, "gpu_names": ["rtx4090"]}, max_usd=40.0)
        hire = prepare(Home(lab.home), [arm(lab)], options).hire
    assert hire is not None
    assert hire.machines[0].request()["wanted"]["gpu_names"] == ["RTX 4090"]


def test_what_looks_like_a_secret_stays_here_until_somebody_says_that_it_is_none(refused: Refused) -> None:
    lab = refused.lab
    path = arm(lab)
    (path.parent / "deploy.txt").write_text(PRIVATE_KEY)
    code, said = refused("launch", path, *VAST, *LIMIT, "--yes")
    assert code == 2
    assert "deploy.txt:1: a private key" in said
    assert "--allow-upload" in said
    assert "b3BlbnNz" not in said
    check_nothing_was_asked_for(lab)
    (file,) = [word for word in said.split() if word.endswith("deploy.txt")][-1:]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lab.extra_environment.items():
            patch.setenv(name, value)
        sets = ("budget.study.max_usd=40",)
        allowed = Options(provider="vast", wanted={"hours": 1.0}, sets=sets, allow_upload=(file,))
        assert commit(prepare(Home(lab.home), [path], allowed)) == 1


# ---- machines that are not what was rented ---------------------------------------------------------------------------


TROUBLES = {
    "ssh_refused": "it is reachable, but not fit for runs, for",
    "loading_for_ever": "it is loading for",
    "exits": "it has failed",
    "fewer_gpus": "it is not fit for runs: 3 of 4 GPUs can be used",
    "nvidia_smi_broken": "it is not fit for runs: 0 of 4 GPUs can be used",
}
"""What is wrong with a first machine, and why it is given back."""

IS_ROOT = os.geteuid() == 0

FIRST = 20_000_001
"""The number of the first instance of an account."""

QUICK = Limits(requested_s=4.0, created_s=4.0, loading_s=3.0, running_s=4.0, unfit_s=4.0, quiet_s=2.0)


@pytest.mark.long
def test_a_machine_that_is_not_what_was_rented_gives_way_to_another(tmp_path: Path) -> None:
    with ExitStack() as stack:
        homes = {}
        for name in TROUBLES:
            (tmp_path / name).mkdir()
            lab = stack.enter_context(vast_lab(tmp_path / name))
            lab.boots(Boot(contract_s=0.1, created_s=0.1, loading_s=0.2, trouble=name))
            homes[name] = stack.enter_context(vast_rounds(lab, QUICK))
            homes[name].launch(lab.arm("A", TRAINING, "20", steps=20, resources={"gpus": 2}))
        step_all({name: (rounds, ended(rounds)) for name, rounds in homes.items()}, 90.0)
        for name, why in TROUBLES.items():
            check_it_gave_way(homes[name].lab, why)


def check_it_gave_way(lab: VastLab, why: str) -> None:
    """The first machine was given back for this reason, is remembered, and another one did the work."""
    assert lab.status()["A-s0"]["state"] == "finished"
    bad, good = lab.leases()
    assert bad.because.startswith(why)
    assert bad.is_fault
    assert bad.machine != good.machine
    assert [one for one in lab.events("renting:trouble") if bad.because in one]
    lab.check_nothing_is_left(2)


@contextmanager
def small(folder: Path) -> Iterator[Path]:
    """A file system that holds 64 KiB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(not IS_ROOT, reason="only root may mount a small file system")
def test_a_full_disk_there_fails_the_run_and_the_machine_goes_back(lab: VastLab, tmp_path: Path) -> None:
    with small(tmp_path / "small") as disk, vast_rounds(lab, QUICK) as rounds:
        fill(lab, disk)
        rounds.launch(lab.folder / "arms" / "A" / "A.yaml")
        step_all({"full": (rounds, ended(rounds))}, 90.0)
    run = lab.status()["A-s0"]
    assert run["state"] == "failed(staging)"
    assert "the host cannot keep the code: the archive: No space left on device" in run["reason"]
    lab.check_nothing_is_left(1)


def fill(lab: VastLab, small: Path) -> None:
    """Let the first machine keep runs where there is hardly any room, and the arm be large."""
    there = lab.home_there(FIRST) / ".armature"
    there.mkdir(parents=True)
    (there / "runs").symlink_to(small)
    (arm(lab).parent / "table.bin").write_bytes(random.Random(0).randbytes(300_000))


def ended(rounds: VastRounds) -> Callable[[], bool]:
    """Whether its one run has ended and nothing is rented any more."""

    def look() -> bool:
        run = rounds.lab.status()["A-s0"]
        is_open = any(one.is_open for one in rounds.lab.leases())
        return run["state"].startswith(("finished", "failed")) and not is_open

    return look


# ---- runner gc -------------------------------------------------------------------------------------------------------


def test_gc_needs_a_key(refused: Refused) -> None:
    create_home(Home(refused.lab.home))
    ready_database(Home(refused.lab.home))
    code, said = refused("gc", VAST_API_KEY=None)
    assert code == 2
    assert "VAST_API_KEY is not set" in said
    check_nothing_was_asked_for(refused.lab)

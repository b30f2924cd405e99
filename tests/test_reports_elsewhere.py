"""A study whose runs were launched on one machine and trained on others: the report says which is which, how to launch
it again, and does not contradict itself."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from provisioning.vast.wanted import Wanted
from reports.happenings import happenings
from reports.markdown import render
from reports.reproduction import relaunch
from reports.study import AttemptView, EventView, LaunchView, LintView, RunView, StudyView
from reports.whereabouts import hardware, trained_on
from runner.home import Home
from runner.store import changes, tables
from runner.store.database import reading
from runner.store.outbox import BY_THE_TRAINER
from runner.store.study_view import build_study_view
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import SLOT, StoredStudy
from tests.fakes.studies import HOSTILE, quickstart

LAUNCHER = {
    "commit": "4f1c2d3e", "arm_files": ["/arms/a.yaml"], "packages": {"torch": "2.13.0+cpu", "numpy": "2.4.6"},
    "python": {"executable": "/launcher/python", "version": "3.12.9"}, "variables": {"OMP_NUM_THREADS": "1"},
    "launcher": {"executable": "/launcher/python", "version": "3.12.9"}, "hardware": {"cpu": "laptop", "gpus": []},
}  # fmt: skip
SAID = {
    "device": "cuda", "gpus": ["NVIDIA GeForce RTX 4090"], "cpu": "EPYC", "cores": 16, "python": "3.11.2",
    "executable": "/usr/bin/python3", "packages": {"torch": "2.8.0"}, "torch": "2.8.0+cu128",
}  # fmt: skip
RENTED = {"gpus": 1, "vram_mib": 24564, "cores": 8, "gpu_name": "RTX 4090", "gpus_rented": 4}


def section(report: str, title: str) -> str:
    return report.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def attempt(**changed: Any) -> AttemptView:
    return AttemptView(1, "train", "gpu0", False, 1.0, 9.0, host="4711", provider="vast", place=RENTED, **changed)


def away(run: RunView, **changed: Any) -> RunView:
    """The same run, trained on a rented machine."""
    launch = LaunchView("vast", ("--gpu", "RTX 4090"))
    return replace(run, provenance=LAUNCHER, launch=launch, attempts=(attempt(**changed),))


def study_of(*runs: RunView) -> StudyView:
    return replace(quickstart(), runs=runs)


def provenance(*runs: RunView) -> dict[str, str]:
    lines = section(render(study_of(*runs))["report.md"].replace("\\", ""), "Provenance").splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    return {cell[0]: cell[1] for cell in cells[2:]}


# ---- where it trained ------------------------------------------------------------------------------------------------


def test_what_describes_the_launching_machine_is_called_so() -> None:
    found = provenance(away(quickstart().runs[0], said=SAID))
    assert found["trained on: machine"] == "4711 (vast, rented as 4 x RTX 4090)"
    assert found["trained on: GPUs"] == "1 x NVIDIA GeForce RTX 4090"
    assert found["trained on: python"] == "3.11.2 (/usr/bin/python3)"
    assert found["trained on: packages"] == "torch 2.8.0"
    assert found["launched from, packages: torch"] == "2.13.0+cpu"
    assert found["launched from, hardware: cpu"] == "laptop"
    assert found["launched from, python: version"] == "3.12.9"
    assert found["commit"] == "4f1c2d3e"
    assert "which did not train these runs" in render(study_of(away(quickstart().runs[0])))["report.md"]
    assert "which did not train these runs" not in render(quickstart())["report.md"]
    assert not [key for key in found if key.startswith(("packages:", "hardware:", "python:", "variables:"))]


def test_a_process_that_said_nothing_is_told_by_its_slot_and_no_package_is_invented() -> None:
    run = away(quickstart().runs[0])
    found = provenance(run)
    assert found["trained on: GPUs"] == "1 x RTX 4090 with 24564 MiB in its slot; not named by its process"
    assert found["trained on: python"] == found["trained on: packages"] == "not told by its process"
    listed = replace(run, attempts=(replace(attempt(), provider="ssh", place={"python": "/usr/bin/python3"}),))
    assert trained_on(listed)["python"] == "/usr/bin/python3, version not told"
    assert (
        trained_on(replace(listed, config={"environment.python": "/opt/py"}))["python"] == "/opt/py, version not told"
    )


def test_a_local_run_keeps_its_packages_unless_another_interpreter_trained_it() -> None:
    run = replace(quickstart().runs[0], provenance=LAUNCHER)
    own = provenance(run)
    assert (own["packages: torch"], own["hardware: cpu"], own["python: version"]) == ("2.13.0+cpu", "laptop", "3.12.9")
    assert not [key for key in own if key.startswith("launched from")]
    other = provenance(replace(run, provenance={**LAUNCHER, "python": {"executable": "/opt/py", "version": None}}))
    assert (other["python: executable"], other["launched from, packages: torch"]) == ("/opt/py", "2.13.0+cpu")
    assert other["hardware: cpu"] == "laptop"
    assert not {"python: version", "packages: torch"} & other.keys()


def test_runs_here_and_there_stand_side_by_side_without_rows_of_missing_values() -> None:
    first, second = quickstart().runs[:2]
    many = {f"package-{index}": "1" for index in range(30)}
    launched = {**LAUNCHER, "packages": many}
    here = replace(first, provenance=launched)
    report = render(study_of(here, replace(away(second, said=SAID), provenance=launched)))["report.md"]
    assert "not set" not in section(report, "Provenance")
    assert "package-3" not in report


def test_a_run_that_moved_names_both_machines() -> None:
    first = attempt(said=SAID)
    second = replace(first, number=2, host="gpu-b", provider="ssh", place={}, said={**SAID, "cpu": "Xeon"})
    run = replace(away(quickstart().runs[0]), attempts=(first, second))
    assert trained_on(run)["machine"] == "attempt 1: 4711 (vast, rented as 4 x RTX 4090); attempt 2: gpu-b (ssh)"
    assert trained_on(run)["GPUs"] == "1 x NVIDIA GeForce RTX 4090"


def test_what_a_process_says_may_be_anything() -> None:
    odd: dict[str, Any] = {
        "device": ["x"], "gpus": {"a": 1}, "cpu": HOSTILE, "cores": None, "python": 3, "executable": [], "cuda": {},
        "packages": {"torch": {"a": []}, HOSTILE: "1"}, "torch": None,
    }  # fmt: skip
    for said in (odd, {"packages": [1], "gpus": [1, 2], "python": HOSTILE}):
        report = render(study_of(away(quickstart().runs[0], said=said)))["report.md"]
        assert "<script>" not in report
        assert "trained on: GPUs" in report


def test_seconds_of_different_machines_are_not_compared_for_having_one_launcher() -> None:
    first, second = quickstart().runs[0], quickstart().runs[3]
    same = [hardware(away(run, said=SAID)) for run in (first, second)]
    other = hardware(away(second, said={**SAID, "gpus": ["NVIDIA A100"]}))
    assert same[0] == same[1] != other
    silent = replace(away(second), attempts=(replace(attempt(), host="4712"),))
    assert hardware(away(first)) != hardware(silent)


# ---- how to launch it again ------------------------------------------------------------------------------------------


def named(run: RunView, file: str, **changed: Any) -> RunView:
    return replace(run, provenance={"arm_files": [file]}, **changed)


def test_the_command_has_the_place_and_the_values_of_the_launch() -> None:
    run = quickstart().runs[0]
    sets = (("environment.python", "/usr/bin/python3"), ("trainer.steps", 200), ("trainer.flag", "true"),
            ("budget.study.max_usd", 2.5))  # fmt: skip
    rented = LaunchView("vast", ("--slots", "4", "--gpu", "RTX 4090"))
    found = relaunch(study_of(named(run, "/a/one.yaml", sets=sets, launch=rented)))
    assert shlex.split(found.command.replace("\\\n", " ")) == [
        "runner", "launch", "/a/one.yaml", "--provider", "vast", "--slots", "4", "--gpu", "RTX 4090",
        "--set", "environment.python=/usr/bin/python3", "--set", "trainer.steps=200", "--set", 'trainer.flag="true"',
        "--max-usd", "2.5", "--allow", "F08=the quickstart sweeps nothing",
    ]  # fmt: skip
    assert "--allow-upload" in found.note
    here = relaunch(replace(study_of(named(run, "/a/one.yaml")), lint=()))
    assert (here.command, here.note) == ("runner launch /a/one.yaml", "The paths are those of the launch.")


def test_hosts_and_what_was_not_kept_are_said() -> None:
    run = named(quickstart().runs[0], "/a/one.yaml", launch=LaunchView("ssh", (), ("gpu-a", "gpu-b"), is_known=False))
    found = relaunch(replace(study_of(run), lint=()))
    assert found.command.endswith("--provider ssh \\\n    --hosts HOSTS.yaml")
    assert "HOSTS.yaml stands for the list of your machines (it had gpu-a and gpu-b)." in found.note
    assert "What the launch was given beside files, place and --set is not kept." in found.note


def test_runs_with_other_options_or_seeds_have_a_command_of_their_own() -> None:
    run = quickstart().runs[0]
    runs = [named(run, f"/a/{name}.yaml", seed=seed) for name in "ab" for seed in (0, 1, 2)]
    runs += [named(run, "/a/c.yaml", launch=LaunchView("vast")), replace(runs[0], parent=object())]  # type: ignore[arg-type]
    command = relaunch(replace(study_of(*runs), lint=())).command
    assert command.split("\nrunner") == [
        "runner launch \\\n    /a/a.yaml \\\n    /a/b.yaml \\\n    --seeds 0-2",
        " launch \\\n    /a/c.yaml \\\n    --provider vast",
    ]
    declared = named(run, "/a/a.yaml", launch=LaunchView(declares_seeds=True))
    assert relaunch(replace(study_of(declared), lint=())).command.endswith("--seeds 0")


def test_no_option_leaves_the_code_block() -> None:
    for value in ("```", "a\n```\nb", HOSTILE, "\u202e"):
        run = named(quickstart().runs[0], "/a/one.yaml", sets=(("title", value),))
        study = replace(study_of(run), lint=(LintView("F08", "W", "x", allowed=value),))
        command = relaunch(study).command
        assert all(character.isprintable() for line in command.splitlines() for character in line)
        assert not [line for line in command.splitlines() if line.lstrip().startswith("```")]


# ---- sentences that must hold ----------------------------------------------------------------------------------------


def test_the_judge_is_not_said_to_be_silent_where_a_process_was_remarked_on() -> None:
    run = replace(quickstart().runs[0], verdicts=())
    quiet = section(render(study_of(run))["report.md"], "Verdicts")
    assert "The curves gave the judge nothing to remark." in quiet
    assert "Of the processes" not in quiet
    events = (
        EventView(1.0, "liveness:throughput_collapse", "3 % of its usual speed"),
        EventView(2.0, "liveness:throughput_collapse", "over"),
        EventView(3.0, "liveness:silent:shadow", "no word"),
        EventView(4.0, "liveness:mine", BY_THE_TRAINER, announced=True),
    )
    told = section(render(study_of(replace(run, events=events)))["report.md"], "Verdicts").replace("\\", "")
    assert "stands under What happened: A-s0 throughput_collapse, A-s0 silent (in shadow)." in told


def test_times_of_processes_and_of_training_have_different_names() -> None:
    report = render(quickstart())["report.md"]
    shared = section(report, "When and where the runs ran")
    assert "both processes ran | of the shorter process" in shared
    assert "both trained" not in shared
    assert "A process counts from its start to its end: loading, validations and checkpoints are in it" in shared
    assert "| in training steps | in evaluation |" in section(report, "Throughput and memory")


def test_what_the_command_line_set_is_no_declaration_of_the_arm() -> None:
    study = quickstart()
    sets = (("environment.python", "/usr/bin/python3"), ("budget.study.max_usd", 5), ("trainer.repa.enabled", False))
    runs = tuple(replace(run, sets=sets) for run in study.runs)
    assert "Declared without effect" not in render(replace(study, runs=runs))["report.md"]
    alone = replace(study.runs[3], sets=(("trainer.batch", 8),), config={**study.runs[3].config, "trainer.batch": 8})
    report = render(replace(study, runs=(study.runs[0], alone)))["report.md"]
    assert "| trainer.batch | 16 | 8 | no: set for one of the two launches |" in report


def test_renting_and_giving_back_have_a_line_each() -> None:
    spoken = [("renting:ordered", 1), ("renting:refused", 2), ("renting:refused", 2), ("rented", 1),
              ("renting:ready", 1), ("released", 1), ("report", None)]  # fmt: skip
    events = tuple(EventView(float(n), what, f"why {n}", number=n, lease=one) for n, (what, one) in enumerate(spoken))
    foreign = EventView(9.0, "released", BY_THE_TRAINER, announced=True)
    run = replace(quickstart().runs[0], events=(foreign,))
    lines = happenings(replace(study_of(run), events=events)).lines
    assert [line.partition("the study: ")[2] for line in lines] == [
        "renting:ordered: why 0", "renting:refused: why 2 (the last of 2)", "rented: why 3", "renting:ready: why 4",
        "released: why 5",
    ]  # fmt: skip


# ---- from the database -----------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredStudy]:
    found = StoredStudy(Home(tmp_path / "runs"))
    yield found
    found.close()


def test_the_view_knows_the_launch_the_machine_and_the_words_of_the_process(stored: StoredStudy) -> None:
    declared, given = ("trainer.steps", 7), [("environment.python", "/usr/bin/python3"), ("trainer.steps", 9)]
    arm = dataclasses.replace(
        command_arm(), changes=(declared, *given),
        origins={"changes.trainer.steps": ("a.yaml", 3), "changes.environment.python": ("--set", None)},
    )  # fmt: skip
    wanted = dataclasses.replace(Wanted(), gpu_names=("RTX 4090",), hours=1.0, is_verified=False).to_json()
    run = stored.run(arm, provider="vast", wanted={"wanted": wanted})
    plain = stored.run(command_arm(arm="B"), launch=77)
    lease = {
        "id": 1, "provider": "vast", "label": "l", "host": "4711", "state": "owned", "price_usd_per_h": 1.0,
        "created": 0.0,
    }  # fmt: skip
    payload = {"slots": 4, "priority": 0, "share_gpus": True, "hosts": [], "fresh": False}
    with stored.session.transaction() as connection:
        connection.execute(insert(tables.leases).values(**lease))
        connection.execute(insert(tables.requests).values(id=1, time=0.0, kind="launch", payload=payload))
    slot = {**SLOT, "gpu_uuids": ["GPU-1"], "vram_mib": 24564}
    stored.attempt(run, 1, started=3.0, ended=9.0, slot=slot)
    with stored.session.transaction() as connection:
        changes.add_event(connection, 4.0, "started", BY_THE_TRAINER, study="trial", run=run, attempt=1, data=SAID)
        changes.add_event(connection, 5.0, "released", "given back", study="trial", data={"lease": 1})
    with reading(stored.home) as connection:
        view = build_study_view(connection, stored.home, "trial")
    found, other = view.runs
    assert other.run == plain[-8:]
    assert (found.changes, found.sets) == ((declared,), tuple(given))
    assert found.launch == LaunchView(
        "vast", ("--slots", "4", "--share-gpus", "--gpu", "RTX 4090", "--hours", "1", "--unverified")
    )
    assert other.launch == LaunchView("local", is_known=False)
    (one,) = found.attempts
    assert (one.provider, one.host, one.said["python"], one.place["gpus"]) == ("vast", "4711", "3.11.2", 1)
    assert [(event.what, event.lease) for event in view.events] == [("released", 1)]


def test_the_list_of_hosts_tells_the_interpreter_of_a_run_over_ssh(stored: StoredStudy) -> None:
    run = stored.run(command_arm(), provider="ssh")
    stored.attempt(run, 1, started=3.0)
    with stored.session.transaction() as connection:
        connection.execute(update(tables.leases).values(provider="ssh", host="gpu-a"))
        document = {"name": "gpu-a", "python": "/usr/bin/python3"}
        connection.execute(insert(tables.hosts).values(name="gpu-a", document=document, listed=True))
    with reading(stored.home) as connection:
        (found,) = build_study_view(connection, stored.home, "trial").runs
    assert trained_on(found)["machine"] == "gpu-a (ssh)"
    assert trained_on(found)["python"] == "/usr/bin/python3, version not told"

"""What arrives at the edges and is not as it should be: odd metrics, files that start again, numbers of dead processes,
homes that may not be written. What can be used is stored, the rest is counted or told, and the others go on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

import runner.controller
import runner.follow
import runner.ingest
from provisioning.base import ProcessIdentity
from provisioning.gpus import GpuSurvey
from provisioning.local import LocalProvider
from provisioning.local_shell import LocalShell
from provisioning.processes import identity_of
from runner.clock import SystemClock
from runner.controller import Controller
from runner.detach import SUPERVISOR
from runner.errors import EXIT_INFRASTRUCTURE
from runner.home import Home
from runner.observe import look
from runner.records import RunState
from runner.schedule import Phase
from runner.store import tables
from runner.store.curves import read_curves
from runner.store.points import storable
from runner.store.session import Session
from runner.store.status import home_status
from tests.fakes.arms import command_arm
from tests.fakes.others import NOBODY, as_nobody, open_to_others
from tests.fakes.stored_study import with_primary
from tests.test_runner_memory import Bench

TENSORBOARD = {"source": "tensorboard", "path": "board"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.shell.close()
    found.stored.close()


def names_of(bench: Bench, run: str) -> set[str]:
    with bench.session.reading() as connection:
        return set(read_curves(connection, run))


def events_of(bench: Bench, what: str) -> list[Any]:
    with bench.session.reading() as connection:
        return list(connection.execute(select(tables.events).where(tables.events.c.what == what)))


def unread(bench: Bench, run: str) -> tuple[int, str]:
    """How many lines of a run were no record, as a person is told, and the first of them."""
    (entry,) = [one for study in home_status(bench.home)["studies"] for one in study["runs"] if one["run_dir"] == run]
    with bench.session.reading() as connection:
        example = connection.execute(select(tables.files.c.example).where(tables.files.c.run == run)).scalar_one()
    return entry["rejected_lines"], example


class TestNames:
    @pytest.mark.parametrize(
        ("spelt", "stored"),
        [
            (rb"half\ud800", "half?"),
            (rb"\udc80\ud83d", "??"),
            (rb"a\u0000b", "a\0b"),
            (rb"\u001b[31mred\r\n", "\x1b[31mred\r\n"),
            (b"cut \xe2\x82", "cut \N{REPLACEMENT CHARACTER}"),
            (b"", ""),
        ],
    )
    def test_an_odd_name_is_stored_and_no_other_line_is_lost(self, bench: Bench, spelt: bytes, stored: str) -> None:
        run, other = bench.run("A"), bench.run("B")
        bench.write(other, 3.0)
        bench.write(run, 1.0)
        with (bench.home.root / run / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 2, "%b": 0.25}\n' % spelt)
        bench.write(run, 0.5, start=3)
        bench.round()
        assert (bench.losses(run), bench.losses(other)) == ((1.0, 0.5), (3.0,))
        assert names_of(bench, run) == {"loss", stored}
        assert json.loads(json.dumps(home_status(bench.home)))["studies"]

    def test_two_names_that_are_stored_as_one_contradict_and_are_counted(self, bench: Bench) -> None:
        run = bench.run("A")
        (bench.home.root / run / "metrics.jsonl").write_text(r'{"step": 1, "a\ud800": 1.0, "a\ud801": 2.0}' + "\n")
        bench.round()
        with bench.session.reading() as connection:
            assert read_curves(connection, run)["a?"].values == (1.0,)
        assert unread(bench, run) == (1, "a? at step 1: 2.0 after 1.0")

    def test_an_announcement_keeps_its_place_whatever_it_is_called(self, bench: Bench) -> None:
        run = bench.run("A")
        line = rb'{"step": 2, "time": 7.5, "kind": "event", "event": "\ud800\u0007", "\udfff": "\ud800"}' + b"\n"
        (bench.home.root / run / "metrics.jsonl").write_bytes(line)
        bench.write(run, 0.5, start=3)
        bench.round()
        assert bench.losses(run) == (0.5,)
        (event,) = events_of(bench, "?\a")
        assert (event.run, event.step, event.time) == (run, 2, 7.5)

    @pytest.mark.parametrize("time", ["NaN", '"nan"'])
    def test_an_announcement_whose_time_is_none_is_dated_by_its_arrival(self, bench: Bench, time: str) -> None:
        run = bench.run("A")
        line = f'{{"step": 2, "time": {time}, "kind": "event", "event": "x"}}\n'
        (bench.home.root / run / "metrics.jsonl").write_text(line)
        bench.write(run, 0.5, start=3)
        bench.round()
        assert bench.losses(run) == (0.5,)
        assert [event.time for event in events_of(bench, "x")] == [50.0]

    @given(st.text(st.characters(exclude_categories=())))
    def test_any_text_becomes_one_that_a_database_takes_and_a_good_one_stays(self, text: str) -> None:
        found = storable(text)
        assert found.encode().decode() == found == storable(found)
        assert len(found) == len(text)
        assert all(one == other or (0xD800 <= ord(other) < 0xE000) for one, other in zip(found, text, strict=True))


def board(bench: Bench) -> tuple[str, Path]:
    """A live run that writes TensorBoard events, and the file it writes them to."""
    arm = replace(command_arm(), arm="T", metrics=TENSORBOARD, steps=100)
    run = bench.stored.run(with_primary(arm), state=RunState.RUNNING)
    identity = identity_of(os.getpid())
    assert identity is not None
    bench.stored.attempt(run, 1, phase="live", identity=asdict(identity), started=1.0)
    path = bench.home.root / run / "board" / "events.out.tfevents.1"
    path.parent.mkdir(parents=True)
    return run, path


def add_records(path: Path, *bodies: bytes) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("ab") as file:
        writer = RecordWriter(file)
        for body in bodies:
            writer.write(body)
        writer.flush()


def scalar(step: int, value: float, wall_time: float = 10.0) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag="loss", simple_value=value)])
    return bytes(Event(step=step, wall_time=wall_time, summary=summary).SerializeToString())


class TestTensorBoard:
    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (scalar(-1, 9.0), "-1 is not a step"),
            (scalar(-(2**63), 9.0), "-9223372036854775808 is not a step"),
            (scalar(2**53 + 2, 9.0), "9007199254740994 is not a step"),
        ],
    )
    def test_a_scalar_without_a_step_that_can_be_is_counted_and_the_others_are_kept(
        self, bench: Bench, body: bytes, said: str
    ) -> None:
        run, path = board(bench)
        add_records(path, scalar(1, 2.0), body, scalar(2, 1.0))
        bench.round()
        add_records(path, scalar(3, 0.5))
        bench.round()
        assert bench.losses(run) == (2.0, 1.0, 0.5)
        count, example = unread(bench, run)
        assert count == 1
        assert said in example

    def test_a_scalar_without_a_time_is_dated_by_its_arrival(self, bench: Bench) -> None:
        run, path = board(bench)
        add_records(path, scalar(1, 2.0, math.nan), scalar(2, math.nan, math.inf))
        bench.round()
        with bench.session.reading() as connection:
            curve = read_curves(connection, run)["loss"]
        assert (curve.steps, curve.times) == ((1, 2), (50.0, 50.0))
        assert math.isnan(curve.values[1])

    @pytest.mark.parametrize("body", [b"\xff\xff", b"\x1a\x02\xff\xfe"])
    def test_a_record_that_is_damaged_is_counted_and_the_others_are_kept(self, bench: Bench, body: bytes) -> None:
        run, path = board(bench)
        add_records(path, scalar(1, 2.0), body, scalar(2, 1.0))
        bench.round()
        assert bench.losses(run) == (2.0, 1.0)
        count, example = unread(bench, run)
        assert count == 1
        assert "not a TensorBoard record" in example

    def test_a_record_that_no_read_can_hold_is_counted_and_what_follows_is_kept(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.ingest.CHUNK_BYTES", 4096)
        run, path = board(bench)
        add_records(path, scalar(1, 1.0), b"p" * 5000)  # a picture, say
        bench.round()
        add_records(path, scalar(2, 2.0))
        bench.round()
        assert bench.losses(run) == (1.0, 2.0)
        rejected, example = unread(bench, run)
        assert rejected == 1
        assert "a record of 5016 bytes" in example


def test_a_run_that_never_stops_writing_does_not_hide_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.ingest, "CHUNK_BYTES", 512)
    monkeypatch.setattr(runner.follow, "ROUND_BYTES", 2048)
    chatty, *others = (bench.run(name) for name in "ABC")
    for run in others:
        bench.write(run, 0.5)
    step = 1
    for _ in range(3):
        bench.write(chatty, *[1.0] * 100, start=step)  # two rounds' worth, once a round
        step += 100
        assert bench.round(), "there is always more of it"
    assert [bench.losses(run) for run in others] == [(0.5,), (0.5,)]
    assert 0 < len(bench.losses(chatty)) < step - 1


class TestAFileThatStartsAgain:
    @pytest.mark.parametrize("how", ["emptied and seen", "shorter at once", "longer at once", "moved away"])
    def test_it_is_read_from_its_start_and_said_once(self, bench: Bench, how: str) -> None:
        run = bench.run("A")
        path = bench.home.root / run / "metrics.jsonl"
        bench.write(run, 1.0, 0.9, 0.8)
        bench.round()
        if how == "moved away":
            path.rename(path.with_suffix(".1"))
        else:
            path.write_bytes(b"")
        if how == "emptied and seen":
            bench.round()
        bench.write(run, *[0.7] * (9 if how == "longer at once" else 2), start=4)
        for _ in range(3):
            bench.round()
        bench.write(run, 0.1, start=50)
        bench.round()
        assert bench.losses(run)[:5] == (1.0, 0.9, 0.8, 0.7, 0.7)
        assert bench.losses(run)[-1] == 0.1
        (event,) = events_of(bench, "metrics_restarted")
        assert event.run == run
        assert "metrics.jsonl" in event.reason
        assert "read again from its start" in event.reason

    def test_its_unfinished_line_is_taken_once_it_is_finished_and_no_sooner(self, bench: Bench) -> None:
        run = bench.run("A")
        path = bench.home.root / run / "metrics.jsonl"
        bench.write(run, 1.0)
        for part in ('{"step": 2, "lo', 'ss": 0.9', "5}"):
            with path.open("a") as file:
                file.write(part)
            bench.round()
            assert bench.losses(run) == (1.0,)
        path.write_bytes(b"")  # the writer starts again in the middle of a line
        with path.open("a") as file:
            file.write('{"step": 2, "loss": 0.5}')
        bench.round()
        assert bench.losses(run) == (1.0,)
        with path.open("a") as file:
            file.write("\n")
        bench.round()
        assert bench.losses(run) == (1.0, 0.5)
        assert unread(bench, run) == (0, "")
        assert len(events_of(bench, "metrics_restarted")) == 1


class TestANumberOfADeadProcess:
    @pytest.mark.parametrize("phase", [Phase.INTENDED, Phase.LIVE])
    @pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "of-an-earlier-boot"}])
    def test_whoever_has_it_now_is_not_taken_for_the_attempt(
        self, tmp_path: Path, phase: Phase, change: dict[str, Any]
    ) -> None:
        """An intended attempt is known by its supervisor.json alone: its controller died before it was told."""
        ours = identity_of(os.getpid())
        assert ours is not None
        shell = LocalShell(str(SUPERVISOR))
        for identity, expected in ((ours, Phase.LIVE), (replace(ours, **change), Phase.GONE)):
            claim = {"attempt": "a", "supervisor": asdict(identity), "child": asdict(identity)}
            (tmp_path / "supervisor.json").write_text(json.dumps(claim))
            known = identity if phase is Phase.LIVE else None
            seen = look(shell, tmp_path, phase, known)
            assert (seen.phase, seen.exit, seen.orphaned) == (expected, None, False)
        shell.close()

    def test_only_the_training_is_left_when_only_its_supervisor_s_number_was_given_away(self, tmp_path: Path) -> None:
        ours = identity_of(os.getpid())
        assert ours is not None
        dead = ProcessIdentity(ours.boot_id, ours.init_start_ticks, ours.pid, 1)
        (tmp_path / "supervisor.json").write_text(json.dumps({"supervisor": asdict(dead), "child": asdict(ours)}))
        shell = LocalShell(str(SUPERVISOR))
        assert look(shell, tmp_path, Phase.LIVE, dead).orphaned
        shell.close()


class NoGpus:
    """A machine without GPUs."""

    def survey(self) -> GpuSurvey:
        return GpuSurvey(())

    def read(self, uuids: Sequence[str]) -> dict[str, str]:
        return {}


def _no_report(_home: Home, _study: str) -> Any:
    raise AssertionError("no report here")


class TestAHomeThatMayNotBeWritten:
    @pytest.fixture
    def home(self, tmp_path: Path) -> Home:
        """A home of somebody without rights, with a run that lives and one that waits."""
        folder = tmp_path / "runs"
        bench = Bench(folder)
        live = bench.run("A")
        bench.stored.run(replace(command_arm(), arm="B", steps=10), state=RunState.QUEUED)
        bench.write(live, 1.0)
        bench.shell.close()
        bench.stored.close()
        open_to_others(folder / "x")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        return bench.home

    def test_what_lives_is_followed_and_what_waits_says_why_once(self, home: Home) -> None:
        def rounds() -> bool:
            session = Session(home.database, pid=os.getpid(), now=1.0)
            for path in (home.root / "trial", home.root):
                path.chmod(0o555)
            machine = LocalProvider(str(SUPERVISOR), {}, driver=NoGpus(), cores=lambda: (0, 1))
            controller = Controller(home, session, {"local": machine}, SystemClock(), {}, _no_report)
            assert controller.step().open
            with next(home.root.glob("trial/A*/metrics.jsonl")).open("a") as file:
                file.write('{"step": 2, "loss": 0.5}\n')
            for _ in range(3):
                assert controller.step().open
            controller.close()
            return True

        assert as_nobody(rounds)
        live, waiting = (run for study in home_status(home)["studies"] for run in study["runs"])
        assert (live["state"], live["points"]) == ("running", 2)
        assert (waiting["state"], waiting["attempts"]) == ("staging", 1), "it goes on once it can be written again"
        session = Session(home.database, pid=os.getpid(), now=1.0)
        with session.reading() as connection:
            (event,) = connection.execute(select(tables.events).where(tables.events.c.what == "trouble")).all()
        session.close()
        assert event.run == waiting["run_dir"]
        assert event.reason == f"this machine cannot write {home.root}/{event.run}/config.yaml: Permission denied"

    def test_a_database_that_may_only_be_read_is_named_and_nothing_is_changed(
        self, home: Home, capfd: pytest.CaptureFixture[str]
    ) -> None:
        os.chown(home.database, 0, 0)
        home.database.chmod(0o644)
        before = home.database.read_bytes()
        arguments = ["--home", str(home.root)]
        assert as_nobody(lambda: runner.controller.main(arguments) == EXIT_INFRASTRUCTURE)
        said = capfd.readouterr().err
        assert f"runner.controller: {home.database}: the database cannot be written" in said
        assert "Traceback" not in said
        assert home.database.read_bytes() == before

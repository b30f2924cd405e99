"""Metrics files become points exactly once, whatever is in them and however they arrive."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.ingest import CHUNK_BYTES, End, Position, Tails, Taken, take
from runner.metric_formats import MAX_LINE_BYTES, Parsed, Record, format_for


def stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read(path: str, offset: int, limit: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(limit)


def drain(
    position: Position, metrics: Mapping[str, Any] | None = None, end: End | None = None
) -> tuple[list[Record], Position]:
    records: list[Record] = []
    while (taken := take(position, stamp, read, format_for(metrics), end)) is not None:
        if taken.position == position:
            break
        records += taken.each()
        position = taken.position
    return records, position


def records_of(parsed: Parsed) -> list[Record]:
    """Everything that was parsed, one by one, whatever form it came in."""
    return list(Taken(parsed.records, Position("m"), blocks=parsed.blocks).each())


def line(step: int, **values: Any) -> bytes:
    return (json.dumps({"step": step, "time": 1.0, "kind": "train", **values}) + "\n").encode()


def values_of(records: list[Record], name: str) -> list[tuple[int, float]]:
    return [(record.step, record.values[name]) for record in records if name in record.values]


def test_a_missing_file_and_a_file_without_news_are_none(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.jsonl")
    assert take(Position(path), stamp, read, format_for(None)) is None
    Path(path).write_bytes(line(1, loss=2.0))
    records, position = drain(Position(path))
    assert values_of(records, "loss") == [(1, 2.0)]
    assert take(position, stamp, read, format_for(None)) is None


def test_an_unfinished_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = line(1, loss=2.0)
    path.write_bytes(whole[:-5])
    records, position = drain(Position(str(path)))
    assert (records, position.offset, position.rejected) == ([], 0, 0)
    path.write_bytes(whole)
    records, position = drain(position)
    assert values_of(records, "loss") == [(1, 2.0)]
    assert position.offset == len(whole)


@given(
    steps=st.lists(st.integers(0, 50), max_size=30),
    cuts=st.lists(st.integers(1, 200), min_size=1, max_size=40),
    junk=st.binary(max_size=20).filter(lambda data: b"\n" not in data and b"\r" not in data),
)
def test_any_cutting_of_the_bytes_gives_the_same_records(steps: list[int], cuts: list[int], junk: bytes) -> None:
    data = b"".join(line(step, loss=step / 7) for step in steps) + junk + b"\n" + line(99, loss=0.5)
    parse = format_for(None)

    def arriving(position: Position, size: int) -> Taken | None:
        return take(position, lambda _: (7, size, 0), lambda _p, at, limit: data[at : min(size, at + limit)], parse)

    position, records, size = Position("m"), [], 0
    for cut in [*cuts, len(data)]:
        size = min(len(data), size + cut)
        taken = arriving(position, size)
        if taken is not None:
            records += taken.each()
            position = taken.position
    assert values_of(records, "loss") == [(step, step / 7) for step in steps] + [(99, 0.5)]
    assert position.offset == len(data)


ODD_LINES = st.one_of(
    st.sampled_from(
        [
            "", "   ", "{}", "garbage", "[1]", '{"step": 1}, {"step": 2}', '{"step": 1, "a": [{"b": 1}', '{"c": 1}]}',
            '{"step": 1, "a": "x}', '{y"}', '{"step": 2, "loss": 1.0,}', '{"step": 1.5, "loss": 1.0}', "{", "}", "[{",
            '{"step": -1, "loss": 1.0}', '{"step": 9007199254740993, "loss": 1.0}', '{"step": true}', '{"loss": 1.0}',
            '{"step": 3, "loss": 1, "note": "a{b}"}', '{"step": 4, "time": null, "loss": 1}', ' {"step": 5, "loss": 1}',
            '{"step": 6, "loss": 1.0}\r', '{"step": 7, "loss": NaN, "time": Infinity}', '{"step": 8, "x": "-inf"}',
            '{"step": 9, "kind": "event", "event": "resumed"}', '{"step": 9, "kind": "val", "val/a": 1e400}',
            '{"step": 10, "kind": ["event"], "loss": 2.0}', '{"step": "11", "loss": 2.0}', '{"step": 12, "x": {}}',
        ]
    ),
    st.builds(
        lambda step, names: json.dumps({"step": step, "time": 2.5, **dict.fromkeys(names, 0.5)}),
        st.integers(0, 9),
        st.lists(st.sampled_from(["loss", "rate", "val/a"]), unique=True),
    ),
)  # fmt: skip


@given(st.lists(ODD_LINES, max_size=12))
def test_many_lines_at_once_say_what_each_says_alone(lines: list[str]) -> None:
    parse = format_for(None)
    together = parse("".join(f"{text}\n" for text in lines).encode(), {})
    alone = [parse(f"{text}\n".encode(), {}) for text in lines]
    points = [one for part in alone for one in records_of(part) if one.event is None and one.values]
    events = [one for part in alone for one in part.records if one.event is not None]
    assert repr([one for one in records_of(together) if one.event is None and one.values]) == repr(points)
    assert repr([one for one in together.records if one.event is not None]) == repr(events)
    assert together.lines == sum(part.lines for part in alone)
    assert list(together.rejected) == [reason for part in alone for reason in part.rejected]
    assert together.consumed == sum(part.consumed for part in alone)


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1, loss=1.0) + b'{"step": 2')
    reads: list[int] = []

    def counted(name: str, offset: int, limit: int) -> bytes:
        reads.append(offset)
        return read(name, offset, limit)

    tails = Tails()

    def take_one() -> Taken | None:
        return tails.take("r", 1, str(path), lambda: Position(str(path)), stamp, counted, format_for(None))

    first = take_one()
    assert first is not None
    assert take_one() is not None, "what was not kept is taken again"
    tails.keep("r", 1, first, first.position)
    assert [take_one() for _ in range(5)] == [None] * 5
    assert reads == [0, 0]
    with path.open("ab") as file:
        file.write(b', "loss": 2.0}\n')
    second = take_one()
    assert second is not None
    assert values_of(list(second.each()), "loss") == [(2, 2.0)]
    assert reads == [0, 0, 0, first.position.offset], "its beginning is compared, and what is new is read"
    tails.keep("r", 1, second, second.position)
    path.write_bytes(b"")
    third = take_one()
    assert third is not None
    assert "shrank" in third.restarted
    path.unlink()
    assert take_one() is None


def test_a_huge_line_is_rejected_once_and_what_follows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1, loss=1.0) + b"x" * (CHUNK_BYTES + MAX_LINE_BYTES + 17))
    records, position = drain(Position(str(path)))
    assert position.skipping
    with path.open("ab") as file:
        file.write(b"the end of it\n" + line(2, loss=3.0))
    more, position = drain(position)
    assert values_of(records + more, "loss") == [(1, 1.0), (2, 3.0)]
    assert position.rejected == 1
    assert not position.skipping


def test_a_file_that_shrank_or_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1, loss=1.0) + line(2, loss=2.0))
    _, position = drain(Position(str(path)))
    path.write_bytes(line(1, loss=1.0))
    taken = take(position, stamp, read, format_for(None))
    assert taken is not None
    assert "shrank" in taken.restarted
    other = tmp_path / "new"
    other.write_bytes(line(5, loss=5.0) * 3)
    os.replace(other, path)
    again = take(taken.position, stamp, read, format_for(None))
    assert again is not None
    assert "replaced" in again.restarted
    assert again.position.restarts == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e400", math.inf), ('"nan"', math.nan), ('"inf"', math.inf), ('"-inf"', -math.inf), ("NaN", math.nan)],
)
def test_values_that_are_not_finite_are_kept(tmp_path: Path, text: str, value: float) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 3, "loss": {text}}}\n')
    records, position = drain(Position(str(path)))
    ((step, found),) = values_of(records, "loss")
    assert step == 3
    assert found == value or (math.isnan(found) and math.isnan(value))
    assert position.rejected == 0


@pytest.mark.parametrize(
    "bad",
    ["garbage", "[1, 2]", '{"loss": 1}', '{"step": 1.5, "loss": 1}', '{"step": -1}', '{"step": true}', "[" * 5000],
)
def test_lines_that_are_no_records_are_counted_with_an_example(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f"{bad}\n" + line(1, loss=1.0).decode())
    records, position = drain(Position(str(path)))
    assert values_of(records, "loss") == [(1, 1.0)]
    assert position.rejected == 1
    assert position.example


def test_notes_of_a_script_are_not_metrics_and_events_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2, "host": "gpu-1", "tags": [1], "done": true}\n'
        '{"step": 1, "kind": "event", "event": "repa_off", "time": 5}\n'
    )
    records, _ = drain(Position(str(path)))
    assert records[0].values == {"loss": 2.0}
    assert records[1].event is not None
    assert records[1].event["event"] == "repa_off"


def test_csv_names_its_columns_once_and_leaves_empty_cells_out(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("epoch,step,loss,val\n0,1,2.5,\n0,2,2.0,nan\n0,3\n")
    metrics = {"source": "csv", "path": "log.csv"}
    records, position = drain(Position(str(path)), metrics)
    assert values_of(records, "loss") == [(1, 2.5), (2, 2.0)]
    assert [step for step, value in values_of(records, "val") if math.isnan(value)] == [2]
    assert position.rejected == 1
    with path.open("a") as file:
        file.write("0,4,1.0,9\n")
    more, _ = drain(position, metrics)
    assert values_of(more, "loss") == [(4, 1.0)]


def test_a_pattern_reads_progress_bars_and_remembers_what_it_could_not_read(tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    path.write_bytes(
        b"\x1b[31mstarting\x1b[0m\nstep 1/9 loss=2.0\rstep 2/9 loss=1e400\rstep 3/9 loss=oops\nstep 4/9 lo"
    )
    metrics = {"source": "regex", "pattern": r"step (?P<step>\d+)/\d+ loss=(?P<loss>\S+)"}
    records, position = drain(Position(str(path)), metrics)
    assert values_of(records, "loss") == [(1, 2.0), (2, math.inf)]
    assert position.rejected == 1
    assert position.state is not None
    assert position.state["matched"] == 3
    assert "starting" in position.state["unmatched"]


def test_tensorboard_event_files_are_read_record_by_record(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    path = tmp_path / "events.out.tfevents.1"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for step in range(3):
            summary = Summary(value=[Summary.Value(tag="loss", simple_value=step + 0.5)])
            writer.write(Event(step=step, wall_time=10.0 + step, summary=summary).SerializeToString())
        writer.flush()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    metrics = {"source": "tensorboard", "path": "."}
    records, position = drain(Position(str(path)), metrics)
    assert values_of(records, "loss") == [(0, 0.5), (1, 1.5)]
    path.write_bytes(whole)
    more, _ = drain(position, metrics)
    assert values_of(more, "loss") == [(2, 2.5)]
    assert more[0].time == 12.0


def test_a_line_that_its_reader_cannot_take_is_rejected_and_the_next_one_is_read() -> None:
    parsed = format_for({"source": "csv", "path": "m.csv"})(b"step,loss\n1,0.5\n2,0\r.5\n3,0.25\n", {})
    assert values_of(records_of(parsed), "loss") == [(1, 0.5), (3, 0.25)]
    assert len(parsed.rejected) >= 1


CSV = {"source": "csv", "path": "m"}
REGEX = {"source": "regex", "pattern": r"step (?P<step>\d+) loss (?P<loss>\S+)"}


class TestTheLastLine:
    """A line without an end waits while its writer lives; afterwards it counts or is counted, never passed over."""

    @pytest.mark.parametrize(
        ("metrics", "whole"),
        [(None, b'{"step": 2, "loss": 0.5}'), (CSV, b"step,loss\n2,0.5")],
    )
    def test_of_a_process_that_ended_well_it_counts(
        self, tmp_path: Path, metrics: dict[str, Any] | None, whole: bytes
    ) -> None:
        path = tmp_path / "m"
        path.write_bytes(whole)
        records, position = drain(Position(str(path)), metrics)
        assert records == []
        records, position = drain(position, metrics, End.COMPLETE)
        assert values_of(records, "loss") == [(2, 0.5)]
        assert (position.offset, position.rejected) == (len(whole), 0)
        assert take(position, stamp, read, format_for(metrics), End.COMPLETE) is None

    @pytest.mark.parametrize(("metrics", "cut"), [(CSV, b"step,loss\n1,0.5\n2,0.1"), (REGEX, b"step 2 loss 0.1")])
    def test_of_a_killed_process_a_number_may_be_cut_short_so_it_is_rejected(
        self, tmp_path: Path, metrics: dict[str, Any], cut: bytes
    ) -> None:
        path = tmp_path / "m"
        path.write_bytes(cut)  # it was about to write 0.1234
        records, position = drain(Position(str(path)), metrics, End.CUT)
        assert (2, 0.1) not in values_of(records, "loss")
        assert (position.offset, position.rejected) == (len(cut), 1)
        assert "cut off at its end" in position.example

    @pytest.mark.parametrize("end", End)
    def test_a_pattern_knows_no_record_without_a_line_end_and_words_that_are_none_are_not_missed(
        self, tmp_path: Path, end: End
    ) -> None:
        path = tmp_path / "m"
        for text, rejected in ((b"step 1 loss 1\nstep 2 loss 0.5", 1), (b"step 1 loss 1\n 40%|####", 0)):
            path.write_bytes(text)
            records, position = drain(Position(str(path)), REGEX, end)
            assert values_of(records, "loss") == [(1, 1.0)]
            assert (position.offset, position.rejected) == (len(text), rejected)

    def test_a_json_object_shows_by_itself_that_it_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "m"
        path.write_bytes(line(1, loss=1.0) + line(2, loss=2.0).rstrip())
        records, position = drain(Position(str(path)), None, End.CUT)
        assert values_of(records, "loss") == [(1, 1.0), (2, 2.0)]
        path.write_bytes(line(1, loss=1.0) + line(2, loss=2.0)[:-6])
        records, position = drain(Position(str(path)), None, End.CUT)
        assert values_of(records, "loss") == [(1, 1.0)]
        assert position.rejected == 1

    def test_an_attempt_that_goes_on_in_the_same_file_loses_nothing_to_it(self, tmp_path: Path) -> None:
        path = tmp_path / "m"
        path.write_bytes(b'{"step": 1, "lo')
        _, position = drain(Position(str(path)), None, End.CUT)
        path.write_bytes(path.read_bytes() + line(1, loss=4.0))
        records, position = drain(position)
        assert values_of(records, "loss") == [(1, 4.0)]
        assert position.rejected == 1

    def test_a_look_at_an_unchanged_file_finds_it_once_the_writer_has_ended(self, tmp_path: Path) -> None:
        path = tmp_path / "m"
        path.write_bytes(b'{"step": 2, "loss": 0.5}')
        tails, parse = Tails(), format_for(None)

        def look(end: End | None) -> Taken | None:
            return tails.take("r", 1, str(path), lambda: Position(str(path)), stamp, read, parse, end)

        first = look(None)
        assert first is not None
        assert not list(first.each())
        tails.keep("r", 1, first, first.position)
        assert look(None) is None
        taken = look(End.COMPLETE)
        assert taken is not None
        assert [record.step for record in taken.each()] == [2]
        tails.keep("r", 1, taken, taken.position)
        assert look(End.COMPLETE) is None

    def test_of_two_points_of_a_step_the_first_holds_whether_the_second_has_an_end_or_not(self, tmp_path: Path) -> None:
        path = tmp_path / "m"
        path.write_bytes(b'not json\n{"step": 5, "a": 1.0}\n{"step": 5, "a": 2.0}')
        records, _ = drain(Position(str(path)), None, End.COMPLETE)
        assert values_of(records, "a") == [(5, 1.0), (5, 2.0)]


def test_a_chunk_that_is_one_long_bar_hides_nothing_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.ingest.CHUNK_BYTES", 256 * 1024)
    path = tmp_path / "m"
    path.write_bytes(line(1, loss=1.0) + b"40%|###\r" * 60_000 + b"\n" + line(2, loss=2.0))
    records, position = drain(Position(str(path)))
    assert values_of(records, "loss") == [(1, 1.0), (2, 2.0)]
    assert position.rejected >= 1

"""A folder of files is brought to a host whole, or has no name there."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from provisioning.base import HostLost, StagingFailed
from provisioning.questions import PIECE_BYTES, carry_out
from provisioning.sending import sending_steps
from provisioning.ssh_connection import Deadlines
from tests.fakes.asked_agent import AskedAgent, files_of_at_most, often_cut, tree
from tests.fakes.sshd import Sshd


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint: a file of several pieces, a small one, one of no bytes, one in a folder of its own."""
    found = tmp_path / "here" / "step_000500"
    (found / "inner").mkdir(parents=True)
    (found / "model.safetensors").write_bytes(random.Random(0).randbytes(PIECE_BYTES + 17))
    (found / "state.json").write_text("{}")
    (found / "empty").touch()
    (found / "inner" / "more").write_bytes(b"more")
    return found


def test_all_of_it_arrives_and_nothing_travels_twice(folder: Path, tmp_path: Path) -> None:
    agent, there = AskedAgent(), tmp_path / "there" / "checkpoints" / "step_000500"
    sent = carry_out(sending_steps(folder, str(there)), agent.ask)
    assert tree(there) == tree(folder)
    assert sent == sum(len(data) for data in tree(folder).values() if data is not None)
    assert [path.name for path in there.parent.iterdir()] == ["step_000500"]


def test_a_lost_connection_costs_no_more_than_a_piece(folder: Path, tmp_path: Path) -> None:
    agent, there = AskedAgent(), tmp_path / "there" / "step_000500"
    draw, travelled = random.Random(1), 0

    def ask(kind: Any, verb: str, *arguments: Any) -> Any:
        nonlocal travelled
        travelled += len(arguments[3]) if verb == "code_piece" else 0
        return agent.ask(kind, verb, *arguments)

    agent.cut = lambda: draw.choice(["", "", "", "", "", "before", "after"])
    tries = 0
    while True:
        tries += 1
        try:
            carry_out(sending_steps(folder, str(there)), ask)
            break
        except HostLost:
            assert not there.exists() or tree(there) == tree(folder)
    assert tree(there) == tree(folder)
    assert tries > 2
    whole = sum(len(data) for data in tree(folder).values() if data is not None)
    assert travelled < 1.4 * (whole + tries * PIECE_BYTES)


def test_what_stands_there_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there" / "step_000500"
    there.mkdir(parents=True)
    (there / "state.json").write_text("its own")
    carry_out(sending_steps(folder, str(there)), AskedAgent().ask)
    assert tree(there) == {"state.json": b"its own"}


def test_a_full_disk_is_named_and_the_folder_has_no_name(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there" / "step_000500"
    with files_of_at_most(PIECE_BYTES // 2), pytest.raises(StagingFailed, match=r"model\.safetensors.*kept there"):
        carry_out(sending_steps(folder, str(there)), AskedAgent().ask)
    assert not there.exists()
    carry_out(sending_steps(folder, str(there)), AskedAgent().ask)
    assert tree(there) == tree(folder)


def test_torn_bytes_are_sent_again(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there" / "step_000500"
    torn: list[Path] = []

    def tear(verb: str, value: Any) -> Any:
        parts = sorted((there.parent / ".coming-step_000500").glob(".*.part"))
        if verb == "code_piece" and value["received"] >= PIECE_BYTES and not torn:
            torn.extend(parts)
            data = parts[0].read_bytes()
            parts[0].write_bytes(b"x" + data[1:])
        return value

    carry_out(sending_steps(folder, str(there)), AskedAgent(tear).ask)
    assert torn
    assert tree(there) == tree(folder)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with ExitStack() as stack:
        found = Sshd(tmp_path / "sshd")
        stack.callback(found.stop)
        found.start()
        yield found


def test_over_a_real_connection_that_is_often_cut(folder: Path, tmp_path: Path, sshd: Sshd) -> None:
    agent, there = sshd.agent(tmp_path / "known_hosts", Deadlines(5, 5)), tmp_path / "there" / "step_000500"
    ask, lost = often_cut(agent.ask, sshd, 3, 0.5)
    for _ in range(60):
        try:
            carry_out(sending_steps(folder, str(there)), ask)
        except HostLost:
            continue
        if lost:
            break
        shutil.rmtree(there)  # luck: once more
    agent.close()
    assert lost
    assert tree(there) == tree(folder)

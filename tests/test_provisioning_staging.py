"""The code on a host is the code that was frozen, wherever the connection was lost on the way."""

from __future__ import annotations

import base64
import fcntl
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning import agent_code, staging
from provisioning.base import HostLost, StagingFailed
from provisioning.questions import PIECE_BYTES, carry_out
from provisioning.ssh_connection import Deadlines
from provisioning.staging import CodeArchive, Staged, code_archive, staging_steps
from tests.fakes.asked_agent import AskedAgent, files_of_at_most, often_cut, tree
from tests.fakes.sshd import Sshd

HASH = "0123456789abcdef" * 4
NAMES = st.sampled_from(["train.py", "a/train.py", "a/b/c.py", "a/run.sh", "d/e.bin", "ü.py"])
TREES = st.dictionaries(NAMES, st.tuples(st.binary(max_size=300), st.booleans()), max_size=6)

SEED = 1
"""Where the real connection is cut."""


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def frozen(folder: Path, files: dict[str, tuple[bytes, bool]]) -> Path:
    root = folder / HASH
    (root / "empty").mkdir(parents=True)
    for name, (data, is_executable) in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        (root / name).chmod(0o700 if is_executable else 0o600)
    return root


def large(folder: Path, size: int = 3 * 2**20) -> Path:
    """Code that does not get smaller by packing."""
    half = random.Random(3).randbytes(size // 2)
    return frozen(folder, {"a/one.bin": (half, False), "two.bin": (half[::-1], False), "run.sh": (b"#!", True)})


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def stage(ask: Any, archive: CodeArchive, there: Path) -> Staged:
    return carry_out(staging_steps(archive, str(there)), ask)


def stubbornly(ask: Any, archive: CodeArchive, there: Path, tries: int = 300) -> Staged:
    for _ in range(tries):
        try:
            return stage(ask, archive, there)
        except HostLost:
            continue
    raise AssertionError(f"not there after {tries} connections")


# ---- what arrives ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)  # each waits for the disk many times
@given(files=TREES, seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.2, 0.6]))
def test_what_arrives_is_what_was_sent_wherever_connections_are_lost(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[bytes, bool]], seed: int, share: float
) -> None:
    base, draw, agent = tmp_path_factory.mktemp("stage"), random.Random(seed), AskedAgent()
    root = frozen(base, files)
    agent.cut = lambda: draw.choice(["before", "after"]) if draw.random() < share else ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "PIECE_BYTES", 100)
        patch.setattr(agent_code, "STEP_FILES", 2)
        staged = stubbornly(agent.ask, code_archive(root), base / "there")
    assert tree(Path(staged.folder)) == tree(root)
    assert modes(Path(staged.folder)) == modes(root)
    assert {path.name for path in (base / "there").iterdir()} == {HASH, f".{HASH}.json"}
    shutil.rmtree(base)


def test_a_real_connection_that_is_cut_again_and_again(tmp_path: Path, cleanup: ExitStack) -> None:
    sshd = Sshd(tmp_path / "sshd")
    cleanup.callback(sshd.stop)
    sshd.start()
    channel = sshd.agent(tmp_path / "known_hosts", Deadlines(connect_s=10.0, answer_s=20.0))
    cleanup.callback(channel.close)
    root = large(tmp_path)
    archive = code_archive(root)
    cutting, lost = often_cut(channel.ask, sshd, SEED, share=0.5)
    total = 0

    def counted(kind: Any, verb: str, *arguments: Any) -> Any:
        nonlocal total
        total += len(arguments[3]) * 3 // 4 if verb == "code_piece" else 0
        return cutting(kind, verb, *arguments)

    there = tmp_path / "there"
    staged = stubbornly(counted, archive, there)
    assert tree(Path(staged.folder)) == tree(root)
    assert len(lost) >= 2
    # Every lost question costs at most the piece that it carried.
    assert total <= len(archive.data) + (len(lost) + 1) * PIECE_BYTES


def test_it_is_sent_once_and_answered_in_one_question_after_that(tmp_path: Path) -> None:
    agent, root = AskedAgent(), large(tmp_path)
    archive = code_archive(root)
    first = stage(agent.ask, archive, tmp_path / "there")
    agent.verbs.clear()
    assert first.sent_bytes == len(archive.data)
    assert stage(agent.ask, archive, tmp_path / "there") == Staged(first.folder, 0)
    assert agent.verbs == ["code_state"]


def test_the_same_code_gives_the_same_archive_whatever_its_times(tmp_path: Path) -> None:
    root = large(tmp_path, 1000)
    before = code_archive(root)
    os.utime(root / "run.sh", (5, 5))
    assert code_archive(root) == before


def test_what_a_run_left_beside_the_code_stays_here(tmp_path: Path) -> None:
    root = frozen(tmp_path, {"a/train.py": (b"1", False)})
    (root / "a" / "__pycache__").mkdir()
    (root / "a" / "__pycache__" / "train.pyc").write_bytes(b"x")
    (root / "result.csv").write_bytes(b"x")
    everything = code_archive(root)
    assert everything.files == 2
    named = stage(AskedAgent().ask, code_archive(root, ["a/train.py"]), tmp_path / "there")
    assert tree(Path(named.folder)) == {"a": None, "a/train.py": b"1"}


# ---- what is torn or changed there -----------------------------------------------------------------------------------


def test_an_archive_that_is_torn_there_is_sent_again(tmp_path: Path) -> None:
    archive, there = code_archive(large(tmp_path)), tmp_path / "there"
    there.mkdir()
    (there / f".{archive.hash}.part").write_bytes(bytes(len(archive.data)))
    staged = stage(AskedAgent().ask, archive, there)
    assert staged.sent_bytes == len(archive.data)
    assert tree(Path(staged.folder)) == tree(tmp_path / HASH)


def test_a_half_unpacked_folder_is_replaced(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / HASH).mkdir(parents=True)
    (there / HASH / "two.bin").write_bytes(b"half of it")
    staged = stage(AskedAgent().ask, code_archive(large(tmp_path)), there)
    assert tree(Path(staged.folder)) == tree(tmp_path / HASH)


def test_files_that_are_damaged_between_two_steps_of_unpacking_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_code, "STEP_FILES", 1)
    there, damaged = tmp_path / "there", []

    def damage(verb: str, value: Any) -> Any:
        found = list(there.glob(".new-*/run.sh"))
        if verb == "code_unpack" and found and not damaged:
            damaged.append(found[0].write_bytes(b"other"))
        return value

    staged = stage(AskedAgent(damage).ask, code_archive(large(tmp_path)), there)
    assert damaged
    assert tree(Path(staged.folder)) == tree(tmp_path / HASH)


def test_code_that_was_changed_there_is_named_and_left_alone(tmp_path: Path) -> None:
    archive, there = code_archive(large(tmp_path)), tmp_path / "there"
    staged = stage(AskedAgent().ask, archive, there)
    (Path(staged.folder) / "run.sh").write_bytes(b"rm")
    with pytest.raises(StagingFailed, match=r"changed there .*'run\.sh'"):
        stage(AskedAgent().ask, archive, there)
    assert (Path(staged.folder) / "run.sh").read_bytes() == b"rm"
    (Path(staged.folder) / "more.csv").write_bytes(b"what a run writes beside its code is not looked at")
    (Path(staged.folder) / "run.sh").write_bytes(b"#!")
    assert stage(AskedAgent().ask, archive, there).sent_bytes == 0


def test_a_full_disk_is_told_and_what_arrived_is_kept(tmp_path: Path) -> None:
    archive, there = code_archive(large(tmp_path)), tmp_path / "there"
    with files_of_at_most(2**20), pytest.raises(StagingFailed, match=r"File too large; 1,048,576 of .* are kept"):
        stage(AskedAgent().ask, archive, there)
    staged = stage(AskedAgent().ask, archive, there)
    assert staged.sent_bytes == len(archive.data) - 2**20


def test_a_disk_that_fills_up_while_it_is_unpacked_keeps_the_archive(tmp_path: Path) -> None:
    archive, there = code_archive(frozen(tmp_path, {"zeros": (bytes(2**20), False)})), tmp_path / "there"
    with files_of_at_most(2**19), pytest.raises(StagingFailed, match=r"cannot unpack the code: .*too large"):
        stage(AskedAgent().ask, archive, there)
    assert [path.name for path in there.iterdir()] == [f".{archive.hash}.part"]
    assert stage(AskedAgent().ask, archive, there).sent_bytes == 0


def test_a_piece_never_leaves_a_hole_before_it(tmp_path: Path) -> None:
    for offset, data, received in ((5, b"late", 0), (0, b"abc", 3), (1, b"bcdef", 6), (0, b"a", 6), (7, b"h", 6)):
        told = agent_code.code_piece(str(tmp_path), "f" * 64, offset, base64.b64encode(data).decode())
        assert told == {"received": received, "problem": ""}
    assert (tmp_path / f".{'f' * 64}.part").read_bytes() == b"abcdef"


def test_while_an_earlier_connection_is_still_at_it_the_question_is_lost(tmp_path: Path) -> None:
    archive, there = code_archive(large(tmp_path)), tmp_path / "there"
    there.mkdir()
    with (there / f".{archive.hash}.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HostLost, match="earlier connection"):
            stage(AskedAgent().ask, archive, there)
    assert stage(AskedAgent().ask, archive, there).sent_bytes == len(archive.data)


# ---- what cannot be sent, what cannot be believed --------------------------------------------------------------------


def test_only_files_and_folders_are_sent(tmp_path: Path) -> None:
    root = large(tmp_path, 1000)
    (root / "leads_out").symlink_to("/etc/passwd")
    with pytest.raises(StagingFailed, match="leads_out is neither a file nor a folder"):
        code_archive(root)
    (root / "leads_out").unlink()
    with pytest.raises(StagingFailed, match=r"gone\.py is frozen code and not there"):
        code_archive(root, ["gone.py"])
    with pytest.raises(StagingFailed, match="is no hash of code"):
        code_archive(root / "a")


def test_too_much_is_refused(tmp_path: Path) -> None:
    root = frozen(tmp_path, {"data.bin": (b"", False)})
    os.truncate(root / "data.bin", staging.MOST_CODE_BYTES + 1)
    with pytest.raises(StagingFailed, match="at most 64 MiB in 5000 files can be sent"):
        code_archive(root)


@pytest.mark.parametrize(
    ("verb", "value"),
    [
        ("code_piece", {"received": 1, "problem": ""}),
        ("code_unpack", {"following": 0, "problem": ""}),
        ("code_state", {"is_there": False, "changed": [], "received": -1}),
        ("code_state", "yes"),
    ],
)
def test_a_host_that_tells_nonsense_is_lost_and_asked_no_further(tmp_path: Path, verb: str, value: Any) -> None:
    agent = AskedAgent(lambda asked, told: value if asked == verb else told)
    with pytest.raises(HostLost):
        stage(agent.ask, code_archive(large(tmp_path)), tmp_path / "there")
    assert agent.verbs.count(verb) == 1


def test_a_host_that_finds_everything_torn_is_given_up(tmp_path: Path) -> None:
    agent, archive = AskedAgent(), code_archive(large(tmp_path, 1000))
    with pytest.raises(StagingFailed, match="is its disk in order"):
        stage(agent.ask, replace(archive, hash="f" * 64), tmp_path / "there")
    assert agent.verbs.count("code_unpack") == 2

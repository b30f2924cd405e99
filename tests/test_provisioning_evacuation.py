"""What comes home is what lay there, wherever the connection was lost; and a hostile host gains nothing."""

from __future__ import annotations

import base64
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning import agent_files, evacuation, incoming
from provisioning.base import HostLost
from provisioning.evacuation import Evacuated, Evacuation
from provisioning.questions import PIECE_BYTES, carry_out
from provisioning.run_checkpoints import importance, kept_checkpoints, left_behind
from provisioning.run_paths import OURS
from provisioning.ssh_connection import Deadlines
from tests.fakes.asked_agent import AskedAgent, files_of_at_most, often_cut, tree
from tests.fakes.sshd import Sshd

NAMES = st.sampled_from(
    ["conf.yaml", "attempt-1/metrics.jsonl", "attempt-1/exit.json", "validation/step_000002/images/ema/ü.png",
     "validation/step_000002/scores.csv", "checkpoints/step_000002/model.safetensors", "out/[red]<script>.txt"]
)  # fmt: skip
TREES = st.dictionaries(NAMES, st.binary(max_size=200), min_size=1)

SEED = 1
"""Where the real connection is cut."""


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def run_folder(folder: Path, size: int = 1000) -> Path:
    """A run with three checkpoints, of which the second is the best."""
    files = {f"checkpoints/step_00000{step}/model.safetensors": random.Random(step).randbytes(size) for step in "123"}
    files |= {f"checkpoints/step_00000{step}/state.json": b"{}" for step in "123"}
    return write(folder, files | {"attempt-1/metrics.jsonl": b"{}\n" * 100, "conf.yaml": b"a: 1\n", "empty": b""})


def bring(evacuation_of: Evacuation, ask: Any) -> Evacuated:
    return carry_out(evacuation_of.steps(), ask)


def stubbornly(found: Evacuation, ask: Any, tries: int = 400) -> Evacuated:
    for _ in range(tries):
        try:
            return bring(found, ask)
        except HostLost:
            continue
    raise AssertionError(f"not here after {tries} connections")


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if data is not None}


# ---- what arrives ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)  # each waits for the disk many times
@given(files=TREES, seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.2, 0.5]))
def test_what_arrives_is_what_was_there_wherever_connections_are_lost(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], seed: int, share: float
) -> None:
    base, draw, agent = tmp_path_factory.mktemp("home"), random.Random(seed), AskedAgent()
    files = files | {"checkpoints/step_000002/state.json": b"{}"}
    write(base / "there", files)
    agent.cut = lambda: draw.choice(["before", "after"]) if draw.random() < share else ""
    with pytest.MonkeyPatch.context() as patch:
        for module in (incoming, evacuation):
            patch.setattr(module, "BLOCK_BYTES", 64)
        patch.setattr(evacuation, "BATCH_BYTES", 256)
        patch.setattr(evacuation, "PIECE_BYTES", 50)
        patch.setattr(agent_files, "PAGE_FILES", 3)
        # Each time another process takes over: what it needs to know lies on the disk.
        for _ in range(300):
            found = Evacuation(str(base / "there"), base / "here")
            try:
                result = bring(found, agent.ask)
                break
            except HostLost:
                assert not found.result().is_complete
    assert files_of(base / "here") == files
    assert result.is_complete
    assert set(result.verified) == set(files)
    assert (result.left, result.refused, result.lost) == ({}, {}, {})
    for name in files:
        assert (base / "here" / name).stat().st_mtime_ns == (base / "there" / name).stat().st_mtime_ns
    shutil.rmtree(base)


def test_a_real_connection_that_is_cut_again_and_again(tmp_path: Path, cleanup: ExitStack) -> None:
    sshd = Sshd(tmp_path / "sshd")
    cleanup.callback(sshd.stop)
    sshd.start()
    channel = sshd.agent(tmp_path / "known_hosts", Deadlines(connect_s=10.0, answer_s=20.0))
    cleanup.callback(channel.close)
    there = run_folder(tmp_path / "there", 3 * 2**20)
    cutting, lost = often_cut(channel.ask, sshd, SEED, share=0.3)
    pieces = 0

    def counted(kind: Any, verb: str, *arguments: Any) -> Any:
        nonlocal pieces
        pieces += verb == "pieces"
        return cutting(kind, verb, *arguments)

    result = stubbornly(Evacuation(str(there), tmp_path / "here", best_step=2), counted)
    assert files_of(tmp_path / "here") == {
        name: data for name, data in files_of(there).items() if "step_000001" not in name
    }
    assert result.is_complete
    assert len(lost) >= 2
    # A lost question costs its own piece, and what was brought before is not asked for again.
    needed = 2 * (3 * 2**20 // PIECE_BYTES) + 4
    assert pieces <= needed + 2 * len(lost)


def test_what_is_here_already_is_verified_and_does_not_travel(tmp_path: Path) -> None:
    there, agent = run_folder(tmp_path / "there"), AskedAgent()
    shutil.copytree(there, tmp_path / "here")
    (tmp_path / "here" / "conf.yaml").write_bytes(b"a: 2\n")
    result = bring(Evacuation(str(there), tmp_path / "here", best_step=2), agent.ask)
    assert result.brought == ("conf.yaml",)
    assert result.brought_bytes == 5
    assert {"conf.yaml", "empty", "attempt-1/metrics.jsonl"} < set(result.verified)
    assert agent.verbs == ["files", "digests", "pieces"]
    assert (tmp_path / "here" / "conf.yaml").read_bytes() == b"a: 1\n"


def test_a_file_that_changed_meanwhile_is_lost_and_comes_the_next_time(tmp_path: Path) -> None:
    there = run_folder(tmp_path / "there")

    def grow(verb: str, value: Any) -> Any:
        if verb == "files":
            with (there / "attempt-1/metrics.jsonl").open("ab") as file:
                file.write(b"{}\n")
        return value

    found = Evacuation(str(there), tmp_path / "here", best_step=2)
    result = bring(found, AskedAgent(grow).ask)
    assert result.lost == {"attempt-1/metrics.jsonl": "it changed there while it was brought"}
    assert not result.is_complete
    assert bring(found, AskedAgent().ask).is_complete
    assert (tmp_path / "here" / "attempt-1/metrics.jsonl").read_bytes() == b"{}\n" * 101


def test_a_part_that_was_damaged_here_is_brought_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (incoming, evacuation):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    there = write(tmp_path / "there", {"data": random.Random(1).randbytes(1000)})
    good = (there / "data").read_bytes()
    for arrived in (good[:350] + b"!" + good[351:420], b"!" + good[1:], good[:-1] + b"!", good + b"more"):
        shutil.rmtree(tmp_path / "here", ignore_errors=True)
        write(tmp_path / "here", {".data.home.part": arrived})
        assert bring(Evacuation(str(there), tmp_path / "here"), AskedAgent().ask).is_complete
        assert files_of(tmp_path / "here") == {"data": good}


def test_a_piece_that_came_wrong_is_asked_for_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (incoming, evacuation):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    there = write(tmp_path / "there", {"data": random.Random(1).randbytes(1000)})
    wrong = [base64.b64encode(bytes(100)).decode()]

    def once(verb: str, value: Any) -> Any:
        return [wrong.pop()] if verb == "pieces" and wrong else value

    agent = AskedAgent(once)
    assert bring(Evacuation(str(there), tmp_path / "here"), agent.ask).is_complete
    assert not wrong
    assert agent.verbs.count("pieces") == 11


def test_only_what_has_not_arrived_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (incoming, evacuation):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    there = write(tmp_path / "there", {"data": random.Random(1).randbytes(1000)})
    write(tmp_path / "here", {".data.home.part": (there / "data").read_bytes()[:950]})
    agent = AskedAgent()
    assert bring(Evacuation(str(there), tmp_path / "here"), agent.ask).is_complete
    assert agent.verbs.count("pieces") == 1


def test_what_is_not_yet_here_can_be_listed_at_any_time(tmp_path: Path) -> None:
    there, agent = run_folder(tmp_path / "there"), AskedAgent()
    found = Evacuation(str(there), tmp_path / "here", best_step=2)
    assert (found.result().is_listed, found.result().is_complete) == (False, False)
    agent.cut = lambda: "after" if agent.verbs[-1] == "pieces" else ""
    with pytest.raises(HostLost):
        bring(found, agent.ask)
    result = found.result("the budget ended")
    assert result.verified == ("empty",)
    assert {name for name in files_of(there) if "step_000001" not in name} - {"empty"} == set(result.lost)
    assert set(result.lost.values()) == {"the budget ended"}


def test_a_full_disk_here_is_told_and_the_small_files_come(tmp_path: Path) -> None:
    there = run_folder(tmp_path / "there", 2**18)
    found = Evacuation(str(there), tmp_path / "here", best_step=2)
    with files_of_at_most(2**17):
        result = bring(found, AskedAgent().ask)
    assert set(result.lost) == {f"checkpoints/step_00000{step}/model.safetensors" for step in (2, 3)}
    assert all("this machine cannot keep it: File too large" in why for why in result.lost.values())
    assert "conf.yaml" in result.verified
    assert bring(found, AskedAgent().ask).is_complete


# ---- what is wanted --------------------------------------------------------------------------------------------------


def test_the_last_and_the_best_checkpoint_come_and_the_rest_is_named(tmp_path: Path) -> None:
    there = run_folder(tmp_path / "there")
    write(there, {"checkpoints/step_000009/model.safetensors": b"x", "checkpoints/before-attempt-2/step_000007/a": b""})
    result = bring(Evacuation(str(there), tmp_path / "here", best_step=2), AskedAgent().ask)
    assert {name.split("/")[1] for name in result.verified if name.startswith("checkpoints")} == {
        "step_000002", "step_000003",
    }  # fmt: skip
    assert {name.split("/")[1] for name in result.left} == {"step_000001", "step_000009", "before-attempt-2"}


def test_a_best_checkpoint_that_is_not_there_is_lost(tmp_path: Path) -> None:
    there = run_folder(tmp_path / "there")
    result = bring(Evacuation(str(there), tmp_path / "here", best_step=7), AskedAgent().ask)
    assert result.lost == {"checkpoints/step_000007": "the best checkpoint is not there, or not complete"}


@given(
    complete=st.sets(st.integers(0, 20)),
    torn=st.sets(st.integers(21, 30)),
    best=st.none() | st.integers(0, 30),
)
def test_of_complete_checkpoints_the_newest_and_the_best_are_kept(
    complete: set[int], torn: set[int], best: int | None
) -> None:
    names = [f"checkpoints/step_{step:06d}/model.safetensors" for step in complete | torn]
    names += [f"checkpoints/step_{step:06d}/state.json" for step in complete]
    kept = kept_checkpoints(names, best)
    assert kept == ({max(complete)} | ({best} & complete) if complete else set())
    left, missing = left_behind([*names, "attempt-1/metrics.jsonl"], best)
    assert {int(name.split("/")[1][5:]) for name in left} == (complete | torn) - kept
    assert bool(missing) == (best is not None and best not in kept)


def test_metrics_come_first_and_the_best_checkpoint_before_the_last() -> None:
    names = ["checkpoints/step_000009/a", "checkpoints/step_000004/a", "validation/step_000004/images/ema/1.png",
             "validation/step_000004/scores.csv", "attempt-1/metrics.jsonl"]  # fmt: skip
    assert sorted(names, key=lambda name: importance(name, 4)) == [names[i] for i in (4, 3, 2, 1, 0)]


# ---- a hostile host --------------------------------------------------------------------------------------------------


def test_links_devices_and_names_that_lead_out_are_refused_and_named(tmp_path: Path) -> None:
    there, agent = run_folder(tmp_path / "there"), AskedAgent(lie_about_files)
    (there / "a_link").symlink_to("/etc/passwd")
    (there / "a_folder").symlink_to("/etc")
    os.mkfifo(there / "attempt-1" / "pipe")
    (there / ".hidden").write_bytes(b"x")
    (there / "esc\x1b[31m").write_bytes(b"x")
    result = bring(Evacuation(str(there), tmp_path / "base" / "here", best_step=2), agent.ask)
    assert result.is_complete
    assert set(result.refused) == {
        "a_link", "a_folder", "attempt-1/pipe", ".hidden", repr("esc\x1b[31m"), "../up", "/etc/passwd",
        "checkpoints/step_000001/../../../up", "a/" * 9 + "deep",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "base").iterdir()} == {"here"}
    assert all(not path.is_symlink() for path in (tmp_path / "base").rglob("*"))


def test_what_only_we_write_stays_as_it_is_here_and_nobody_misses_it(tmp_path: Path) -> None:
    there = run_folder(tmp_path / "there")
    write(there, dict.fromkeys(OURS, b"theirs") | {"attempt-1/config.yaml": b"theirs"})
    write(tmp_path / "here", {"config.yaml": b"ours"})
    result = bring(Evacuation(str(there), tmp_path / "here", best_step=2), AskedAgent().ask)
    here = files_of(tmp_path / "here")
    assert {name: data for name, data in here.items() if data in (b"ours", b"theirs")} == {
        "config.yaml": b"ours", "attempt-1/config.yaml": b"theirs",
    }  # fmt: skip
    assert result.is_complete
    assert (result.refused, result.lost) == ({}, {})
    assert not OURS & {*result.verified, *result.left}


def lie_about_files(verb: str, value: Any) -> Any:
    if verb == "files":
        more = ["../up", "/etc/passwd", "checkpoints/step_000001/../../../up", "a/" * 9 + "deep"]
        value["files"] = sorted([*value["files"], *([name, 3] for name in more)])
    return value


def test_a_sparse_file_of_ten_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    there = run_folder(tmp_path / "there")
    (there / "huge.bin").touch()
    os.truncate(there / "huge.bin", 10 * 10**9)
    agent = AskedAgent()
    result = bring(Evacuation(str(there), tmp_path / "here", best_step=2, most_bytes=2**20), agent.ask)
    assert result.refused == {
        "huge.bin": "with it (10,000,000,000 bytes) the run would hold more than 1,048,576",
    }
    assert "conf.yaml" in result.verified
    assert agent.verbs == ["files", "digests", "pieces"]


@pytest.mark.parametrize("what", ["other bytes", "other digest", "too few", "too many", "none"])
def test_bytes_that_do_not_have_their_hash_never_take_a_place(tmp_path: Path, what: str) -> None:
    there = write(tmp_path / "there", {"conf.yaml": b"a: 1\n", "exit.json": b"{}"})
    write(tmp_path / "here", {"conf.yaml": b"what was here before"})

    def lie(verb: str, value: Any) -> Any:
        if verb == "digests" and what == "other digest":
            value[0][3] = "0" * 64
        if verb == "pieces" and what != "other digest":
            value[0] = {"other bytes": "eHh4eHg=", "too few": "YTo=", "too many": "YTogMQoAAAA=", "none": None}[what]
        return value

    agent = AskedAgent(lie)
    result = bring(Evacuation(str(there), tmp_path / "here"), agent.ask)
    assert set(result.lost) == {"conf.yaml"}
    assert result.verified == ("exit.json",)
    assert (tmp_path / "here" / "conf.yaml").read_bytes() == b"what was here before"
    assert len(agent.verbs) < 6


@pytest.mark.parametrize(
    ("verb", "change"),
    [
        ("files", lambda value: value | {"is_all": False}),
        ("files", lambda value: value | {"is_all": False, "files": []}),
        ("files", lambda value: value | {"files": value["files"][::-1]}),
        ("files", lambda value: value | {"files": [["a", -1]]}),
        ("files", lambda value: value | {"files": [["a", 2**63]]}),
        ("files", lambda value: value | {"odd": ["x"] * 1000}),
        ("digests", lambda value: value[:-1]),
        ("digests", lambda value: [[*one[:3], "../" + one[3]] for one in value]),
        ("pieces", lambda value: [*value, "AAAA"]),
        ("pieces", lambda value: {"a": value}),
    ],
)
def test_a_host_that_tells_nonsense_is_lost(tmp_path: Path, verb: str, change: Any) -> None:
    there = run_folder(tmp_path / "there")
    agent = AskedAgent(lambda asked, value: change(value) if asked == verb else value)
    with pytest.raises(HostLost):
        bring(Evacuation(str(there), tmp_path / "here"), agent.ask)
    assert agent.verbs.count(verb) <= 2


def test_a_list_without_end_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evacuation, "MOST_FILES", 5_000)
    count = 0

    def endless(verb: str, value: Any) -> Any:
        nonlocal count
        if verb != "files":
            return value
        count += 2000
        return {"files": [[f"{index:09d}", 1] for index in range(count, count + 2000)], "odd": [], "is_all": False}

    result = bring(Evacuation(str(tmp_path), tmp_path / "here"), AskedAgent(endless).ask)
    assert len(result.lost) == 5_000
    assert result.refused == {"(more files)": "the run has more than 5,000 files"}
    assert count == 6_000


def test_a_file_and_a_folder_of_one_name_harm_nothing(tmp_path: Path) -> None:
    there = write(tmp_path / "there", {"a": b"file", "b": b"x", "c/d": b"y"})
    write(tmp_path / "here", {"a/inside": b"mine", "c": b"mine"})
    result = bring(Evacuation(str(there), tmp_path / "here"), AskedAgent().ask)
    assert set(result.lost) == {"a", "c/d"}
    assert result.verified == ("b",)
    assert (tmp_path / "here" / "a" / "inside").read_bytes() == b"mine"
    assert (tmp_path / "here" / "c").read_bytes() == b"mine"


def test_a_link_in_our_own_folder_is_not_written_through(tmp_path: Path) -> None:
    there = write(tmp_path / "there", {"conf.yaml": b"a: 1\n"})
    write(tmp_path, {"mine": b"keep"})
    (tmp_path / "here").mkdir()
    for name in ("conf.yaml", ".conf.yaml.home.part"):
        (tmp_path / "here" / name).symlink_to(tmp_path / "mine")
    result = bring(Evacuation(str(there), tmp_path / "here"), AskedAgent().ask)
    assert "conf.yaml" in result.lost
    assert (tmp_path / "mine").read_bytes() == b"keep"

"""Several processes train what one would have trained, stop together, and fail together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.fakes.shards import write_set
from tests.fakes.team_cases import BLOCK, CASES, MUON, SEED, block, trained
from tests.fakes.trainer_parts import WeightSum, tiny_config
from trainer import checkpoint, session, train
from trainer.control import StopRequest
from trainer.data.buckets import BUCKETS
from trainer.distributed.launch import open_team
from trainer.distributed.membership import Membership, device_of, membership
from trainer.distributed.peers import LEADER_PID
from trainer.distributed.sharding import _deal, _rows
from trainer.distributed.team import END, Team
from trainer.document import load_document, parse_config
from trainer.errors import ConfigError, TeamError, UsageError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SHORT: dict[str, Any] = {
    **BLOCK,
    "steps": 4,
    "accumulation": 4,
    "optimizer": MUON,
    "validation": {"samples": 4, "every": 4},
    "ema": {"half_lives": [0.1, 0.4]},
}


# ---- the same training -----------------------------------------------------------------------------------------------


class After(StopRequest):
    """Does something when it is looked at for the nth time: once before the first step, once before every step, and
    twice in every micro-batch."""

    def __init__(self, looks: int, act: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._left, self._act = looks, act

    def __bool__(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self.ask("test") if self._act is None else self._act()
        return super().__bool__()


class Together(NamedTuple):
    """What two processes made: the results of every case, and the folders of two runs with TREAD, Muon and averages on
    shards of two buckets, one of them stopped meanwhile.

    `stopped_at` is what train returned for the second run and the steps of its checkpoints, before it went on.
    """

    cases: dict[str, Any]
    whole: Path
    resumed: Path
    stopped_at: tuple[int, list[int]]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Every case and two runs, by this process and one more that were started as torchrun starts them."""
    folder = tmp_path_factory.mktemp("team")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "tests.fakes.team_cases"]
    peer = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables, "RANK": "1"})
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "Validation", WeightSum)
            for name, value in {**variables, "RANK": "0"}.items():
                patch.setenv(name, value)
            with open_team(parse_config({**BLOCK, "accumulation": 2}), None, ()) as team:
                found = _led(team, folder)
                team.order("bye")
                assert peer.wait(60) == 0
    finally:
        peer.kill()
        peer.wait()
    return found


def _led(team: Team, folder: Path) -> Together:
    cases = {}
    for case in CASES:
        _order_training(team, folder / case, block(case), SEED)
        cases[case] = trained(case, team)
        team.order(END, code=0)
    whole, resumed = folder / "whole", folder / "resumed"
    shards = write_set(folder / "shards", BUCKETS[:2], lambda index: 9 + index)
    on_shards = {**SHORT, "data": {"source": "shards", "path": str(shards), "size": 128, "workers": 0}}
    on_shards["model"] = {**SHORT["model"], "patch": 8}
    _lead(team, whole, StopRequest(), on_shards)
    code = _lead(team, resumed, After(10), on_shards)
    stopped_at = code, checkpoint.list_steps(resumed)
    _lead(team, resumed, StopRequest(), on_shards, resume=True)
    return Together(cases, whole, resumed, stopped_at)


def _order_training(team: Team, folder: Path, trainer: dict[str, Any], seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(json.dumps({"seed": seed, "run": folder.name, "trainer": trainer}))
    team.order("train", config=str(config), run_dir=str(folder))
    return config


def _lead(team: Team, folder: Path, stop: StopRequest, trainer: dict[str, Any], resume: bool = False) -> int:
    config = _order_training(team, folder, trainer, 7)
    begin = train.Beginning(resume=resume)
    code = train.lead(config, folder, load_document(config), team, stop, begin)
    team.order(END, code=code)
    return code


@cache
def alone(case: str) -> dict[str, Any]:
    """A case, trained by one process."""
    return trained(case, Team(CPU))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The processes of a team compute with one thread each, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Newton-Schulz works in bf16: where sums are made in another order its last bit may turn.
_LARGEST_ERROR = {"adamw": 1e-6, "stable adamw, fsdp": 1e-6, "muon, fsdp": 2e-4}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_steps_of_one(together: Together, case: str) -> None:
    one, found = alone(case), together.cases[case]
    for before, after in zip(one["losses"], found["losses"], strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert one["modules"].keys() == found["modules"].keys()
    largest = _LARGEST_ERROR.get(case, 0.0)
    for before, after in zip(_tensors(one), _tensors(found), strict=True):
        torch.testing.assert_close(after, before, rtol=0.0 if not largest else 1e-4, atol=largest)


def test_two_sums_of_one_micro_batch_each_are_one_sum_bit_for_bit(together: Together) -> None:
    one, found = alone("muon"), together.cases["muon"]
    assert one["readings"] == found["readings"]
    assert all(torch.equal(*pair) for pair in zip(one["grad_norms"], found["grad_norms"], strict=True))


@pytest.mark.parametrize("case", ["adamw", "muon, fsdp"])
def test_indicators_are_those_of_the_whole_step(together: Together, case: str) -> None:
    one, found = alone(case), together.cases[case]
    assert len(one["readings"]) == 2
    for before, after in zip(one["readings"], found["readings"], strict=True):
        assert before.keys() == after.keys()
        for name in before:
            if "fsdp" not in case or "gradient_noise" not in name:  # noise by halves needs gradients of halves
                assert after[name] == pytest.approx(before[name], rel=1e-3), name


def test_all_decide_by_the_gradients_that_one_process_compared(together: Together) -> None:
    one, found = alone("cosine"), together.cases["cosine"]
    cosines = [extra["train/repa_cosine"] for extra in one["extra"] if extra]
    assert len(cosines) == 1
    assert cosines[0] != 0.0
    assert one["extra"] == found["extra"]


def test_a_checkpoint_does_not_show_how_many_wrote_it(together: Together) -> None:
    for case in ("muon", "muon, fsdp"):
        one, found = alone(case), together.cases[case]
        assert _shapes(one) == _shapes(found)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_divided_only_where_that_is_asked_for(together: Together, case: str) -> None:
    one, found = alone(case), together.cases[case]
    assert (one["strategy"], found["strategy"]) == ("single", "fsdp" if "fsdp" in case else "ddp")
    blocks = sum(tensor.numel() for name, tensor in one["modules"].items() if name.startswith("model.blocks."))
    let_go = one["held"] - found["held"]
    assert let_go == pytest.approx(blocks / 2, rel=0.1) if "fsdp" in case else let_go == 0


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 5))
def test_every_micro_batch_is_dealt_to_one_process(size: int, rounds: int, batch: int) -> None:
    config = tiny_config(batch=batch, accumulation=size * rounds)
    dealt = []
    for rank in range(size):
        team = Team(CPU)
        team.rank, team.size = rank, size
        starts = team.starts(config)
        assert len(starts) == rounds
        dealt += starts
    assert sorted(dealt) == list(range(0, config.samples_per_step, batch))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=9), st.integers(1, 5))
def test_slices_and_owners_cover_everything_once(shapes: list[tuple[int, int]], size: int) -> None:
    named = {str(index): torch.Size(shape) for index, shape in enumerate(shapes)}
    owned = _deal(named, size)
    assert sorted(name for names in owned for name in names) == sorted(named)
    for shape in named.values():
        whole = torch.arange(shape.numel())
        slices = [whole[_rows(shape, rank, size)] for rank in range(size)]
        assert torch.equal(torch.cat(slices), whole)
        chunks = [chunk.flatten() for chunk in whole.view(shape).chunk(size)]  # as torch deals rows
        assert all(torch.equal(*pair) for pair in zip(slices, chunks, strict=False))


# ---- a run: stop, resume, failure ------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    """Train as the leader of so many processes, with a validation that only adds up weights."""
    monkeypatch.setattr(session, "Validation", WeightSum)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def start(name: str, block: dict[str, Any], stop: StopRequest | None = None, **options: Any) -> tuple[int, Path]:
        config = tmp_path / f"{name}.yaml"
        config.write_text(json.dumps({"seed": 7, "run": name, "trainer": block}))
        return train.train(
            config, tmp_path / name, stop=StopRequest() if stop is None else stop, **options
        ), tmp_path / name

    return start


def test_a_stop_within_a_step_leaves_what_a_resumed_run_goes_on_from(together: Together) -> None:
    assert together.stopped_at == (75, [0, 1])
    whole, resumed = (_stored(folder, 4) for folder in (together.whole, together.resumed))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_one_process_goes_on_from_the_checkpoint_of_two(
    together: Together, run: Callable[..., tuple[int, Path]]
) -> None:
    _, whole = run("alone", json.loads((together.whole / "config.yaml").read_text())["trainer"])
    checkpoint.set_aside(together.resumed, after=1, attempt=3)
    assert train.train(together.resumed / "config.yaml", together.resumed, stop=StopRequest(), resume=True) == 0
    for name, tensor in _stored(whole, 4).items():
        torch.testing.assert_close(_stored(together.resumed, 4)[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_a_divided_run_stops_and_goes_on_with_one_process(run: Callable[..., tuple[int, Path]]) -> None:
    block = {**SHORT, "optimizer": {**MUON, "name": "adamw"}, "distributed": {"strategy": "fsdp"}}
    code, divided = run("divided", block, processes=2, stop_after=2)
    assert code == 75
    assert run("divided", block, resume=True) == (0, divided)
    _, whole = run("alone", block)
    for name, tensor in _stored(whole, 4).items():
        torch.testing.assert_close(_stored(divided, 4)[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_process_that_dies_ends_all_and_is_named(run: Callable[..., tuple[int, Path]]) -> None:
    with pytest.raises(TeamError, match="process 1 was killed by signal 9") as caught:
        run("dies", SHORT, After(4, lambda: _peer().kill()), processes=2)
    assert caught.value.exit_code == 70
    assert _peers() == []


def test_a_process_that_hangs_is_named(run: Callable[..., tuple[int, Path]]) -> None:
    block = {**SHORT, "distributed": {"timeout_s": 2.0}}
    with pytest.raises(TeamError, match=r"process 1 kept the others waiting for distributed.timeout_s \(2 s\)"):
        run("hangs", block, After(4, lambda: _peer().suspend()), processes=2)
    assert _peers() == []


def test_processes_end_with_their_leader(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"seed": 7, "trainer": SHORT}))
    leading = (
        "import socket, sys; from trainer.distributed.peers import Peers;"
        "listener = socket.create_server(('127.0.0.1', 0));"
        "Peers(sys.argv[1:], 2, listener.getsockname()[1]);"
        "other = listener.accept(); print('it looks for its leader', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", leading, "train", str(config), "--run-dir", str(tmp_path)]
    leader = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert leader.stdout is not None
        assert leader.stdout.readline()
        (peer,) = psutil.Process(leader.pid).children()
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        peer.wait(30)
    finally:
        leader.kill()
        leader.communicate()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_micro_batches_that_cannot_be_dealt_evenly_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError) as caught:
        device_of(tiny_config(batch=6, accumulation=1), Membership(0, 3, False))
    assert "accumulation: 1 micro-batches" in str(caught.value)
    assert "a multiple of 3; for example batch 2 x accumulation 3" in str(caught.value)


def test_fewer_gpus_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        config = parse_config({"steps": 1, "accumulation": 2, "device": "auto"})
        with pytest.raises(ConfigError, match=f"2 processes need a GPU each, and this process sees {int(available)}"):
            device_of(config, Membership(0, 2, False))


def test_the_environment_and_the_option_must_agree() -> None:
    assert membership(None, {}) == Membership(0, 1, False)
    assert membership(4, {}) == Membership(0, 4, False)
    assert membership(None, {"RANK": "1", "WORLD_SIZE": "2"}) == Membership(1, 2, True)
    with pytest.raises(UsageError, match="--processes 3, and the environment says WORLD_SIZE=2"):
        membership(3, {"RANK": "1", "WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="one host"):
        membership(None, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="at least 1"):
        membership(0, {})


@pytest.mark.parametrize(
    "block",
    [{"repa": {"enabled": True, "stop": {"kind": "gradient_cosine"}}}, {"precision": {"compute": "fp16"}}],
)
def test_what_cannot_be_divided_is_refused(block: dict[str, Any]) -> None:
    parse_config({"steps": 400, "distributed": {"strategy": "auto"}, **block})
    with pytest.raises(ConfigError, match=r"distributed\.strategy: fsdp and"):
        parse_config({"steps": 400, "distributed": {"strategy": "fsdp"}, **block})


def _peer() -> psutil.Process:
    (peer,) = _peers()
    return peer


def _peers() -> list[psutil.Process]:
    """The processes that this one leads; what else it has started, such as the server of data workers, is no peer."""
    return [each for each in psutil.Process().children(recursive=True) if LEADER_PID in each.environ()]


def _tensors(found: dict[str, Any]) -> list[torch.Tensor]:
    return [*found["modules"].values(), *(tensor for average in found["averages"] for tensor in average.values())]


def _shapes(found: dict[str, Any]) -> dict[Any, Any]:
    states = found["optimizer"].items()
    moments = {
        (rule, index, key): tensor.shape
        for rule, state in states
        for index, values in state["state"].items()
        for key, tensor in values.items()
    }
    return moments | {name: tensor.shape for name, tensor in found["modules"].items()}


def _stored(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    folder = checkpoint.folder(run_dir, step)
    return {
        f"{file.stem} {name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }

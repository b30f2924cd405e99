"""Ways to save time and memory: they change no name, no draw, and no result beyond rounding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.trainer_parts import NoiseSource, tiny_config
from trainer import checkpoint
from trainer.acceleration.budget import choose, recomputed_blocks
from trainer.acceleration.network import compile_block, described, twin_of
from trainer.config import ActivationCheckpointingConfig, CompileConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.shapes import stream_shapes
from trainer.document import Document
from trainer.errors import ConfigError
from trainer.model.mlp import Mlp
from trainer.model.nanodit import build
from trainer.precision.means import cpp_compiler, require_means
from trainer.session import stored_modules
from trainer.step import Learner

CPU = torch.device("cpu")
TECHNIQUES = {
    "accumulation": 2,
    "tread": {"enabled": True},
    "repa": {"enabled": True, "samples": "all", "stop": {"end": 1.0}},
}
AOT = {"enabled": True, "backend": "aot_eager"}
CHECKPOINTING = ({}, {"kind": "every_k"}, {"kind": "full"}, {"kind": "budget"})


def quiet(test: Callable[..., None]) -> Callable[..., None]:
    """Let torch say what it has to say about itself while it captures a graph: the tests make errors of warnings."""
    for said in ("ignore:The .grad attribute of a Tensor:UserWarning", "ignore::DeprecationWarning"):
        test = pytest.mark.filterwarnings(said)(test)
    return test


def learner(**changes: Any) -> Learner:
    config = tiny_config(**changes)
    return Learner(config, NoiseSource(config, 0).streams, 7, CPU)


def trained(chosen: Learner, steps: int) -> list[torch.Tensor]:
    """Make some steps; the weights and averages after them."""
    batches = Batches(NoiseSource(chosen.config, 0), 7, chosen.config.samples_per_step)
    for step in range(steps):
        chosen.step(batches, step, StopRequest())
    return [tensor for module in stored_modules(chosen).values() for tensor in module.state_dict().values()]


# ---- activation checkpointing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("again", "blocks"),
    [
        ({"kind": "every_k"}, [0, 2]),
        ({"kind": "every_k", "every": 3}, [0, 3]),
        ({"kind": "full"}, [0, 1, 2, 3]),
        ({"kind": "budget", "budget": 0.7}, [0, 3]),  # blocks 1 and 2 are routed, and smaller
    ],
)
def test_blocks_are_computed_again_and_no_bit_changes(again: dict[str, Any], blocks: list[int]) -> None:
    plain, saving = learner(**TECHNIQUES), learner(**TECHNIQUES, activation_checkpointing=again)
    counts = [0] * 4
    for index, block in enumerate(saving.network.blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: counts.__setitem__(index, counts[index] + 1))
    same = zip(trained(plain, 2), trained(saving, 2), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert counts == [8 if index in blocks else 4 for index in range(4)]  # two steps of two micro-batches
    assert (
        described(saving.modules, saving.config, NoiseSource(saving.config, 0).streams)["recomputed_blocks"] == blocks
    )


@given(
    sizes=st.lists(st.floats(1.0, 1e9), min_size=1, max_size=8),
    budget=st.floats(0.01, 1.0),
)
def test_a_budget_is_kept_with_as_few_blocks_as_possible(sizes: list[float], budget: float) -> None:
    chosen = choose(sizes, ActivationCheckpointingConfig(kind="budget", budget=budget))
    assert list(chosen) == sorted(set(chosen))

    def left(without: tuple[int, ...]) -> float:
        return sum(size for index, size in enumerate(sizes) if index not in without)

    allowed = budget * sum(sizes)
    assert left(chosen) <= allowed * (1 + 1e-9)
    fewer = itertools.combinations(range(len(sizes)), len(chosen) - 1) if chosen else ()
    assert all(left(others) > allowed * (1 - 1e-9) for others in fewer)


def test_no_checkpointing_and_a_whole_budget_leave_the_model_as_it_is() -> None:
    for again in ({}, {"kind": "budget", "budget": 1.0}):
        chosen = learner(activation_checkpointing=again)
        assert chosen.network is chosen.model
        assert recomputed_blocks(chosen.config, 10, 4) == ()


def test_a_run_may_be_resumed_with_other_blocks_computed_again() -> None:
    config = tiny_config()
    state = checkpoint.describe(Document(config, 1, "r"), NoiseSource(config, 0).streams)
    checkpoint.require_same_run(state, Document(tiny_config(activation_checkpointing={"kind": "full"}), 1, "r"))
    with pytest.raises(ConfigError, match=r"keys: precision\.compute"):
        checkpoint.require_same_run(state, Document(tiny_config(precision={"compute": "bf16"}), 1, "r"))


# ---- compilation -----------------------------------------------------------------------------------------------------


@quiet
def test_compiled_blocks_compute_the_same_under_the_same_names() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    streams = {"text": "off", "patches": "off", "pose": "off"}  # contexts of one length: one graph
    model = {"width": 16, "depth": 2, "heads": 2, "patch": 2}
    plain, compiled = (learner(streams=streams, model=model, compile=chosen) for chosen in ({}, AOT))
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    for one, other in zip(trained(plain, 2), trained(compiled, 2), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


@quiet
@pytest.mark.long
@pytest.mark.skipif(cpp_compiler() is None, reason="inductor writes C++ for a CPU, and there is no compiler")
def test_inductor_generates_code_for_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    mlp = Mlp(16, 32)
    twin = twin_of(mlp)
    compile_block(twin, CompileConfig(enabled=True))
    x_BND = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(twin(x_BND), mlp(x_BND), rtol=1e-4, atol=1e-5)
    assert any(tmp_path.rglob("*.cpp"))


def test_without_a_compiler_inductor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"compile\.enabled: .*C\+\+ compiler.*CXX"):
        require_means(tiny_config(compile={"enabled": True}), CPU)
    require_means(tiny_config(compile=AOT), CPU)


# ---- all together ----------------------------------------------------------------------------------------------------


def test_a_twin_has_its_own_modules_and_the_same_weights() -> None:
    model = learner(objective={"prediction": "asymflow"}).model
    twin = twin_of(model)
    assert not {id(module) for module in model.modules()} & {id(module) for module in twin.modules()}
    for kind in ("parameters", "buffers"):
        pairs = zip(getattr(model, kind)(), getattr(twin, kind)(), strict=True)
        assert all(one is other for one, other in pairs)


def test_every_combination_is_built_from_its_configuration() -> None:
    model = {"width": 16, "depth": 2, "heads": 2, "patch": 2}
    config = tiny_config(model=model)
    names = list(build(config.model, stream_shapes(config), 0).state_dict())
    for compute, again in itertools.product(("fp32", "bf16", "fp16"), CHECKPOINTING):
        chosen = learner(model=model, precision={"compute": compute}, compile=AOT, activation_checkpointing=again)
        assert list(chosen.model.state_dict()) == names


def test_all_of_it_together_with_fp8_trains() -> None:
    pytest.importorskip("torchao", reason="torchao, which FP8 products come from, is not installed")
    precision = {"compute": "bf16", "fp8": {"enabled": True, "filter": "all", "emulate": True}}
    again = {"kind": "every_k"}
    one, other = (learner(**TECHNIQUES, precision=precision, activation_checkpointing=chosen) for chosen in ({}, again))
    same = zip(trained(one, 2), trained(other, 2), strict=True)
    assert all(torch.equal(left, right) for left, right in same)

"""No micro-batch waits for the device: where there are no numbers, whoever asks for one fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.fakes.trainer_parts import NoiseSource, tiny_config
from trainer.data.batches import Batches
from trainer.model.nanodit import NanoDiT
from trainer.objective.draws import StepDraws
from trainer.step import Learner, _backward, _cover

META = torch.device("meta")
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "tread": {"enabled": True},
        "repa": {"enabled": True, "samples": "all"},
        "optimizer": {"name": "muon"},
    },
    "asymflow, maskdit": {"objective": {"prediction": "asymflow"}, "model": {"maskdit": {"enabled": True}}},
    "pooled": {"streams": {"text": "pooled", "patches": "pooled", "pose": "pooled"}},
}


def on_a_device_without_numbers(**changes: Any) -> tuple[Learner, Batches]:
    sizes = {"width": 16, "depth": 4, "heads": 2, "patch": 2, **changes.pop("model", {})}
    config = tiny_config(batch=4, accumulation=2, model=sizes, **changes)
    source = NoiseSource(config, 0)
    learner = Learner(config, source.streams, 0, torch.device("cpu"))
    learner.modules.to(META)
    for auxiliary in learner.auxiliaries:
        if auxiliary.projector is not None:
            auxiliary.projector.to(META)
    learner.device = META
    return learner, Batches(source, 0, config.samples_per_step)


def micro_batches(learner: Learner, batches: Batches) -> int:
    """Forward and backward of one step, as `Learner.step` does it; how many micro-batches there were."""
    draws = StepDraws(learner.config, 0, 0)
    covers = [cover for each in learner.auxiliaries if (cover := _cover(each, 0, draws)).covered_count]
    assert len(covers) == len(learner.auxiliaries)
    micro_batches = learner.plan(0)
    for positions in micro_batches:
        batch = batches.batch(0, positions)
        micro = learner._losses(batch, draws.of(positions, (8, 8)), covers, 0, positions)
        assert _backward(micro, learner.scaling).device == META
    return len(micro_batches)


@pytest.mark.parametrize("case", CASES)
def test_no_micro_batch_asks_the_device_for_a_number(case: str) -> None:
    learner, batches = on_a_device_without_numbers(**CASES[case])
    assert micro_batches(learner, batches) == 2
    assert all(parameter.grad is not None for parameter in learner.model.blocks.parameters())


def test_a_question_in_the_loop_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batches = on_a_device_without_numbers()
    forward = NanoDiT.forward

    def asking(self: NanoDiT, *arguments: Any) -> Any:
        output = forward(self, *arguments)
        output.x_BCHW.mean().item()
        return output

    monkeypatch.setattr(NanoDiT, "forward", asking)
    with pytest.raises(RuntimeError, match="meta"):
        micro_batches(learner, batches)

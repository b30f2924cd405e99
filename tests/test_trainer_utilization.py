"""Model FLOPs utilisation: known devices, operations of a step, and its line of metrics."""

from __future__ import annotations

import pytest
import torch

from tests.fakes.trainer_parts import tiny_config
from tests.test_trainer_telemetry import LOSSES, result
from trainer import size
from trainer.data.shapes import StreamShapes
from trainer.meter import Meter
from trainer.objective.dropout import kept_streams
from trainer.utilization import peak_flops, peak_of_run, step_flops

STREAMS = StreamShapes(8, 16, 8, 8, 133)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L4", 121.0),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GeForce RTX 4090 D", 165.2),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_name(name: str, tflops: float | None) -> None:
    assert peak_flops(name) == (None if tflops is None else 1e12 * tflops)


def test_a_step_has_the_operations_of_what_is_kept_and_routed() -> None:
    config = tiny_config(tread={"enabled": True})
    everything = [(1.0, ("text", "cls", "patches", "pose"))]
    dense = step_flops(config, STREAMS, everything, config.data.size, is_routed=False)
    assert dense == 3.0 * config.samples_per_step * size.forward_flops(config, STREAMS)
    assert step_flops(config, STREAMS, everything, config.data.size, is_routed=True) < dense
    dropped = step_flops(config, STREAMS, kept_streams(), config.data.size, is_routed=False)
    nothing = step_flops(config, STREAMS, [(1.0, ())], config.data.size, is_routed=False)
    assert nothing < dropped < dense
    four_null_tokens = size.forward_flops(config, STREAMS, context=4)
    assert nothing == 3.0 * config.samples_per_step * four_null_tokens


def test_a_line_says_how_much_of_the_peak_was_used() -> None:
    meter = Meter(tiny_config(), torch.device("cpu"), LOSSES, peak_flops=1e6)
    for seconds in (1.0, 3.0):
        meter.add(result(1.0, flops=5e5), seconds)
    assert meter.line()["sys/mfu"] == 0.25
    meter.add(result(1.0, flops=2e5), 1.0)
    assert meter.line()["sys/mfu"] == 0.2, "a line starts a new window"


def test_a_device_whose_peak_is_not_known_has_no_such_line() -> None:
    config = tiny_config(precision={"compute": "bf16"})
    assert peak_of_run(config, torch.device("cpu"), 1) is None
    meter = Meter(config, torch.device("cpu"), LOSSES, peak_of_run(config, torch.device("cpu"), 1))
    meter.add(result(1.0, flops=5e5), 1.0)
    assert "sys/mfu" not in meter.line()

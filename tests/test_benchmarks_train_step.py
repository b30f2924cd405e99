"""The benchmark of a training step: what it counts, and that every way through it works at tiny size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.train_step import block_operations, measure, table, theory, way
from benchmarks.train_step_rig import Cell, Sizes, configured

TINY = Sizes(width=16, depth=3, heads=2, size=16, patch=4, text=5, patches=4, features=8, batch=2)
CPU = torch.device("cpu")
TREAD = Cell("tread", {"tread": {"enabled": True}})


def test_theory_is_the_ratio_of_the_operations_of_all_blocks() -> None:
    """By hand for 192 channels, 256 tokens, 601 conditions, 6 of 8 blocks routed to one half of the tokens."""
    assert Sizes().context() == 601
    dense, routed = (2.0 * (132_120_576 + 44_310_528 + x) for x in (25_165_824 + 59_080_704, -66_060_288 + 35_831_808))
    assert block_operations(Sizes(), 256, 601) == pytest.approx(dense, rel=1e-3)
    assert block_operations(Sizes(), 128, 601) == pytest.approx(routed, rel=1e-3)
    assert theory(Sizes(), configured(Sizes(), TREAD, CPU), 601) == pytest.approx(1.491, abs=5e-4)


@pytest.mark.parametrize("patches", ["full", "pooled", "off"])
def test_both_ways_are_measured_and_shown(patches: str) -> None:
    found = measure(TINY, patches, way("bf16" if patches == "off" else "fp32"), CPU, turns=1)
    assert found["context"] == {"full": 143, "pooled": 140, "off": 139}[patches]
    shown = table({"rows": [{"way": "fp32", **found}]}).splitlines()
    assert len(shown) == 4
    assert f"({found['tread_theory']:.3f})" in shown[3]
    assert all(value > 0 for value in found["samples_per_s"].values())
    assert all(value["median"] > 0 for value in found["network_over_products"].values())


def test_a_way_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(
        ValueError, match="'fp4' is no way to compute; allowed: fp32, bf16, fp8, each with or without \\+compile"
    ):
        way("fp4")
    assert way("fp8+compile")["compile"] == {"enabled": True}
    assert replace(TINY, patches=3).patch_grid == (1, 3)

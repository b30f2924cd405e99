"""Parameters and operations by arithmetic: those of the real model under every switch, and known figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.fakes.trainer_parts import random_conditions, tiny_config
from trainer import rules, size
from trainer.check import check
from trainer.config import TrainerConfig
from trainer.data.shapes import StreamShapes
from trainer.document import parse_config
from trainer.errors import ConfigError
from trainer.model.nanodit import NanoDiT
from trainer.model.tread import Route
from trainer.optim.groups import parameter_groups

PUBLISHED_STREAMS = StreamShapes(text_width=1024, text_length=512, cls_width=1024, patch_width=1024, pose_joints=133)
WITHOUT_PATCHES = dataclasses.replace(PUBLISHED_STREAMS, patch_width=0)
PARITY = {
    "gates": False,
    "final_modulation": False,
    "qk_norm": False,
    "condition_norm": False,
    "type_embeddings": False,
    "null_joints": True,
}
REPA = {"enabled": True, "projector": "linear", "after_block": 9}
TREAD = {"enabled": True}
SHARED = {"kind": "shared", "rank": 8}

switches = st.fixed_dictionaries(
    {
        "width": st.sampled_from([16, 24]),
        "depth": st.integers(1, 3),
        "mlp_ratio": st.sampled_from([2.0, 3.3]),
        "bottleneck": st.sampled_from([None, 5]),
        "adaln": st.sampled_from([{}, {"kind": "shared", "rank": 3}]),
        "positions": st.sampled_from(["sincos", "rope"]),
        "mlp": st.sampled_from(["gelu", "swiglu"]),
        "norm": st.sampled_from(["layer", "rms"]),
        "maskdit": st.sampled_from([{}, {"enabled": True, "decoder_depth": 2}]),
        **{name: st.booleans() for name in PARITY},
    }
)
widths = st.builds(
    StreamShapes,
    text_width=st.sampled_from([0, 6]),
    text_length=st.just(5),
    cls_width=st.sampled_from([0, 7]),
    patch_width=st.sampled_from([0, 8]),
    pose_joints=st.sampled_from([0, 9]),
).filter(lambda shapes: shapes.text_width or shapes.cls_width or shapes.patch_width or shapes.pose_joints)
pooling = st.fixed_dictionaries({name: st.sampled_from(["full", "pooled"]) for name in ("text", "patches", "pose")})


def published(model: dict[str, Any] | None = None, **more: Any) -> TrainerConfig:
    large = {"width": 768, "depth": 18, "heads": 12, "patch": 16, **(model or {})}
    return parse_config({"steps": 10, "data": {"size": 1024}, "model": large, **more})


def empty(config: TrainerConfig, streams: StreamShapes) -> NanoDiT:
    with torch.device("meta"):
        return NanoDiT(config.model, streams)


def counted(config: TrainerConfig, streams: StreamShapes) -> int:
    return sum(parameter.numel() for parameter in empty(config, streams).parameters())


def measured_flops(config: TrainerConfig, streams: StreamShapes, is_routed: bool) -> int:
    """What torch counts in one forward pass of one sample with all its conditions, captions at full length."""
    model = NanoDiT(config.model, streams, pooled=config.streams.pooled)
    for parameter in model.parameters():
        parameter.data.zero_()
    given_ = random_conditions(1, dataclasses.replace(streams, text_width=streams.text_width or 1))
    given_ = dataclasses.replace(given_, text_mask_BT=torch.ones(1, 5, dtype=torch.bool))
    route = Route(torch.arange(config.kept_tokens)[None], *config.routed_blocks) if is_routed else None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, 3, config.data.size, config.data.size), torch.zeros(1), given_, route=route)
    return counter.get_total_flops()


@given(switches, widths)
@settings(max_examples=60)
def test_parameters_are_counted_exactly_under_every_combination(model: dict[str, Any], streams: StreamShapes) -> None:
    config = tiny_config(model={**model, "heads": 2, "patch": 2}, optimizer={"name": "normuon"})
    total = counted(config, streams)
    assert size.model_parameters(config, streams) == total
    built = empty(config, streams)
    shapes = [built.get_parameter(name).shape for name in parameter_groups(built, use_muon=True).muon]
    remembered = 2 * total - sum(rows * columns - rows for rows, columns in shapes)
    assert size.optimizer_numbers(config, streams) == remembered


@given(switches, widths, pooling, st.booleans())
@settings(max_examples=24)
def test_operations_are_counted_exactly_under_every_combination(
    model: dict[str, Any], streams: StreamShapes, pooled: dict[str, str], is_routed: bool
) -> None:
    tread = {"enabled": True, "first": 0, "last": -1} if not model["maskdit"] else {}
    config = tiny_config(model={**model, "heads": 2, "patch": 2}, streams=pooled, tread=tread)
    assert size.forward_flops(config, streams, is_routed) == measured_flops(config, streams, is_routed)


# ---- known figures ---------------------------------------------------------------------------------------------------


def test_the_published_model_and_the_corrected_one_have_the_known_sizes() -> None:
    parity, corrected = (published(model, repa=REPA) for model in (PARITY, {}))
    for config in (parity, corrected):
        own = size.model_parameters(config, PUBLISHED_STREAMS)
        assert own == counted(config, PUBLISHED_STREAMS)
        assert size.parameters(config, PUBLISHED_STREAMS) - own == 768 * 1024
    assert size.parameters(parity, PUBLISHED_STREAMS) == 239_571_540
    assert size.parameters(corrected, PUBLISHED_STREAMS) == 272_573_268


def test_a_shared_modulation_saves_what_is_known_and_says_so() -> None:
    own, shared = published(PARITY), published({**PARITY, "adaln": SHARED})
    saved = counted(own, PUBLISHED_STREAMS) - counted(shared, PUBLISHED_STREAMS)
    assert saved == size.saved_by_sharing(shared) == 59_466_240
    assert size.saved_by_sharing(own) == 0
    assert "shared adaLN saves 59,466,240 parameters" in rules.notes(shared)


@pytest.mark.parametrize(
    ("forward", "precision", "streams", "model", "more"),
    [
        (3.44, 0.005, PUBLISHED_STREAMS, {}, {}),
        (1.80, 0.005, PUBLISHED_STREAMS, {}, {"tread": TREAD}),
        # The note rounds the context of 1,670 tokens to about 1,616.
        (1.27, 0.010, PUBLISHED_STREAMS, {}, {"tread": TREAD, "streams": {"patches": "pooled"}}),
        (1.11, 0.005, WITHOUT_PATCHES, {}, {"tread": TREAD}),
        (0.65, 0.005, WITHOUT_PATCHES, {}, {"tread": {**TREAD, "ratio": 0.75}}),
        (0.24, 0.005, WITHOUT_PATCHES, {"patch": 32, "bottleneck": 256}, {"tread": TREAD}),
    ],
)
def test_operations_are_the_known_ones(
    forward: float, precision: float, streams: StreamShapes, model: dict[str, Any], more: dict[str, Any]
) -> None:
    config = published(model, **more)
    is_routed = config.tread.enabled
    assert size.forward_flops(config, streams, is_routed) / 1e12 == pytest.approx(forward, abs=precision)
    assert size.flops_per_sample(config, streams) == 3 * size.forward_flops(config, streams, is_routed)


def test_swiglu_has_as_many_parameters_as_gelu() -> None:
    gelu, swiglu = (size.model_parameters(published({"mlp": name}), PUBLISHED_STREAMS) for name in ("gelu", "swiglu"))
    assert gelu == swiglu
    small = [size.model_parameters(parse_config({"steps": 1, "model": {"mlp": name}}), PUBLISHED_STREAMS)
             for name in ("gelu", "swiglu")]  # fmt: skip
    assert small[1] == pytest.approx(small[0], rel=0.02)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"model": {"width": 12, "heads": 2, "positions": "rope"}}, "model.positions"),
        ({"model": {"bottleneck": 49}}, "model.bottleneck"),
        ({"model": {"bottleneck": 65, "patch": 8}}, "model.bottleneck"),
        ({"model": {"adaln": {"kind": "shared", "rank": 58}}}, "model.adaln.rank"),
        ({"model": {"adaln": {"kind": "shared", "rank": 55}, "gates": False}}, "model.adaln.rank"),
        ({"model": {"mlp": "swiglu", "mlp_ratio": 0.1875}}, "model.mlp_ratio"),
        ({"model": {"mlp_ratio": 0.0078125}}, "model.mlp_ratio"),
        ({"model": {"maskdit": {"enabled": True}}, "tread": TREAD}, "model.maskdit.enabled"),
        ({"model": {"maskdit": {"enabled": True, "ratio": 0.015}}}, "model.maskdit.ratio"),
        ({"model": {"maskdit": {"enabled": True}}, "repa": {"enabled": True, "projector": "conv"}}, "repa.projector"),
        ({"streams": {"cls": "pooled"}}, "streams.cls"),
    ],
)
def test_what_a_switch_demands_is_said(block: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"steps": 100, **block})
    (issue,) = caught.value.issues
    assert issue.path == path
    assert issue.allowed


@pytest.mark.parametrize(
    "block",
    [
        {"model": {"width": 16, "heads": 4, "positions": "rope"}},
        {"model": {"bottleneck": 48}},
        {"model": {"bottleneck": 64, "patch": 8}},
        {"model": {"adaln": {"kind": "shared", "rank": 57}}},
        {"model": {"adaln": {"kind": "shared", "rank": 54}, "gates": False}},
        {"model": {"mlp": "swiglu", "mlp_ratio": 0.19}},
        {"model": {"mlp_ratio": 0.0079}},
        {"model": {"maskdit": {"enabled": True, "ratio": 0.015625}}},
    ],
)
def test_what_is_just_inside_the_limits_is_allowed(block: dict[str, Any]) -> None:
    assert parse_config({"steps": 100, **block})


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"model": {"adaln": {"rank": 4}}}, "model.adaln.rank"),
        ({"model": {"maskdit": {"ratio": 0.5}}}, "maskdit is switched off"),
        ({"model": {"null_joints": True}, "streams": {"pose": "off"}}, "null_joints"),
        ({"model": {"gates": False}}, "identities"),
    ],
)
def test_dead_or_odd_switches_are_noted(block: dict[str, Any], words: str) -> None:
    assert any(words in note for note in check("a", {"steps": 100, **block})["notes"])

"""What makes a run another run, key by key."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.records import Policy, Primary, Resources
from runner.spec.identity import canonical, identity, run_id
from runner.spec.models import ResolvedArm
from tests.fakes.arms import command_arm, trainer_arm

COMMAND = command_arm(env={"A": "1", "B": {"from": "C"}})
TRAINER = trainer_arm()

CHANGES: list[tuple[ResolvedArm, dict[str, Any], bool]] = [
    (COMMAND, {"command": ("python3", "-c", "other")}, True),
    (COMMAND, {"metrics": {"source": "csv", "path": "metrics.jsonl"}}, True),
    (COMMAND, {"steps": 11}, True),
    (COMMAND, {"environment": {"python": "/usr/bin/python3", "setup": None}}, True),
    (COMMAND, {"env": {"A": "2", "B": {"from": "C"}}}, True),
    (COMMAND, {"env": {"A": "1", "B": {"from": "D"}}}, True),
    (COMMAND, {"env": {"A": "1"}}, True),
    (COMMAND, {"title": "other", "hypothesis": "other", "study": "other", "arm": "Z", "baseline": "Y"}, False),
    (COMMAND, {"primary": Primary("loss"), "policy": Policy({"regress": "warn"}, 0.5)}, False),
    (COMMAND, {"resources": Resources(gpus=2, cpus=3, min_vram_gib=4.0, gpu_ids="uuid")}, False),
    (
        COMMAND,
        {"seeds": (0, 1, 2), "changes": (("steps", 10),), "origins": {}, "path": "/x.yaml", "folder": "/"},
        False,
    ),
    (COMMAND, {"budget": {}, "retries": 1, "code": {"root": "..", "include": []}}, False),
    (COMMAND, {"env": {"B": {"from": "C"}, "A": "1"}}, False),
]

TRAINER_KEYS = [
    ("steps", 200, True),
    ("optimizer.lr", 0.002, True),
    ("tread.enabled", True, True),
    ("validation.every", 20, True),
    ("sampler.native", {"kind": "nested_cfg"}, True),
    ("checkpoint.keep", {"last": 5, "best": None, "milestones": [10]}, False),
]


@pytest.mark.parametrize(("arm", "change", "differs"), CHANGES, ids=[", ".join(change) for _, change, _ in CHANGES])
def test_what_the_identity_covers(arm: ResolvedArm, change: dict[str, Any], differs: bool) -> None:
    changed = dataclasses.replace(arm, **change)
    assert (identity(changed, 0, "code") != identity(arm, 0, "code")) is differs


@pytest.mark.parametrize(("key", "value", "differs"), TRAINER_KEYS)
def test_what_it_covers_of_a_trainer_arm(key: str, value: Any, differs: bool) -> None:
    changed = dataclasses.replace(TRAINER, trainer=trainer_arm({key: value}).trainer)
    assert (identity(changed, 0, "code") != identity(TRAINER, 0, "code")) is differs


def test_seed_and_code_belong_to_it() -> None:
    known = {identity(arm, seed, code) for arm in (COMMAND, TRAINER) for seed in (0, 1) for code in ("a", "b")}
    assert len(known) == 8


def test_the_id_is_eight_hex_digits_of_identity_and_generation() -> None:
    whole = identity(TRAINER, 0, "code")
    assert len(whole) == 64
    assert run_id("abc", 1) == "9b3ca09b"
    assert len({run_id(whole, generation) for generation in range(1, 50)}) == 49


keys = st.text("abc", min_size=1, max_size=2)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(keys, values, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_keys_plays_no_part(block: dict[str, Any], draw: Any) -> None:
    items = list(block.items())
    draw.shuffle(items)
    assert canonical(dict(items)) == canonical(block)
    shuffled = dataclasses.replace(COMMAND, metrics=dict(items))
    assert identity(shuffled, 0, "x") == identity(dataclasses.replace(COMMAND, metrics=block), 0, "x")


@given(st.dictionaries(keys, values, max_size=3), st.dictionaries(keys, values, max_size=3))
def test_different_documents_have_different_identities(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (identity(dataclasses.replace(COMMAND, metrics=block), 0, "x") for block in (one, other))
    assert (first == second) == (canonical(one) == canonical(other))

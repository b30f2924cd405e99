"""The paragraph that a person reads: what is to blame, what is not, and what nobody may conclude."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from trainer.autopsy.conclusion import conclude
from trainer.autopsy.examined import Examined
from trainer.autopsy.pair import Pair
from trainer.autopsy.passes import Passes
from trainer.autopsy.record import as_document, as_table
from trainer.autopsy.shares import EMA_DENSE, EMA_GUIDED, RAW_DENSE, Cell, Finding, Means, find
from trainer.autopsy.weights import Averages


def examined(finding: Finding | None, **changes: Any) -> Examined:
    """An autopsy of steps 400 and 600 with this finding."""
    given: dict[str, Any] = {
        "run": "B-s0", "pair": Pair(400, 600), "metric": "recon_rmse", "reason": "", "direction": "min",
        "native": "self_guidance (scale 3)", "averages": Averages(0.05, 0.2, True), "distances": {},
        "passes": Passes((), {1.0: "dense"}, "self_guidance", {}), "finding": finding, "not_measured": {},
        "eval_set": "5e1f00aa", "samples": 24, "available": 24, "eval_seeds": 1, "seconds": 1.0,
    }  # fmt: skip
    return Examined(**given | changes)


def found(raw: float, ema: float, guided: float, count: int = 24, best: float = 0.2) -> Finding:
    """Cells that change by this much, nearly alike for every sample; the other average does not change."""
    changes = {RAW_DENSE: raw, EMA_DENSE: ema, EMA_GUIDED: guided, Cell("ema_alt", "dense"): 0.0}
    return find(
        {
            cell: {f"s{index}": Means(best, best + change + 1e-5 * math.sin(index)) for index in range(count)}
            for cell, change in changes.items()
        },
        "min",
    )


@pytest.mark.parametrize(
    ("finding", "says"),
    [
        (found(0.0, 0.0, 0.0), "Not reproduced: nothing is to blame by the limit of 1% of the best score (0.002)"),
        (found(-0.01, -0.01, -0.01), "Not reproduced"),
        (found(0.05, 0.05, 0.05), "To blame: weights, +0.05 [+0.05, +0.05] (the trained weights themselves"),
        (found(0.0, 0.05, 0.05), "half-life 0.2 of the run, beside the one with 0.05, does not show it"),
        (found(0.0, 0.0, 0.05), "To blame: guidance"),
        (found(0.0015, 0.003, 0.0045), "Something has been lost, but no single cause is above the limit"),
        (found(-0.05, 0.0, 0.0), "To blame: averaging"),
        (found(-0.05, -0.045, -0.045), "To blame: averaging"),
    ],
)  # fmt: skip
def test_what_it_says(finding: Finding, says: str) -> None:
    text = conclude(examined(finding))
    assert says in text
    assert text.startswith("From step 400 to step 600 recon_rmse of the averaged weights with self_guidance (scale 3)")
    assert text.endswith("say nothing about another seed or another run.")
    assert "better" not in text
    assert "\n" not in text


def test_an_advantage_that_shrank_is_explained() -> None:
    noisy = {f"s{index}": Means(0.30, 0.20) for index in range(24)}
    ahead = {f"s{index}": Means(0.20, 0.20) for index in range(24)}
    text = conclude(examined(find({RAW_DENSE: noisy, EMA_DENSE: ahead, EMA_GUIDED: ahead}, "min")))
    assert "Not reproduced" in text
    assert "The share of averaging is above the limit without anything having fallen" in text


def test_few_samples_are_not_trusted() -> None:
    assert "5 samples are too few" in conclude(examined(found(0.0, 0.0, 0.0, 5), samples=5))
    text = conclude(examined(found(0.5, 0.5, 0.5, 1), samples=1))
    assert "[no interval from one sample]" in text
    assert "Not reproduced" in text


def test_what_was_not_examined_is_said_beside_what_is_blamed() -> None:
    half = examined(found(0.05, 0.05, 0.05), not_measured={"routing": "this run trains without routing"})
    assert "Not examined: routing (this run trains without routing)." in conclude(half)


def test_nothing_to_compare_is_said() -> None:
    nothing = examined(None, pair=Pair(400, 600, (), "the weights of step 600 are not finite"))
    assert conclude(nothing).startswith("Nothing could be compared: the weights of step 600 are not finite.")
    broken = find({RAW_DENSE: {"s": Means(0.2, math.nan)}, EMA_DENSE: {"s": Means(0.2, math.nan)}}, "min")
    text = conclude(examined(broken, not_measured={"raw, dense": "1 of 1 samples have no finite score"}))
    assert "1 of 1 samples have no finite score" in text


@pytest.mark.parametrize(
    "finding", [None, found(0.05, 0.05, 0.05), found(0.5, 0.5, 0.5, 1), found(0.0, 0.0, 0.0, best=0.0)]
)
def test_every_document_is_plain_json_and_has_a_table(finding: Finding | None) -> None:
    document = as_document(examined(finding, distances={400: 0.07}, samples=1 if finding is None else 24))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    table = as_table(document)
    assert document["conclusion"] in table
    assert "rebuilt, weight profile 0.070 from its target" in table

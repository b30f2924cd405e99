"""Quantiles of scores, and the count of those that do not count."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluate.distributions import QUANTILES, distributions
from trainer.evaluate.scores import EMA_COMMON, RAW_COMMON, scores_of


def test_quantiles_of_a_known_line() -> None:
    ids = [f"p{index}" for index in range(21)]
    scores = scores_of(EMA_COMMON, "recon_rmse", ids, 0, [index / 20 for index in range(21)])
    found = distributions(scores)["val/recon_rmse"]
    assert {name: round(found[name], 9) for name in QUANTILES} == QUANTILES
    assert (found["valid"], found["invalid"]) == (21, 0)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    scores = [
        *scores_of(EMA_COMMON, "recon_rmse", ["a", "b", "c"], 0, [2.0, math.nan, 4.0]),
        *scores_of(RAW_COMMON, "recon_rmse", ["a"], 0, [math.inf]),
    ]
    found = distributions(scores)
    assert (found["val/recon_rmse"]["p50"], found["val/recon_rmse"]["invalid"]) == (3.0, 1)
    assert found["val_raw/recon_rmse"] == {**dict.fromkeys(QUANTILES), "valid": 0, "invalid": 1}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.randoms())
def test_quantiles_rise_stay_in_range_and_ignore_the_order(values, random) -> None:
    ids = [str(index) for index in range(len(values))]
    found = distributions(scores_of(EMA_COMMON, "m", ids, 0, values))["val/m"]
    quantiles = [found[name] for name in QUANTILES]
    assert quantiles == sorted(quantiles)
    assert min(values) <= quantiles[0] <= quantiles[-1] <= max(values)
    random.shuffle(values)
    assert distributions(scores_of(EMA_COMMON, "m", ids, 0, values))["val/m"] == found

"""How the scores of a metric spread over samples, and how many of them do not count."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from trainer.evaluate.scores import Score

QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.50, "p75": 0.75, "p95": 0.95}


def distributions(scores: Iterable[Score]) -> dict[str, dict[str, float | int | None]]:
    """By full name of a metric: quantiles of the valid scores (linear between two; null for none), `valid`, `invalid`.

    Over all samples and eval seeds.
    """
    values: dict[str, list[float]] = {}
    invalid: dict[str, int] = {}
    for score in scores:
        values.setdefault(score.name, []).extend([score.value] if score.valid else [])
        invalid[score.name] = invalid.get(score.name, 0) + (not score.valid)
    return {
        name: {**_quantiles(found), "valid": len(found), "invalid": invalid[name]} for name, found in values.items()
    }


def _quantiles(values: list[float]) -> dict[str, float | int | None]:
    if not values:
        return dict.fromkeys(QUANTILES)
    return dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist(), strict=True))

"""What one measurement of an optimizer step found, and the indicators that follow from it: plain arithmetic on sums.

Shapes: K blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

# The two halves of a step agree on nothing when their product is below this share of the squared gradient; the noise is
# then given as if they agreed so far, because beyond it the estimate is infinite or negative by chance.
LEAST_AGREEMENT = 0.01


class Sums(NamedTuple):
    """Sums over the parameters of one block. Those of the halves are 0 unless the step was measured in halves.

    `ratio`: g^2 / (v^ + eps^2) before the update. `second`, `first`: v^ and m^^2 after it, AdamW only. `update`,
    `weight`: squares of the update without weight decay, and of the weights after it. `half_1`, `half_2`, `whole`:
    squared gradients of the first and second half of the micro-batches and of all, before clipping.
    """

    ratio: float
    second: float
    first: float
    update: float
    weight: float
    half_1: float
    half_2: float
    whole: float
    previous_second: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement of the update that led to `step`; `sums_9K` stays on the device until `metrics` is called.

    Rows are the fields of `Sums`; `previous_second` is `second` of the measurement at `previous_step`, both meaning
    nothing when that is None. `ratio_counts` and `adamw_counts` are the numbers of weights behind `ratio` and `second`.
    `halves` holds the images in each half of a step measured in halves.
    """

    step: int
    names: tuple[str, ...]
    is_routed: tuple[bool | None, ...]
    sums_9K: Tensor
    ratio_counts: tuple[int, ...]
    adamw_counts: tuple[int, ...]
    halves: tuple[int, int] | None
    previous_step: int | None

    def metrics(self) -> dict[str, float]:
        """The indicators by full name. Waits for the device."""
        blocks = [Sums(*values) for values in zip(*self.sums_9K.tolist(), strict=True)]
        found: dict[str, float | None] = {}
        for index, (name, sums) in enumerate(zip(self.names, blocks, strict=True)):
            of_block = self._of_block(sums, self.ratio_counts[index], self.adamw_counts[index])
            found |= {f"opt/{name}/{indicator}": value for indicator, value in of_block.items()}
        found["opt/second_moment_routed_to_dense"] = self._routed_to_dense(blocks)
        return {name: value for name, value in found.items() if value is not None}

    def _of_block(self, sums: Sums, ratio_count: int, adamw_count: int) -> dict[str, float | None]:
        return {
            "rms_ratio": _root(_quotient(sums.ratio, ratio_count)),
            "second_moment": _quotient(sums.second, adamw_count),
            "second_moment_decay": self._decay(sums),
            "update_to_weight": _root(_quotient(sums.update, sums.weight)),
            "gradient_noise": moment_noise(sums) if self.halves is None else halves_noise(sums, *self.halves),
        }

    def _decay(self, sums: Sums) -> float | None:
        """(V / V before)^(1 / steps between): the factor per step by which the second moment changed."""
        if self.previous_step is None:
            return None
        factor = _quotient(sums.second, sums.previous_second)
        return None if factor is None else factor ** (1.0 / (self.step - self.previous_step))

    def _routed_to_dense(self, blocks: Iterable[Sums]) -> float | None:
        """Mean second moment of the routed blocks by that of the dense ones; None unless there are both."""
        means: dict[bool | None, list[float]] = {}
        for sums, count, is_routed in zip(blocks, self.adamw_counts, self.is_routed, strict=True):
            mean = _quotient(sums.second, count)
            if mean is not None:
                means.setdefault(is_routed, []).append(mean)
        if True not in means or False not in means:
            return None
        return _quotient(fmean(means[True]), fmean(means[False]))


def moment_noise(sums: Sums) -> float | None:
    """Gradient noise as AdamW's moments see it: (sum v^ - sum m^^2) / sum m^^2, over AdamW's parameters only.

    The variance of the gradient of one optimizer step over the recent steps, by its squared mean: a pure number.
    Slightly below 0 is possible, because the two moments forget at different speeds.
    """
    return _quotient(sums.second - sums.first, sums.first)


def halves_noise(sums: Sums, images_1: int, images_2: int) -> float | None:
    """Gradient noise scale from two halves of one step, in images, over all parameters of the block.

    With g1, g2 the mean gradients over n1 and n2 images, |g1 - g2|^2 / (1/n1 + 1/n2) estimates the trace of the
    covariance of one image's gradient and g1 g2 the squared mean (McCandlish et al. 2018, arXiv 1812.06162, appendix
    A.1, where both come from two batch sizes; for halves of one batch that is the same). Not to be compared with
    `moment_noise`, which is a number per step and knows AdamW's parameters only.
    """
    images = images_1 + images_2
    product = (sums.whole - sums.half_1 - sums.half_2) / 2
    scale_1, scale_2 = images / images_1, images / images_2
    difference = scale_1**2 * sums.half_1 + scale_2**2 * sums.half_2 - 2 * scale_1 * scale_2 * product
    covariance = difference / (1 / images_1 + 1 / images_2)
    agreement = scale_1 * scale_2 * product
    return _quotient(covariance, max(agreement, LEAST_AGREEMENT * sums.whole))


def _quotient(dividend: float, divisor: float) -> float | None:
    """None when the divisor is 0."""
    return dividend / divisor if divisor else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)

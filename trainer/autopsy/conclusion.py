"""One paragraph that a person reads instead of the table. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.autopsy.examined import Examined
from trainer.autopsy.shares import APART, BLAMED_SHARE, CAUSES, Cell, Estimate, Finding, Share

# Below this even equal signs throughout are no rare event (2 / 2^5 is 6 %), and a bootstrap is too sure of itself.
FEW_SAMPLES = 6
_MEANING = {
    "weights": "the trained weights themselves score worse",
    "averaging": "the average of the weights loses more than the weights do",
    "guidance": "guidance turns a change of the weights into a larger one of the images",
    "routing": "the routed pass loses more than the dense one",
}


def conclude(examined: Examined) -> str:
    """What the scores say about this pair of checkpoints, and what they do not say."""
    found, pair = examined.finding, examined.pair
    if found is None:
        return f"Nothing could be compared: {pair.why_not}. Between these two steps the weights stopped being numbers."
    if found.total is None:
        return f"Nothing could be compared: {'; '.join(examined.not_measured.values())}."
    sentences = [_total(examined, found, found.total), *_causes(examined, found)]
    other = found.deltas.get(Cell("ema_alt", "dense"))
    if other is not None and "averaging" in found.blamed:
        sentences.append(_other_average(examined, other, found.threshold))
    if examined.samples < FEW_SAMPLES:
        sentences.append(f"{examined.samples} samples are too few for an interval to be trusted.")
    sentences.append(
        "Intervals are over samples of this one pair of checkpoints and say nothing about another seed or another run."
    )
    return " ".join(sentences)


def told(found: Estimate) -> str:
    """`+0.0123 [+0.0101, +0.0145]`."""
    if math.isnan(found.low):
        return f"{found.mean:+.4g} [no interval from one sample]"
    return f"{found.mean:+.4g} [{found.low:+.4g}, {found.high:+.4g}]"


def _total(examined: Examined, found: Finding, total: Estimate) -> str:
    guided = "guidance" in {share.cause for share in found.shares}
    drawn = f"averaged weights with {examined.native}" if guided else "averaged weights, drawn without guidance,"
    share = f"{abs(total.mean) / abs(found.best_score):.1%} of the best score, " if found.best_score else ""
    return (
        f"From step {examined.pair.best} to step {examined.pair.stop} {examined.metric} of the {drawn} changed by "
        f"{told(total)} ({share}above 0 is worse) on {total.samples} samples."
    )


def _causes(examined: Examined, found: Finding) -> list[str]:
    blamed = [share for share in found.shares if share.blamed]
    free = [share for share in found.shares if not share.blamed]
    limit = f"{BLAMED_SHARE:.0%} of the best score ({found.threshold:.4g})"
    if blamed:
        sentences = [f"To blame: {'; '.join(_blame(share) for share in blamed)}."]
        sentences += [f"Not to blame, by the limit of {limit}: {_listed(free)}."] if free else []
    elif found.total is not None and found.total.low > found.threshold:
        sentences = [f"Something has been lost, but no single cause is above the limit of {limit}: {_listed(free)}."]
    else:
        sentences = [f"Not reproduced: nothing is to blame by the limit of {limit}; {_listed(free)}."]
    spared = [share.cause for share in free if share.above_limit]
    if spared:
        sentences.append(
            f"The share of {' and '.join(spared)} is above the limit without anything having fallen or been harmed by "
            "it: that is an advantage which shrank."
        )
    missing = [f"{cause} ({examined.not_measured[cause]})" for cause in CAUSES if cause in examined.not_measured]
    return [*sentences, f"Not examined: {'; '.join(missing)}."] if missing else sentences


def _blame(share: Share) -> str:
    apart = ", apart from the sum" if share.cause in APART else ""
    return f"{share.cause}{apart}, {told(share.estimate)} ({_MEANING[share.cause]})"


def _listed(shares: Sequence[Share]) -> str:
    return ", ".join(f"{share.cause} {told(share.estimate)}" for share in shares)


def _other_average(examined: Examined, other: Estimate, threshold: float) -> str:
    shares = examined.averages
    says = "shows it too" if other.low > threshold else "does not show it"
    return (
        f"The average with half-life {shares.other:g} of the run, beside the one with {shares.first:g}, {says} "
        f"({told(other)})."
    )

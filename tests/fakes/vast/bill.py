"""What the account looks like now, and what everything has cost at the end, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from tests.fakes.vast.fake import Fake
from tests.fakes.vast.ledger import usd_per_h
from tests.fakes.vast.machine import Instance


def status(fake: Fake) -> str:
    """The instances that exist and their stages, in one line; without money, which changes all the time."""
    found = [f"{each.id} {stage(each)} ({each.label or 'no label'})" for each in fake.existing()]
    return ", ".join(found) or "no instances"


def stage(instance: Instance) -> str:
    """The stage of an instance in the provider's word; `requested` while it has none."""
    wanted = "" if instance.intended in ("running", instance.actual) else f", wanted {instance.intended}"
    return f"{instance.actual or 'requested'}{wanted}"


def spent_usd(fake: Fake) -> float:
    """What everything has cost so far."""
    return sum(line.usd for line in fake.world.ledger.lines.values())


def bill(fake: Fake) -> list[str]:
    """One line for each instance that ever was, the sum, what is left behind, and what a careful client never does."""
    world = fake.world
    head = f"{'instance':>9}  {'lived s':>9}  {'GPU s':>9}  {'USD':>9}  label"
    rows = [
        f"{number:>9}  {line.exists_s:>9,.0f}  {line.gpu_s:>9,.0f}  {line.usd:>9.4f}  "
        f"{world.history[number][0].after.label or 'no label'}"
        f"{' (still exists)' if world.instances[number].living else ''}"
        for number, line in world.ledger.lines.items()
    ]
    left = fake.existing()
    left_s = sum(world.ledger.lines[each.id].exists_s for each in left)
    per_h = sum(usd_per_h(each) for each in left)
    return [
        head, *rows,
        f"together: {len(rows)} instances, {spent_usd(fake):.4f} USD",
        f"left behind: {len(left)} instances that have existed {left_s:,.0f} s and cost {per_h:.4f} USD an hour",
        f"labels of which two lived at once: {_listed(fake.double_rents())}",
        f"requests: {len(fake.requests)}, too early: {len(fake.spacing.violations)}, "
        f"wrong in form: {_listed(dict.fromkeys(fake.breaches))}",
    ]  # fmt: skip


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"

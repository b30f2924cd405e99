"""The filters of offers, in a fixed order, and what each one took away. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from provisioning.vast.models import Offer
from provisioning.vast.prices import needed_s, prices_of
from provisioning.vast.wanted import Wanted

_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Excluded:
    """What one filter took away: `count` offers, of which `unknown` do not say what it looks at.

    `why` completes "20 have …" ("have fewer than 4 GPUs"); `nearest` says how near the nearest came ('' = nothing to
    say). `name` is the field of `Wanted` that it comes from, or 'rentable', 'machine', 'duration', 'price'.
    """

    name: str
    count: int
    unknown: int
    why: str
    nearest: str = ""

    def __str__(self) -> str:
        notes = [self.nearest] if self.nearest else []
        if self.unknown:
            notes.append("it does not say" if self.count == 1 else f"{self.unknown:,} do not say")
        return f"{self.count:,} {self.why}" + (f" ({'; '.join(notes)})" if notes else "")


@dataclass(frozen=True, slots=True)
class _Filter:
    """`verbs` are for one and for many offers; `measure` is what is looked at (None = the offer does not say)."""

    name: str
    passes: Callable[[Offer], bool]
    verbs: tuple[str, str]
    why: str
    nearest: Callable[[Sequence[Offer]], str]
    measure: Callable[[Offer], object | None]


def apply_filters(offers: Sequence[Offer], wanted: Wanted) -> tuple[tuple[Offer, ...], tuple[Excluded, ...]]:
    """The offers that pass all filters, in their order, and what each filter took away of those that came to it."""
    left, excluded = tuple(offers), []
    for one in _filters(wanted):
        failed = [offer for offer in left if not one.passes(offer)]
        if failed:
            left = tuple(offer for offer in left if one.passes(offer))
            unknown = sum(one.measure(offer) is None for offer in failed)
            why = f"{one.verbs[len(failed) > 1]} {one.why}"
            excluded.append(Excluded(one.name, len(failed), unknown, why, one.nearest(failed)))
    return left, tuple(excluded)


def gpu_word(name: str) -> str:
    """A GPU's name as the service writes it, with spaces where a person may have typed underscores."""
    return " ".join(name.replace("_", " ").split())


def is_gpu(asked: str, name: str) -> bool:
    """Whether a person who asks for `asked` means the GPU of this name: letters count, not their case or gaps."""
    return _letters(asked) == _letters(name)


def spelled(wanted: Wanted, offers: Sequence[Offer]) -> Wanted:
    """The same with the GPU names that are meant as these offers write them: the service looks for exactly that."""
    there = tuple(dict.fromkeys(offer.gpu_name for offer in offers if offer.gpu_name))
    found = [tuple(name for name in there if is_gpu(asked, name)) or (gpu_word(asked),) for asked in wanted.gpu_names]
    return replace(wanted, gpu_names=tuple(dict.fromkeys(name for names in found for name in names)))


def _letters(name: str) -> str:
    return "".join(name.replace("_", " ").split()).casefold()


def _filters(wanted: Wanted) -> tuple[_Filter, ...]:
    return (
        _rentable(wanted),
        _machine(wanted),
        _gpu_name(wanted),
        _least("gpus", lambda offer: offer.num_gpus, wanted.gpus, f"fewer than {wanted.gpus} GPUs", "{:g}"),
        _least(
            "min_vram_gib",
            lambda offer: None if offer.gpu_ram_mb is None else offer.gpu_ram_mb / 1024,
            wanted.min_vram_gib,
            f"less than {wanted.min_vram_gib:g} GiB on each GPU",
            "{:.2f} GiB",
        ),
        _Filter(
            "is_verified",
            lambda offer: not wanted.is_verified or offer.verification == "verified",
            _BE,
            "not verified",
            _nothing,
            lambda offer: offer.verification or None,
        ),
        _Filter(
            "is_datacenter",
            lambda offer: not wanted.is_datacenter or bool(offer.hosting_type),
            _BE,
            "in no data centre",
            _nothing,
            lambda offer: offer.hosting_type,
        ),
        _least(
            "min_reliability",
            lambda offer: offer.reliability,
            wanted.min_reliability,
            f"a reliability below {wanted.min_reliability:g}",
            "{:.4f}",
        ),
        _least(
            "min_cuda",
            lambda offer: offer.cuda_max_good,
            wanted.min_cuda,
            f"a driver for less than CUDA {wanted.min_cuda:g}",
            "{:g}",
        ),
        _least(
            "disk_gb",
            lambda offer: offer.disk_space_gb,
            wanted.disk_gb,
            f"less than {wanted.disk_gb:g} GB of disk",
            "{:.0f} GB",
        ),
        *_network(wanted),
        _least(
            "duration",
            lambda offer: None if offer.duration_s is None else offer.duration_s / 3600,
            needed_s(wanted) / 3600,
            f"less than {needed_s(wanted) / 3600:.1f} h to stay",
            "{:.1f} h",
        ),
        *_money(wanted),
    )


_HAVE, _BE, _COST, _ASK, _DO = ("has", "have"), ("is", "are"), ("costs", "cost"), ("asks", "ask"), ("does", "do")


def _rentable(wanted: Wanted) -> _Filter:
    """A machine that somebody has may still be had by a bid, if that is the higher one."""
    return _Filter(
        "rentable",
        lambda offer: offer.is_rentable is not False and (wanted.is_interruptible or not offer.is_rented),
        _BE,
        "taken already",
        _nothing,
        _always,
    )


def _machine(wanted: Wanted) -> _Filter:
    """A machine without a number could be a bad one, and could not be remembered as one."""
    return _Filter(
        "machine",
        lambda offer: offer.machine_id is not None and offer.machine_id not in wanted.not_machines,
        _BE,
        "on machines to be avoided",
        _nothing,
        lambda offer: offer.machine_id,
    )


def _gpu_name(wanted: Wanted) -> _Filter:
    names = " or ".join(gpu_word(name) for name in wanted.gpu_names)
    return _Filter(
        "gpu_names",
        lambda offer: not wanted.gpu_names or any(is_gpu(name, offer.gpu_name) for name in wanted.gpu_names),
        _HAVE,
        f"another GPU than {names}",
        _other_names,
        lambda offer: offer.gpu_name or None,
    )


def _network(wanted: Wanted) -> tuple[_Filter, ...]:
    down, up = wanted.min_inet_down_mbit_per_s, wanted.min_inet_up_mbit_per_s
    return (
        _least(
            "min_inet_down_mbit_per_s",
            lambda offer: offer.inet_down_mbit_per_s,
            down,
            f"a download below {down:g} Mbit/s",
            "{:.0f} Mbit/s",
        ),
        _least(
            "min_inet_up_mbit_per_s",
            lambda offer: offer.inet_up_mbit_per_s,
            up,
            f"an upload below {up:g} Mbit/s",
            "{:.0f} Mbit/s",
        ),
    )


def _money(wanted: Wanted) -> tuple[_Filter, ...]:
    def usd_per_h(offer: Offer) -> float | None:
        prices = prices_of(offer, wanted)
        return None if prices is None else prices.usd_per_h

    bid, most = wanted.bid_usd_per_h, wanted.max_usd_per_h
    return (
        _Filter("price", lambda offer: usd_per_h(offer) is not None, _DO, "not name every price", _nothing, _always),
        _Filter(
            "bid_usd_per_h",
            lambda offer: bid is None or (offer.min_bid_usd_per_h is not None and offer.min_bid_usd_per_h <= bid),
            _ASK,
            f"more than the bid of {bid} USD/h",
            _nearest(lambda offer: offer.min_bid_usd_per_h, min, "the least bid: {:.4f}"),
            lambda offer: offer.min_bid_usd_per_h,
        ),
        _Filter(
            "max_usd_per_h",
            lambda offer: most is None or (usd_per_h(offer) or 0.0) <= most,
            _COST,
            f"more than {most} USD/h",
            _nearest(usd_per_h, min, "the cheapest: {:.4f}"),
            usd_per_h,
        ),
    )


def _least(name: str, measure: Callable[[Offer], float | None], least: float, why: str, shows: str) -> _Filter:
    """At least so much; where nothing is asked (0), an offer that does not say passes too."""

    def passes(offer: Offer) -> bool:
        value = measure(offer)
        return least <= 0.0 or (value is not None and value >= least)

    return _Filter(name, passes, _HAVE, why, _nearest(measure, max, f"the most: {shows}"), measure)


def _nearest(
    measure: Callable[[Offer], float | None], best: Callable[[Sequence[float]], float], shows: str
) -> Callable[[Sequence[Offer]], str]:
    def nearest(failed: Sequence[Offer]) -> str:
        known = [value for offer in failed if (value := measure(offer)) is not None]
        return shows.format(best(known)) if known else ""

    return nearest


def _other_names(failed: Sequence[Offer]) -> str:
    names = Counter(offer.gpu_name for offer in failed if offer.gpu_name).most_common()
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(name for name, _ in names[:_SHOWN_NAMES]) + more


def _nothing(failed: Sequence[Offer]) -> str:
    return ""


def _always(offer: Offer) -> object:
    return offer

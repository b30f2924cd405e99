"""The amounts of memory that a message about too little of it tells, and the sentence that repeats them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNIT_MIB = {"B": 2.0**-20, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}
_AMOUNT = r"(\d+(?:\.\d+)?) ?(bytes|[KMGT]i?B)\b"
_HERE = (rf"total capaci?ty of {_AMOUNT}", rf"{_AMOUNT} total capacity", rf"Device limit\s*: {_AMOUNT}")
_ASKED = (rf"(?:allocate|allocating|alloc) {_AMOUNT}", rf"Requested\s*: {_AMOUNT}")
_FREE = (rf"of which {_AMOUNT} is free", rf"{_AMOUNT} free", rf"Free \(according to CUDA\): {_AMOUNT}")
_OWN = (
    rf"this process has {_AMOUNT} memory in use",
    rf"{_AMOUNT} reserved in total",
    rf"{_AMOUNT} already allocated",
    rf"Currently allocated\s*: {_AMOUNT}",
)
_OTHER = re.compile(rf"Process \d+ has {_AMOUNT} memory in use")


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of the memory around a failed attempt, in MiB; None where nothing tells it.

    `here` is what the slot's GPU or the host has, `asked` the piece that was refused, `free` what was free then, `own`
    what the process held, `others` what other processes held on the same GPU.
    """

    here: float | None = None
    asked: float | None = None
    free: float | None = None
    own: float | None = None
    others: float | None = None

    @property
    def would_fit_alone(self) -> bool:
        """Whether the piece would have been there without the other processes on the GPU."""
        if not self.others or not self.asked or self.here is None or self.own is None:
            return False
        return self.own + self.asked <= self.here

    def tell(self, place: str) -> str:
        """The known amounts in a sentence, empty where none is known; `place` is the word for what has the memory."""
        amounts = (
            ("the {} has {}", self.here),
            ("this process held {1}", self.own),
            ("others held {1}", self.others),
            ("{1} was free", self.free),
            ("it asked for {1} more", self.asked),
        )
        told = [words.format(place, gib(mib)) for words, mib in amounts if mib is not None]
        return ", ".join(told)


def read_memory(text: str, known: Memory) -> Memory:
    """Read the amounts in a message; what it does not tell is taken from `known`."""
    others = [_mib(amount, unit) for amount, unit in _OTHER.findall(text)]
    own = _first(text, _OWN)
    return Memory(
        here=_first(text, _HERE) or known.here,
        asked=_first(text, _ASKED),
        free=_first(text, _FREE),
        own=known.own if own is None else own,
        others=sum(others) if others else None,
    )


def gib(mib: float) -> str:
    """An amount of memory for a person, given in MiB."""
    if mib >= 1024**2:
        return f"{mib / 1024**2:.1f} TiB"
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"


def _first(text: str, patterns: tuple[str, ...]) -> float | None:
    found = next((match for pattern in patterns if (match := re.search(pattern, text))), None)
    return None if found is None else _mib(found[1], found[2])


def _mib(amount: str, unit: str) -> float:
    return float(amount) * _UNIT_MIB[unit[0].upper()]

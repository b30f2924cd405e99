"""What a person may ask of a rented machine: one value, its limits and its JSON form. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from provisioning.vast.asking import BID_USD_PER_H, LEAST_DISK_GB, MOST_IMAGE

DEFAULT_IMAGE = "vastai/pytorch:cuda-12.8.1-auto"
"""The service's own image: it has an sshd (an image without one is never reached), Ubuntu's python3 (3.12) for what we
run there, torch for CUDA 12.8 in /venv/main, and layers that hosts of the service often hold already, so that it starts
fast. Its tag moves to newer builds; name a dated one for a study whose environment must stay as it is."""

DEFAULT_CUDA = 12.8
"""The CUDA version of that image; a driver that is older than an image's CUDA may refuse its kernels."""

DEFAULT_RELIABILITY = 0.95
"""All arms of a study sit on one machine, and one that is away takes all of them with it: 0.95 is away for a twentieth
of the time, about half an hour of a night; the 0.9 that another client of the service asks for is twice that."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A machine to rent. A least value of 0 asks for nothing, None is no limit, an empty list allows all.

    `gpus` is how many GPUs one machine must have, `min_vram_gib` the memory of each, reliability is 0 to 1.
    `max_usd_per_h` bounds an hour of the whole machine with its disk. `hours` is the planned use, and traffic what that
    moves over the network in GB of 10**9 bytes: `traffic_up_gb` out of the machine (what comes home), `traffic_down_gb`
    into it. `is_verified` and `is_datacenter` ask for machines that the service has verified, and for those in data
    centres; false does not care. `is_interruptible` rents by a bid for the whole machine: whoever bids more pauses it;
    without `bid_usd_per_h` the least bid of each offer is taken. `not_machines` are machines that have proved bad.
    Raises ValueError for a value that makes no sense.
    """

    gpu_names: tuple[str, ...] = ()
    gpus: int = 1
    min_vram_gib: float = 0.0
    min_reliability: float = DEFAULT_RELIABILITY
    min_inet_down_mbit_per_s: float = 100.0
    min_inet_up_mbit_per_s: float = 50.0
    min_cuda: float = DEFAULT_CUDA
    disk_gb: float = 40.0
    max_usd_per_h: float | None = None
    hours: float = 8.0
    is_verified: bool = True
    is_datacenter: bool = False
    is_interruptible: bool = False
    bid_usd_per_h: float | None = None
    image: str = DEFAULT_IMAGE
    traffic_up_gb: float = 5.0
    traffic_down_gb: float = 20.0
    not_machines: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        low, high = BID_USD_PER_H
        for name, is_right, allowed in (
            ("gpu_names", all(one.strip() for one in self.gpu_names), "names such as RTX 4090"),
            ("gpus", 1 <= self.gpus <= 64, "1 to 64"),
            ("min_reliability", 0.0 <= self.min_reliability <= 1.0, "0 to 1"),
            ("disk_gb", LEAST_DISK_GB <= self.disk_gb < math.inf, f"from {LEAST_DISK_GB:g}"),
            ("max_usd_per_h", self.max_usd_per_h is None or 0.0 < self.max_usd_per_h < math.inf, "above 0"),
            ("hours", 0.0 < self.hours <= 8760.0, "above 0, at most 8760"),
            ("bid_usd_per_h", self.bid_usd_per_h is None or low <= self.bid_usd_per_h <= high, f"{low} to {high}"),
            ("bid_usd_per_h", self.bid_usd_per_h is None or self.is_interruptible, "null unless is_interruptible"),
            ("image", 0 < len(self.image) <= MOST_IMAGE and self.image.isprintable(), f"1 to {MOST_IMAGE} characters"),
            ("not_machines", all(one >= 0 for one in self.not_machines), "numbers of machines"),
            *((name, 0.0 <= getattr(self, name) < math.inf, "a finite number from 0") for name in _AMOUNTS),
        ):
            if not is_right:
                raise ValueError(f"{name} {getattr(self, name)!r}: allowed: {allowed}")

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; `from_json` gives the same value back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Wanted:
        """The value of a JSON object; what is left out has its default. Raises ValueError that names the key."""
        known = {one.name: str(one.type) for one in fields(cls)}
        for name in document:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"{name!r} is nothing that can be asked of a machine{hint} (allowed: {', '.join(known)})"
                )
        return cls(**{name: _read(name, known[name], value) for name, value in document.items()})


_AMOUNTS = (
    "min_vram_gib",
    "min_inet_down_mbit_per_s",
    "min_inet_up_mbit_per_s",
    "min_cuda",
    "traffic_up_gb",
    "traffic_down_gb",
)
_SAID = {
    "tuple[str, ...]": "a list of texts",
    "tuple[int, ...]": "a list of whole numbers",
    "int": "a whole number",
    "float": "a number",
    "float | None": "a number or null",
    "bool": "true or false",
    "str": "a text",
}


def _read(name: str, kind: str, value: Any) -> Any:
    """One value as its field has it. Raises ValueError for another type; true is no number here."""
    if kind.startswith("tuple"):
        one = str if kind == "tuple[str, ...]" else int
        if isinstance(value, list | tuple) and all(
            isinstance(each, one) and not isinstance(each, bool) for each in value
        ):
            return tuple(value)
    elif kind == "bool" or isinstance(value, bool):
        if kind == "bool" and isinstance(value, bool):
            return value
    elif kind == "float | None" and value is None:
        return None
    elif kind.startswith("float") and isinstance(value, int | float):
        return float(value)
    elif (kind == "int" and isinstance(value, int)) or (kind == "str" and isinstance(value, str)):
        return value
    raise ValueError(f"{name} {value!r}: allowed: {_SAID[kind]}")

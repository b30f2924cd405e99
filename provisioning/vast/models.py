"""Values that come from Vast.ai, as frozen types. What the service says is foreign and varies: numbers come as strings,
anything may be null or missing, addresses carry white space, and a rented host can write into some of the texts.

A field that cannot be read is None (or '' for a text); a record is refused only when its id cannot be read. Units are
in the names; MB and Mb are what the service counts in (10**6 bytes and bits), GB likewise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

_MOST_TEXT = 1000
_ADDRESS = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,252})")
_NUMBER = re.compile(r"[+-]?\d{1,30}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,3})?")
_LARGEST_ID = 2**63 - 1


def number(value: Any) -> float | None:
    """A finite number out of a number or the text of one, else None."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value := value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) > _LARGEST_ID:
        return None
    return float(value) if math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """A whole number out of a number or the text of one, else None."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value.strip()) <= 19:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= _LARGEST_ID else None
    found = number(value)
    return int(found) if found is not None and found.is_integer() and abs(found) <= 2**53 else None


def text(value: Any) -> str:
    """A stripped text of at most 1,000 characters; '' for what is no text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value) if number(value) is not None else ""
    return value.strip()[:_MOST_TEXT] if isinstance(value, str) else ""


def _amount(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found >= 0.0 else None


def _address(value: Any) -> str:
    found = text(value)
    return found if _ADDRESS.fullmatch(found) else ""


def _port(value: Any) -> int | None:
    found = whole(value)
    return found if found is not None and 0 < found < 65536 else None


def _id(value: Any) -> int:
    found = whole(value)
    if found is None or found < 0:
        raise ValueError("no id")
    return found


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _direct_port(value: Any) -> int | None:
    """The port outside that leads to port 22 inside, out of {"22/tcp": [{"HostIp": …, "HostPort": "41022"}]}."""
    mapped = value.get("22/tcp") if isinstance(value, Mapping) else None
    first = mapped[0] if isinstance(mapped, list) and mapped else None
    return _port(first.get("HostPort")) if isinstance(first, Mapping) else None


Id = Annotated[int, BeforeValidator(_id)]
Amount = Annotated[float | None, BeforeValidator(_amount)]
Number = Annotated[float | None, BeforeValidator(number)]
Whole = Annotated[int | None, BeforeValidator(whole)]
Text = Annotated[str, BeforeValidator(text)]
Address = Annotated[str, BeforeValidator(_address)]
Port = Annotated[int | None, BeforeValidator(_port)]
DirectPort = Annotated[int | None, BeforeValidator(_direct_port)]
Truth = Annotated[bool | None, BeforeValidator(_truth)]


def _named(*names: str) -> Any:
    return Field(default=None, validation_alias=AliasChoices(*names))


def _text_named(*names: str) -> Any:
    return Field(default="", validation_alias=AliasChoices(*names))


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=False)


class Offer(_Record):
    """One machine, or a part of one, that can be rented. `offer_id` is what create asks for, once.

    `usd_per_h` is the price on demand with the asked storage, `min_bid_usd_per_h` the least bid; `reliability` is 0 to
    1; `machine_id` names the physical machine. `duration_s` is how long it can be kept.
    """

    offer_id: Id = Field(validation_alias=AliasChoices("id", "ask_contract_id"))
    machine_id: Whole = None
    host_id: Whole = None
    num_gpus: Whole = None
    gpu_name: Text = ""
    gpu_ram_mb: Amount = _named("gpu_ram")
    gpu_frac: Amount = None
    cuda_max_good: Amount = None
    driver_version: Text = ""
    compute_cap: Whole = None
    cpu_cores: Amount = _named("cpu_cores_effective", "cpu_cores")
    cpu_ram_mb: Amount = _named("cpu_ram")
    disk_space_gb: Amount = _named("disk_space")
    disk_mb_per_s: Amount = _named("disk_bw")
    inet_up_mbit_per_s: Amount = _named("inet_up")
    inet_down_mbit_per_s: Amount = _named("inet_down")
    inet_up_usd_per_gb: Amount = _named("inet_up_cost")
    inet_down_usd_per_gb: Amount = _named("inet_down_cost")
    direct_port_count: Whole = None
    usd_per_h: Amount = _named("dph_total")
    base_usd_per_h: Amount = _named("dph_base")
    min_bid_usd_per_h: Amount = _named("min_bid")
    storage_usd_per_gb_month: Amount = _named("storage_cost")
    storage_usd_per_h: Amount = _named("storage_total_cost")
    reliability: Amount = _named("reliability2", "reliability")
    verification: Text = ""
    is_rentable: Truth = _named("rentable")
    is_rented: Truth = _named("rented")
    hosting_type: Whole = None
    geolocation: Text = ""
    duration_s: Amount = _named("duration")
    end_time: Amount = _named("end_date")


class Instance(_Record):
    """One contract of ours. A status that was not said is ''; times are seconds since the epoch.

    `actual_status` is the container's, `cur_state` and `next_state` are the contract's. Environment, tokens and keys
    of the record are not kept: nothing here is a secret.
    """

    instance_id: Id = Field(validation_alias="id")
    label: Text = ""
    machine_id: Whole = None
    host_id: Whole = None
    actual_status: Text = ""
    intended_status: Text = ""
    cur_state: Text = ""
    next_state: Text = ""
    status_msg: Text = ""
    ssh_host: Address = ""
    ssh_port: Port = None
    public_address: Address = _text_named("public_ipaddr")
    direct_ssh_port: DirectPort = _named("ports")
    image_runtype: Text = ""
    num_gpus: Whole = None
    gpu_name: Text = ""
    gpu_ram_mb: Amount = _named("gpu_ram")
    driver_version: Text = ""
    disk_space_gb: Amount = _named("disk_space")
    disk_used_gb: Amount = _named("disk_usage")
    usd_per_h: Amount = _named("dph_total")
    base_usd_per_h: Amount = _named("dph_base")
    storage_usd_per_h: Amount = _named("storage_total_cost")
    inet_up_usd_per_gb: Amount = _named("inet_up_cost")
    inet_down_usd_per_gb: Amount = _named("inet_down_cost")
    is_bid: Truth = None
    min_bid_usd_per_h: Amount = _named("min_bid")
    start_time: Amount = _named("start_date")
    end_time: Amount = _named("end_date")
    duration_s: Amount = _named("duration")
    uptime_min: Amount = _named("uptime_mins")

    @property
    def direct_endpoint(self) -> tuple[str, int] | None:
        """(address, port) of the container's own sshd, or None while there is none."""
        return (self.public_address, self.direct_ssh_port) if self.public_address and self.direct_ssh_port else None

    @property
    def proxy_endpoint(self) -> tuple[str, int] | None:
        """(address, port) of the service's ssh gateway, or None. Images with Jupyter answer one port higher."""
        if not self.ssh_host or self.ssh_port is None:
            return None
        port = self.ssh_port + (1 if "jupyter" in self.image_runtype else 0)
        return (self.ssh_host, port) if port < 65536 else None

    @property
    def is_unloaded(self) -> bool:
        """Whether the service says that the contract is over: what it says after a destroy."""
        return self.cur_state == "unloaded"

    @property
    def is_halted(self) -> bool:
        """Whether the service stopped it and means it to stay so: outbid, or stopped by us (the caller knows which)."""
        return self.cur_state == self.intended_status == self.next_state == "stopped"


class Account(_Record):
    """Whose key it is, and the money left in US dollars."""

    user_id: Id = Field(validation_alias="id")
    balance_usd: Number = _named("balance")
    credit_usd: Number = _named("credit")


class SshKey(_Record):
    """A public key of the account: every new instance lets its owner in."""

    key_id: Whole = _named("id")
    public_key: Text = _text_named("public_key", "ssh_key", "key")


class Charge(_Record):
    """What one contract was billed in the days asked for. `source` is 'instance-<id>', the times are epoch seconds."""

    source: Text = ""
    kind: Text = _text_named("type")
    amount_usd: Number = _named("amount")
    start_time: Number = _named("start")
    end_time: Number = _named("end")
    description: Text = ""

    @property
    def instance_id(self) -> int | None:
        """The instance it is for, or None (a volume, or a source that is not understood)."""
        return whole(self.source.removeprefix("instance-")) if self.source.startswith("instance-") else None


@dataclass(frozen=True, slots=True)
class Offers:
    """What a search found; `unreadable` records had no id and are left out."""

    offers: tuple[Offer, ...]
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class InstancePage:
    """One page of the list; `next_token` leads to the next (None: this was the last)."""

    instances: tuple[Instance, ...]
    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class ChargePage:
    """One page of what was billed; `next_token` leads to the next (None: this was the last)."""

    charges: tuple[Charge, ...]
    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The list of instances as it grows page by page. Only a complete one says that something is not there."""

    instances: Mapping[int, Instance]
    tokens: tuple[str, ...] = ()
    is_complete: bool = False

    @classmethod
    def empty(cls) -> Listing:
        """Before the first page."""
        return cls({})

    @property
    def after_token(self) -> str | None:
        """What to ask the next page with."""
        return self.tokens[-1] if self.tokens else None

    def with_page(self, page: InstancePage) -> Listing:
        """With one more page. Raises ValueError when the list is complete, or leads back to a page it came from."""
        if self.is_complete:
            raise ValueError("the list is complete: there is no page after the last")
        if page.next_token in self.tokens:
            raise ValueError("the list leads back to a page it came from")
        merged = {**self.instances, **{instance.instance_id: instance for instance in page.instances}}
        if page.next_token is None:
            return Listing(merged, self.tokens, is_complete=True)
        return Listing(merged, (*self.tokens, page.next_token))


Record = TypeVar("Record", bound=_Record)


def read_record(kind: type[Record], value: Any) -> Record | None:
    """A record of this kind, or None when it is no object or its id cannot be read."""
    if not isinstance(value, Mapping):
        return None
    try:
        return kind.model_validate(dict(value))
    except ValidationError:
        return None


def read_records(kind: type[Record], values: Sequence[Any]) -> tuple[tuple[Record, ...], int]:
    """The records that can be read, and how many cannot."""
    found = [read_record(kind, value) for value in values]
    return tuple(record for record in found if record is not None), found.count(None)

"""The contract of a place where a process can run: Provider, Host, Slot, Shell.

Every verb is one bounded step: it never sleeps, never retries and never decides. Whoever calls it decides what comes
next, so each error below is a verb for the caller.

    ProvisioningError
    ├── NoCapacity         nothing fits the request now: wait, or ask for less
    ├── SkipOffer          this offer cannot be had: take the next one
    ├── NotYetReleased     the release was asked for and is not proven: ask again
    ├── AuthenticationFailed  credentials are wrong: stop and tell the person
    ├── RateLimited        asked too often: ask again later
    ├── SpawnRefused       the host answers, and will not start this attempt: the attempt failed
    ├── StagingFailed      what a run needs cannot be put on the host: the attempt failed
    ├── HomeKeyError       the key pair of this home cannot be used: tell the person
    └── HostLost           the host does not answer: its processes may still be alive
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class ProvisioningError(Exception):
    """Root of the errors that a provider or a shell raises."""


class NoCapacity(ProvisioningError):
    """Nothing that fits is there now."""


class SkipOffer(ProvisioningError):
    """This offer cannot be had; another one may."""


class NotYetReleased(ProvisioningError):
    """The release is not proven yet."""


class AuthenticationFailed(ProvisioningError):
    """The place refused our credentials."""


class RateLimited(ProvisioningError):
    """The place asks us to slow down."""


class SpawnRefused(ProvisioningError):
    """The host did not start an attempt (no room for its files, an unusable launch spec); no process exists for it.

    Attempts that came before it in the same call are alive; asking for them again answers with who they are.
    """

    def __init__(self, attempt: str, reason: str) -> None:
        self.attempt = attempt
        self.reason = reason
        super().__init__(f"{attempt}: {reason}")


class StagingFailed(ProvisioningError):
    """The host answers, and the code cannot be put there: a full disk, files changed there; a person must act."""


class HomeKeyError(ProvisioningError):
    """The key of this home cannot be used; the text says why and what to do."""


class HostLost(ProvisioningError):
    """The host gave no answer within its deadline, or could not carry out what every host can."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A pinned share of one host: some GPUs (by UUID) or some CPU cores.

    `name` is unique on its host and is what a table shows, for example `cpu0` or `gpu1`.
    `gpu_indices` are PCI bus order numbers, those that CUDA_VISIBLE_DEVICES takes under CUDA_DEVICE_ORDER=PCI_BUS_ID.
    `vram_mib` is the total memory of the smallest GPU of the slot.
    `shares_cores` is true when the host has fewer cores than its slots hold together. `host` is the name of that host,
    '' for the machine that we run on.
    """

    name: str
    cores: tuple[int, ...]
    gpu_uuids: tuple[str, ...] = ()
    gpu_indices: tuple[int, ...] = ()
    vram_mib: int = 0
    shares_cores: bool = False
    host: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.name}" if self.host else self.name


@dataclass(frozen=True, slots=True)
class Offer:
    """A host that could be had, and what an hour of it costs (0 for a machine we own).

    `machine` names the physical machine where several offers may be parts of one. `order` is what the provider must
    know to create it, as JSON: it is stored before anything is paid, so nothing of it is secret.
    """

    provider: str
    offer_id: str
    gpus: int
    cores: int
    price_usd_per_h: float = 0.0
    machine: str = ""
    order: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What a wave of runs needs from one host: number of slots, GPUs and cores for each, GiB of GPU memory.

    `wanted` is what else a rented machine must be like, in the provider's own words, as JSON.
    """

    slots: int | None
    gpus: int
    cpus: int
    min_vram_gib: float = 0.0
    wanted: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Handle:
    """Our hold on a host, known by its unique label."""

    provider: str
    label: str
    host: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The provider said no. `left` is what it made all the same, which must be released; None = nothing."""

    reason: str
    left: Handle | None = None


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The provider did not say; something may exist under the label."""

    reason: str


@dataclass(frozen=True, slots=True)
class Present:
    """The provider confirms that the label exists, at this stage of its life.

    `host` is the provider's own name of it (an instance's number), `why` what the provider says about the stage.
    """

    stage: str
    host: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Absent:
    """The provider confirms that nothing has this label."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer: neither present nor absent."""

    reason: str


Observation = Present | Absent | Unknown


@dataclass(frozen=True, slots=True)
class Released:
    """The host is given back; `proof` is what the provider said."""

    proof: str


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be confused with a later one of the same number.

    Containers share the boot id of their host, so the start ticks of pid 1 belong to the identity too.
    """

    boot_id: str
    init_start_ticks: int
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class ProcessOwner:
    """Whose a process is: its user, the start of its command line, and the attempt whose mark it or a process above it
    carries ('' = none)."""

    user: str
    command: str
    attempt: str = ""


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Memory that one process holds on one GPU. `pid` is None for what no process that we can see accounts for."""

    gpu_uuid: str
    mib: int
    pid: int | None
    user: str = ""
    command: str = ""
    attempt: str = ""

    def __str__(self) -> str:
        if self.pid is None:
            return f"processes that cannot be seen from here hold {self.mib:,} MiB"
        return f"pid {self.pid} ({self.user}: {self.command}) holds {self.mib:,} MiB"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process that still runs although its attempt has ended; it started `age_s` seconds ago."""

    identity: ProcessIdentity
    age_s: float


@dataclass(frozen=True, slots=True)
class SlotProbe:
    """What one look at a slot found, memory in MiB by GPU UUID.

    `used_mib` is all that is in use; `graphics_mib` is the part of programs that only draw; `others_mib` is the part of
    every process that is visible and not ours. `foreign` are those that compete with a run for a GPU, `ours` those that
    carry a mark of this home. `leftovers` are the processes that still run of those asked for. `problem` says why the
    slot cannot be used at all ('' = it can).
    """

    used_mib: Mapping[str, int] = field(default_factory=dict)
    graphics_mib: Mapping[str, int] = field(default_factory=dict)
    others_mib: Mapping[str, int] = field(default_factory=dict)
    foreign: tuple[GpuUse, ...] = ()
    ours: tuple[GpuUse, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spawned:
    """A supervisor has the attempt and lives on without us. `existing`: it had it before this call."""

    attempt: str
    identity: ProcessIdentity
    existing: bool = False


class Shell(Protocol):
    """Verbs on one host. Paths are absolute paths on this machine; what lies on another one has its copy there, and
    `path_there` says where it is in truth. A verb that cannot be carried out raises HostLost; a file that is not there
    is None.

    `is_here`: the host is the machine that we run on. `python` is the interpreter there, unless an arm names another
    one, and `mask` names the GPUs that are visible to us there (None = all).
    """

    @property
    def is_here(self) -> bool: ...

    @property
    def python(self) -> str: ...

    @property
    def mask(self) -> str | None: ...

    def path_there(self, path: str) -> str:
        """The path on the host of what has this path here."""
        ...

    def names_there(self, folder: str) -> tuple[str, ...]:
        """Sorted names in a folder as the host has it now; `names` may be a moment old."""
        ...

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> bytes | None:
        """Bytes of a file from `offset`, at most `limit`; None when there is no such file."""
        ...

    def stamp(self, path: str) -> tuple[int, int, int] | None:
        """(inode, size in bytes, modification time in ns) of a file, or None when there is no such file."""
        ...

    def write(self, path: str, data: bytes, *, is_durable: bool = True) -> None:
        """Replace a file atomically, creating its folders with mode 0700.

        `is_durable` waits until it would outlive a power failure; files that are written again after one need not wait.
        """
        ...

    def names(self, folder: str) -> tuple[str, ...]:
        """Sorted names in a folder; empty when there is no such folder."""
        ...

    def spawn(self, launch_specs: Sequence[Mapping[str, Any]]) -> tuple[Spawned, ...]:
        """Fork one supervisor for each launch spec, whose paths are those of the host. Environment values travel
        through a pipe only; on another machine they are added to those that hold there.

        An attempt that was spawned before is not started again: its first supervisor is answered, marked `existing`.
        After HostLost it is unknown whether something started, and the same call answers that too. Raises SpawnRefused.
        """
        ...

    def is_alive(self, identity: ProcessIdentity) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        ...

    def can_see(self, identity: ProcessIdentity) -> bool:
        """Whether `is_alive` would know: false for a process of another container on the same boot of this machine."""
        ...

    def follow(self, folders: Mapping[str, Sequence[ProcessIdentity]]) -> None:
        """The run folders that will be read from now on, all of them, and the processes that work in each.

        Where reading is reading a copy, these are the folders that are copied.
        """
        ...

    def end_descriptor(self, identity: ProcessIdentity) -> int | None:
        """A new file descriptor that turns readable when the process ends, for the caller to close.

        None where there is none to be had: the host is elsewhere, or the process has ended already.
        """
        ...

    def free_disk_mib(self, path: str) -> int:
        """MiB free for us on the file system that holds `path`."""
        ...

    def memory_mib(self) -> float:
        """MiB of main memory that all processes there together may use."""
        ...

    def close(self) -> None:
        """Let go of the connection; what was spawned lives on."""
        ...


class Provider(Protocol):
    """A kind of place. `name` is what `--provider` says."""

    name: str

    def hosts(self) -> tuple[Offer, ...]:
        """The hosts that are ours anyway, known without asking anybody; none where each must be rented first."""
        ...

    def offers(self, request: Request) -> tuple[Offer, ...]:
        """Hosts that could serve the request, best first."""
        ...

    def create(self, offer: Offer, label: str) -> Handle | Refused | Ambiguous:
        """Take the offered host under a unique label."""
        ...

    def observe(self, labels: Sequence[str]) -> Mapping[str, Observation]:
        """What the provider says of each label."""
        ...

    def release(self, handle: Handle) -> Released:
        """Give the host back; raises NotYetReleased until that is proven. Releasing an absent host is fine."""
        ...

    def slots(self, handle: Handle, request: Request) -> tuple[Slot, ...]:
        """The host cut into slots for this request; raises NoCapacity when not even one fits."""
        ...

    def probe(self, handle: Handle, slot: Slot, pids: Sequence[int] = ()) -> SlotProbe:
        """Who uses the GPUs of a slot, whether its cores are still ours, and which of the processes still run.

        Ours is what carries the mark of an attempt of the home that the handle's label names. What was seen a moment
        ago may be answered again. Never raises for a GPU or a driver that does not answer: that is its `problem`.
        Raises HostLost when the host does not answer: that says nothing about the slot.
        """
        ...

    def shell(self, handle: Handle) -> Shell:
        """The shell of a held host; the host is not asked anything."""
        ...

    def close(self) -> None:
        """Let go of all connections; what was spawned lives on."""
        ...

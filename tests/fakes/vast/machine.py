"""One instance and what can happen to it: pure functions from an instance and an event to the instance afterwards.

contract (actual_status null) -> created -> loading -> running -> stopped, exited, offline, unknown, frozen -> gone
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.fakes.vast.market import Offer

TROUBLES = (
    "", "loading_for_ever", "loading_error", "oci", "exits", "no_ports", "ssh_refused", "ssh_hangs",
    "nvidia_smi_broken", "fewer_gpus",
)  # fmt: skip
EVENTS = (
    "contract", "load", "run", "fail", "stop", "start", "outbid", "win", "offline", "unknown", "back", "exit",
    "freeze", "thaw", "restart", "no_balance", "expire", "destroy",
)  # fmt: skip
FAILURES = {
    "loading_error": "Error response from daemon: manifest for {image} not found: manifest unknown",
    "oci": "Error: OCI runtime create failed: container_linux.go: starting container process caused: no such file",
}


@dataclass(frozen=True)
class Endpoint:
    """Where an instance is reached: the gateway, and directly (None: no direct port)."""

    ssh_host: str
    ssh_port: int
    direct_host: str | None = None
    direct_port: int | None = None


@dataclass(frozen=True)
class Boot:
    """How long the stages of a start take, in seconds, and what goes wrong in it (one of TROUBLES).

    The last four troubles are the host's own: the fake keeps the word on the instance, and whoever makes its endpoint
    plays it; only `ssh_refused` is played here, by an address where nobody listens.
    """

    contract_s: float = 2.0
    created_s: float = 5.0
    loading_s: float = 60.0
    ports_s: float = 0.0
    trouble: str = ""

    def __post_init__(self) -> None:
        if self.trouble not in TROUBLES:
            raise ValueError(f"trouble {self.trouble!r}; allowed: {', '.join(map(repr, TROUBLES))}")


@dataclass(frozen=True)
class Instance:
    """One contract. `actual` is the container's state, `current` and `following` are the hardware's."""

    id: int
    label: str | None
    offer: Offer
    created_s: float
    end_s: float
    gpu_usd_per_h: float
    storage_usd_per_h: float
    disk_gb: float = 10.0
    image: str = ""
    onstart: str = ""
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    runtype: str = "ssh_direc ssh_proxy"
    is_bid: bool = False
    ssh_keys: tuple[str, ...] = ()
    api_key: str = ""
    boot: Boot = Boot()
    actual: str | None = None
    intended: str = "running"
    current: str = "running"
    following: str = "running"
    message: str = ""
    endpoint: Endpoint | None = None
    running_since_s: float | None = None
    starts: int = 0
    epoch: int = 0  # counts interruptions: what was scheduled before one does not happen after it
    stopped_s: float | None = None
    expired: bool = False
    gone_s: float | None = None

    @property
    def living(self) -> bool:
        """Whether it exists at the provider."""
        return self.gone_s is None


def after(instance: Instance, event: str, now_s: float) -> Instance:
    """The instance after an event, the same one when it cannot happen now. Raises ValueError for an unknown event."""
    if event not in EVENTS:
        raise ValueError(f"no such event {event!r}; allowed: {', '.join(EVENTS)}")
    if not instance.living:
        return instance
    if event in ("contract", "load", "run", "fail"):
        return _booting(instance, event, now_s)
    if event == "destroy":
        return _halted(instance, now_s, "stopped", None, current="unloaded", following="unloaded", gone_s=now_s)
    if event in ("stop", "no_balance", "outbid", "expire"):
        # A host that is not heard from stays so; what is wanted of it changes all the same.
        actual = instance.actual if instance.actual in ("offline", "unknown") else "stopped"
        expired = instance.expired or event == "expire"
        return _halted(instance, now_s, "stopped", actual, current="stopped", following="stopped", expired=expired)
    if event in ("start", "win"):
        return _started(instance)
    return _befallen(instance, event, now_s)


def _booting(instance: Instance, event: str, now_s: float) -> Instance:
    if event == "contract":
        return replace(instance, actual="created", message="")
    if event == "load":
        return replace(instance, actual="loading", message=f"Pulling from {instance.image}")
    if event == "fail":
        text = FAILURES.get(instance.boot.trouble, "").format(image=instance.image)
        actual = "exited" if instance.boot.trouble == "exits" else instance.actual
        return replace(instance, actual=actual, message=text or "container exited with code 1")
    return replace(
        instance,
        actual="running",
        current="running",
        message=f"success, running {instance.image}/ssh\n",
        running_since_s=now_s,
        starts=instance.starts + 1,
    )


def _started(instance: Instance) -> Instance:
    """Wanted again; whether the GPU is to be had is told by the events that follow."""
    if instance.expired or instance.intended == "running":
        return instance
    return replace(instance, intended="running", following="running", stopped_s=None, epoch=instance.epoch + 1)


def _befallen(instance: Instance, event: str, now_s: float) -> Instance:
    """What the host does by itself."""
    if event in ("offline", "unknown"):
        return replace(_halted(instance, now_s, instance.intended, event), stopped_s=instance.stopped_s)
    if event == "back":
        if instance.actual not in ("offline", "unknown"):
            return instance
        # The container starts again, onstart and all, if it was to run.
        actual = "created" if instance.intended == "running" else "stopped"
        return replace(instance, actual=actual, epoch=instance.epoch + 1)
    if event == "thaw":
        return replace(instance, actual="running", intended="running") if instance.actual == "frozen" else instance
    if instance.actual != "running":
        return instance
    if event == "freeze":
        return replace(instance, actual="frozen", intended="frozen")
    if event == "restart":
        return replace(_halted(instance, now_s, "running", "created"), stopped_s=None)
    return _halted(instance, now_s, instance.intended, "exited", message="container exited with code 137")


def _halted(
    instance: Instance,
    now_s: float,
    intended: str,
    actual: str | None,
    current: str | None = None,
    following: str | None = None,
    message: str | None = None,
    expired: bool | None = None,
    gone_s: float | None = None,
) -> Instance:
    return replace(
        instance,
        intended=intended,
        actual=actual,
        current=current or instance.current,
        following=following or instance.following,
        message=instance.message if message is None else message,
        expired=instance.expired if expired is None else expired,
        gone_s=gone_s,
        endpoint=None,
        running_since_s=None,
        epoch=instance.epoch + 1,
        stopped_s=now_s if instance.stopped_s is None else instance.stopped_s,
    )


def boot_events(instance: Instance, first: bool, now_s: float) -> list[tuple[float, str]]:
    """When the stages of a start happen, as (seconds since 1970, event). A stop and start needs no new contract."""
    boot = instance.boot
    created_s = now_s + (boot.contract_s if first else 0.0)
    events = [(created_s, "contract")] if first else []
    if boot.trouble == "oci":
        return [*events, (created_s + boot.created_s, "fail")]
    loading_s = created_s + boot.created_s
    events.append((loading_s, "load"))
    if boot.trouble == "loading_for_ever":
        return events
    ends = "fail" if boot.trouble in ("loading_error", "exits") else "run"
    return [*events, (loading_s + boot.loading_s, ends)]

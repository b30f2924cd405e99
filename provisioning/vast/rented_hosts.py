"""From the record of a rented machine to a host that can be used: who it is, how it is reached, what it has.

Nobody has met such a machine before. Its own log, which comes through the service, names the keys of its sshd; a host
that shows another key is not the one that was rented, and hears nothing of us. What was read is kept in a folder for
each instance, so that it stays true after a restart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from provisioning.base import (
    AuthenticationFailed,
    HostLost,
    ProvisioningError,
    Request,
    Shell,
    Slot,
    SlotProbe,
)
from provisioning.fitness import Fit, NotYet, Unfit
from provisioning.host_keys import ChangedHostKey, HostKeys
from provisioning.host_worker import HostWorker
from provisioning.host_workers import HostWorkers
from provisioning.local import READING_S
from provisioning.ssh import CUT_S
from provisioning.ssh_host import SshHost, UnknownHostKey
from provisioning.vast.api import VastApi
from provisioning.vast.boot import Stage, boot_of
from provisioning.vast.errors import CallRefused, NoAnswer
from provisioning.vast.host_check import Checked, checked, extended
from provisioning.vast.models import Instance

AGAIN_S = 5.0
"""How soon a host is knocked at again, or a log read again, that was not ready."""

LOG_S = 30.0
"""A log that was asked for and has not appeared after so long is asked for anew."""

_SLOTS = TypeAdapter(tuple[Slot, ...])
_PROBE = TypeAdapter(SlotProbe)
_HOST_KEY = re.compile(r"armature host key: \S{1,40} (SHA256:[A-Za-z0-9+/]{43})")


@dataclass(slots=True)
class _Met:
    """What is known of one instance. `turn` counts failed attempts, so that direct and gateway take turns."""

    digests: tuple[str, ...] = ()
    log_url: str | None = None
    log_until_s: float = 0.0
    again_s: float = -math.inf
    why: str = "it was not asked yet"
    asked: tuple[SshHost, Future[Checked]] | None = None
    turn: int = 0
    works: SshHost | None = None


class RentedHosts:
    """The hosts behind instances. `key_file` is the private key that lets us in as `user`; `folder` keeps what is known
    of each instance. `inspect` and `forget` may be called from other threads than the rest, which is for one."""

    def __init__(
        self,
        api: VastApi,
        workers: HostWorkers,
        key_file: Path,
        folder: Path,
        monotonic: Callable[[], float],
        *,
        user: str = "root",
        python: str = "python3",
    ) -> None:
        self._api = api
        self._workers = workers
        self._key_file = key_file
        self._folder = folder
        self._monotonic = monotonic
        self._user = user
        self._python = python
        self._met: dict[int, _Met] = {}

    def inspect(self, record: Instance, gpus: int) -> Fit | NotYet | Unfit:
        """One step: a call to the service, or a question to the host that is waited for as long as any other."""
        boot, met = boot_of(record), self._known(record.instance_id)
        if boot.stage is not Stage.REACHABLE:
            over = boot.stage in (Stage.FAILED, Stage.GONE)
            return (Unfit if over else NotYet)(f"it is {boot.stage}: {boot.why}" if boot.why else f"it is {boot.stage}")
        if self._monotonic() < met.again_s:
            return NotYet(met.why)
        if not met.digests:
            found = self._identified(record.instance_id, met)
            if isinstance(found, NotYet):
                return found
        return self._asked(record, met, gpus)

    def slots(self, record: Instance, request: Request) -> tuple[Slot, ...]:
        """The host cut into slots, as it was a moment ago. Raises NoCapacity, HostLost."""
        question = {**asdict(request), "wanted": {}}
        found = self._worker(record).latest(_SLOTS, "slots", question, max_age_s=CUT_S)
        return tuple(replace(slot, host=str(record.instance_id)) for slot in found)

    def probe(self, record: Instance, label: str, slot: Slot, pids: Sequence[int]) -> SlotProbe:
        """A look at a slot there. Raises HostLost."""
        return self._worker(record).latest(_PROBE, "probe", label, asdict(slot), list(pids), max_age_s=READING_S)

    def shell(self, record: Instance, home: str) -> Shell:
        """A shell for the run folders of a home. Raises HostLost."""
        host = self._host(record)
        return self._workers.shell(host, self._keys(record.instance_id), home)

    def extend(self, record: Instance, ttl_s: float) -> None:
        """Let the switch there wait until `ttl_s` after the birth of its machine. Raises HostLost."""
        kept_s = HostWorker.wait(self._worker(record).carry_out(extended(ttl_s)), self._workers.answer_s)
        if kept_s < ttl_s:
            raise HostLost(f"instance {record.instance_id}: its switch keeps {kept_s:g} s and not {ttl_s:g} s")

    def forget(self, number: int) -> None:
        """The instance is gone. What is kept on the disk of it stays, and is small."""
        self._met.pop(number, None)
        self._workers.drop(str(number))

    def close(self) -> None:
        """Close all connections."""
        self._workers.close()

    def _identified(self, number: int, met: _Met) -> NotYet | None:
        """Ask for the log, or read it: it names the keys of the host."""
        now_s = self._monotonic()
        try:
            if met.log_url is None or now_s >= met.log_until_s:
                met.log_url, met.log_until_s = self._api.request_log(number), now_s + LOG_S
                return self._wait(met, "its log was asked for", 0.0)
            log = self._api.log(met.log_url)
        except (NoAnswer, CallRefused) as error:
            met.log_url = None
            return self._wait(met, str(error), AGAIN_S)
        if log is None:
            return self._wait(met, "its log is not there yet", 0.5)
        met.digests = tuple(dict.fromkeys(_HOST_KEY.findall(log)))
        if not met.digests:
            met.log_url = None
            return self._wait(met, "its log does not name the keys of its sshd yet", AGAIN_S)
        self._pin(number, met.digests)
        return None

    def _asked(self, record: Instance, met: _Met, gpus: int) -> Fit | NotYet | Unfit:
        if met.asked is None:
            host = self._host(record)
            worker = self._workers.worker(host, self._keys(record.instance_id))
            met.asked = (host, worker.carry_out(checked()))
        host, future = met.asked
        futures.wait([future], self._workers.answer_s)
        if not future.done():
            return NotYet(f"{host.place} has not answered yet")
        met.asked = None
        try:
            return self._judged(host, met, future.result(), gpus)
        except (UnknownHostKey, ChangedHostKey) as error:
            return Unfit(f"this is not the machine that was rented: {error}; its log names {' '.join(met.digests)}")
        except (AuthenticationFailed, HostLost) as error:
            # A key may be refused for some seconds, being new there; an address that fails gives way to the other.
            met.turn, met.works = met.turn + 1, None
            self._workers.drop(host.name)
            return self._wait(met, str(error), AGAIN_S)
        except ProvisioningError as error:
            return self._wait(met, str(error), AGAIN_S)

    def _judged(self, host: SshHost, met: _Met, found: Checked, gpus: int) -> Fit | NotYet | Unfit:
        met.works = host
        if found.gpus < gpus:
            notes = f": {'; '.join(found.notes)}" if found.notes else ""
            return Unfit(f"{found.gpus} of {gpus} GPUs can be used{notes}")
        if found.switch:
            return self._wait(met, found.switch, AGAIN_S)
        return Fit(host.place, found.gpus, found.cores)

    def _wait(self, met: _Met, why: str, pause_s: float) -> NotYet:
        met.why, met.again_s = why, self._monotonic() + pause_s
        return NotYet(why)

    def _worker(self, record: Instance) -> HostWorker:
        return self._workers.worker(self._host(record), self._keys(record.instance_id))

    def _host(self, record: Instance) -> SshHost:
        """How to reach an instance now: as it worked last, else as it worked before a restart, else in turn."""
        number, met = record.instance_id, self._known(record.instance_id)
        ways = self._ways(record)
        if not ways or not met.digests:
            raise HostLost(f"instance {number}: {'nobody has met it yet' if ways else 'it has no address now'}")
        if met.works in ways:
            return met.works
        if met.turn == 0:
            pinned = self._pinned_places(number)
            return next((host for host in ways if _place(host) in pinned), ways[0])
        return ways[met.turn % len(ways)]

    def _ways(self, record: Instance) -> tuple[SshHost, ...]:
        """The container's own sshd first, then the service's gateway."""
        ends = [end for end in (record.direct_endpoint, record.proxy_endpoint) if end is not None]
        name, keys = str(record.instance_id), (str(self._key_file),)
        return tuple(
            SshHost(name, *end, self._user, keys, python=self._python, may_ask_agent=False)
            for end in dict.fromkeys(ends)
        )

    # ---- what is kept on disk ----------------------------------------------------------------------------------------

    def _known(self, number: int) -> _Met:
        if number not in self._met:
            path = self._folder / str(number) / "host_keys"
            self._met.setdefault(number, _Met(tuple(path.read_text().split()) if path.is_file() else ()))
        return self._met[number]

    def _pin(self, number: int, digests: Sequence[str]) -> None:
        folder = self._folder / str(number)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = folder / "host_keys.part"
        part.write_text("".join(f"{digest}\n" for digest in digests))
        part.replace(folder / "host_keys")

    def _keys(self, number: int) -> HostKeys:
        digests = self._known(number).digests
        path = self._folder / str(number) / "known_hosts"
        return HostKeys(path, lambda _, shown: shown.split()[-1] in digests, also=None)

    def _pinned_places(self, number: int) -> set[str]:
        path = self._folder / str(number) / "known_hosts"
        return {line.split()[0] for line in path.read_text().splitlines() if line} if path.is_file() else set()


def _place(host: SshHost) -> str:
    """As known_hosts names it."""
    return host.address if host.port == 22 else f"[{host.address}]:{host.port}"

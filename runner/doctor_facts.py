"""Looks at this machine and one home, for the doctor. Reads only, but for one file without a name to learn the time."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, func, select

from provisioning.base import Handle, Slot
from provisioning.cpus import usable_cores
from provisioning.gpus import NvmlDriver
from provisioning.local import LocalProvider
from provisioning.processes import state_of
from runner.detach import SUPERVISOR
from runner.doctor import TOLD_OF_S, DatabaseFacts, Facts, GpuFacts, LockFacts
from runner.errors import HomeError, StoreTooNew
from runner.home import Home, file_system
from runner.lock import holder_pid, is_held
from runner.records import ENDED
from runner.slot_watch import open_quarantines
from runner.store import tables
from runner.store.database import REVISION, check_revision, reading
from runner.store.opening import driver_of
from runner.store.untold import untold

PACKAGES = ("torch", "torchvision", "numpy")


def collect(home: Home, environment: Mapping[str, str]) -> Facts:
    """Everything the doctor looks at. A part that cannot be read is a fact too; nothing is raised for it."""
    place = _nearest(home.root)
    now = time.time()
    home_id, database = _database(home, now)
    return Facts(
        home=str(home.root),
        home_exists=home.root.is_dir(),
        home_writable=os.access(place, os.W_OK | os.X_OK),
        file_system=file_system(home.root, _mounts()),
        free_mib=shutil.disk_usage(place).free // 2**20,
        now=now,
        disk_clock=_disk_clock(place),
        database=database,
        lock=_lock(home),
        gpus=_gpus(home_id, environment),
        trainer=_trainer(),
        packages={name: _version(name) for name in PACKAGES},
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cores=len(usable_cores()),
    )


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _disk_clock(folder: Path) -> float | None:
    """When the file system thinks it is; kernels round the times of files down to a few milliseconds."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _database(home: Home, now: float) -> tuple[str, DatabaseFacts | None]:
    """The home's id ('' without one) and what its database says."""
    try:
        revision = check_revision(home.database)
        if revision is None:
            return "", None
        damage = _damage(home.database)
        with reading(home) as connection:
            home_id = str(connection.execute(select(tables.home.c.home_id)).scalar_one_or_none() or "")
            return home_id, _contents(connection, home, revision, damage, now)
    except (HomeError, StoreTooNew) as error:
        return "", DatabaseFacts(None, REVISION, error=str(error))


def _contents(connection: Connection, home: Home, revision: str, damage: str, now: float) -> DatabaseFacts:
    runs, log = tables.runs, Path(f"{home.database}-wal")
    is_open = runs.c.state.not_in([str(state) for state in ENDED])
    is_old = revision != REVISION  # an older one has neither of these tables
    kept_back = () if is_old else open_quarantines(connection)
    return DatabaseFacts(
        revision=revision,
        newest_revision=REVISION,
        log_mib=log.stat().st_size / 2**20 if log.exists() else 0.0,
        damage=damage,
        open_runs=connection.execute(select(func.count()).where(is_open)).scalar_one(),
        newest_event=connection.execute(select(func.max(tables.events.c.time))).scalar_one(),
        quarantines=tuple(f"{one.slot.name} is not used: {one.reason}" for one in kept_back),
        untold=None if is_old else untold(driver_of(connection), now - TOLD_OF_S),
    )


def _damage(database: Path) -> str:
    """What SQLite's own check of the file says; '' when it finds nothing."""
    try:
        connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=5.0)
        try:
            said = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if said == ["ok"] else "; ".join(said)


def _lock(home: Home) -> LockFacts:
    held, pid = is_held(home.lock), holder_pid(home.lock)
    return LockFacts(held, pid, None if pid is None else state_of(pid))


def _gpus(home_id: str, environment: Mapping[str, str]) -> GpuFacts:
    driver = NvmlDriver()
    provider = LocalProvider(str(SUPERVISOR), environment, driver=driver)
    survey = provider.survey()
    handle = Handle(provider.name, f"armature/{home_id}/doctor", "")
    foreign, problems, notes = [], [], list(survey.notes)
    for gpu in survey.gpus:
        probe = provider.probe(handle, Slot(f"gpu{gpu.index}", (), (gpu.uuid,), (gpu.index,), gpu.memory_mib))
        foreign += [f"GPU {gpu.index}: {use}" for use in probe.foreign]
        problems += [f"GPU {gpu.index}: {probe.problem}"] if probe.problem else []
        notes += [f"GPU {gpu.index}: {note}" for note in probe.notes]
    names = tuple(f"{gpu.index} {gpu.name} ({gpu.memory_mib:,} MiB)" for gpu in survey.gpus)
    version = driver.driver_version() if survey.gpus else ""
    driver.close()
    return GpuFacts(names, version, tuple(notes), tuple(foreign), tuple(problems))


def _trainer() -> str | None:
    """The folder of the package that `import trainer` would find; finding it does not import it."""
    found = importlib.util.find_spec("trainer")
    return None if found is None or found.origin is None else str(Path(found.origin).parent)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

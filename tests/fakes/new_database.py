"""A home with the database that this version makes: made by the product once a process, copied afterwards, for making
one takes Alembic a twentieth of a second and hundreds of tests need one. Who tests the making itself makes one."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from runner.home import Home, create_home
from runner.lock import HomeLock
from runner.store.database import create_or_upgrade


def new_database(home: Home) -> None:
    """Create the home with an empty database, and a lock that nobody holds; a database that is there is kept."""
    create_home(home)
    if not home.database.exists():
        home.database.touch(mode=0o600)
        home.database.write_bytes(_empty())
    lock = HomeLock(home.lock)
    create_or_upgrade(home, lock)  # finds nothing to do, or an older version's database
    lock.release()


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        create_home(home)
        lock = HomeLock(home.lock)
        create_or_upgrade(home, lock)
        lock.release()
        return home.database.read_bytes()

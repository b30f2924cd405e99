"""The home: one directory that holds a database, a lock, a log, code snapshots and every run's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runner.errors import HomeError

# A kernel lock and a write-ahead log are only safe on a file system that one kernel owns.
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "beegfs", "ceph", "fuse.ceph", "glusterfs",
     "fuse.glusterfs", "gpfs", "9p", "afs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone"}
)  # fmt: skip

RESERVE_MIB = 64.0
"""Disk that must stay free beside checkpoints: database, logs, pictures."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where everything of one home lies. `root` is absolute."""

    root: Path

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "runner.db"

    @property
    def lock(self) -> Path:
        """Held by the one controller of this home for as long as it lives."""
        return self.root / "controller.lock"

    @property
    def log(self) -> Path:
        """What the controller prints."""
        return self.root / "controller.log"

    @property
    def snapshots(self) -> Path:
        """Frozen copies of the code that runs import."""
        return self.root / ".snapshots"

    def report(self, study: str) -> Path:
        """The folder of a study's report."""
        return self.root / study / "report"


def run_folder(study: str, arm: str, seed: int, run: str) -> str:
    """A run's folder relative to the home; all parts are checked names, so it cannot leave the home."""
    return f"{study}/{arm}-s{seed}-{run}"


def find_home(explicit: Path | None) -> Home:
    """The home that a command means: `--home`, else $RUNNER_HOME, else ./runs."""
    chosen = explicit or Path(os.environ.get("RUNNER_HOME") or "runs")
    return Home(Path(os.path.abspath(chosen)))


def create_home(home: Home, mounts: str | None = None) -> None:
    """Make the home ready to be written: mode 0700, on a local file system.

    `mounts` is the text of /proc/mounts (read from there when None). Raises HomeError naming the path.
    """
    kind = file_system(home.root, mounts if mounts is not None else _read_mounts())
    if kind in NETWORK_FILE_SYSTEMS:
        raise HomeError(
            f"{home.root}: the home lies on a network file system ({kind}), where locks and the database are not safe; "
            "choose a local disk with --home or RUNNER_HOME"
        )
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.root.stat().st_uid == os.geteuid():
            home.root.chmod(0o700)
    except OSError as error:
        raise HomeError(f"{home.root}: the home cannot be created: {error.strerror}") from error
    if not os.access(home.root, os.W_OK | os.X_OK):
        raise HomeError(f"{home.root}: the home is not writable for this user; choose another with --home")


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that holds `path`, from the text of /proc/mounts ('' when it does not say)."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        inside = point == "/" or str(path) == point or str(path).startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def _read_mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

"""The agent as one file that any Python can run: this package's own sources, zipped, and named by their hash.

What needs more than the standard library stays behind; the agent does not import it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MODULES = (
    "agent", "agent_code", "agent_files", "base", "changes", "control_groups", "cpus", "gpu_watch", "gpus", "local",
    "local_shell", "memory", "nvidia_smi", "processes", "slots", "spawner",
)  # fmt: skip
"""The modules that the agent imports, itself included."""

OLDEST_PYTHON = (3, 10)

# Runs on the host before anything of ours is there, so it is all in one argument and as old as Python gets. It reads
# without a buffer: what follows on the same input is for the agent. Standing in the file system under the name of its
# hash, an archive is sent once; a torn one is sent again.
BOOT = """
import hashlib, os, sys
name, size, nonce = sys.argv[1:4]
folder = os.path.join(os.path.expanduser("~"), ".armature", "agent")
path = os.path.join(folder, name + ".pyz")
def say(text):
    os.write(1, ("armature boot " + nonce + " " + text + "\\n").encode())
def whole():
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == name
    except OSError:
        return False
if sys.version_info < OLDEST:
    say("python %d.%d" % sys.version_info[:2])
    sys.exit(1)
try:
    if whole():
        say("have")
    else:
        say("send")
        data, size = b"", int(size)
        while len(data) < size:
            piece = os.read(0, min(65536, size - len(data)))
            if not piece:
                sys.exit(1)
            data += piece
        os.makedirs(folder, mode=0o700, exist_ok=True)
        part = path + "." + str(os.getpid())
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        say("have")
    os.execv(sys.executable, [sys.executable, "-I", "-S", path, nonce])
except OSError as error:
    say("error " + str(error))
    sys.exit(1)
""".replace("OLDEST", repr(OLDEST_PYTHON))

_MAIN = """
import os, sys, zipfile
archive = os.path.abspath(sys.argv[0])
supervisor = archive[:-len(".pyz")] + "-supervisor.py"
with zipfile.ZipFile(archive) as found:
    data = found.read("supervisor.py")
try:
    with open(supervisor, "rb") as file:
        is_there = file.read() == data
except OSError:
    is_there = False
if not is_there:
    part = supervisor + "." + str(os.getpid())
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    os.replace(part, supervisor)
from provisioning.agent import main
main(supervisor, sys.argv[1])
"""


@dataclass(frozen=True, slots=True)
class AgentArchive:
    """The file, and its SHA-256 in hexadecimal, which is its name on a host."""

    data: bytes
    hash: str


@cache
def agent_archive(supervisor_path: str) -> AgentArchive:
    """The agent with the supervisor whose source stands at this path; the same sources give the same bytes."""
    package = Path(__file__).parent
    sources = {f"provisioning/{name}.py": (package / f"{name}.py").read_bytes() for name in MODULES}
    # Of the package itself only its name is needed there: its table of places would import them all.
    sources |= {"provisioning/__init__.py": b"", "__main__.py": _MAIN.encode()}
    sources["supervisor.py"] = Path(supervisor_path).read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(sources):
            archive.writestr(zipfile.ZipInfo(name), sources[name], zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    return AgentArchive(data, hashlib.sha256(data).hexdigest())

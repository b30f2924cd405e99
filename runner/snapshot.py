"""Frozen code: what a run can import is copied once to a folder named by its content; attempts run from that copy.

For a trainer arm that is the `trainer` package beside this runner; for a command arm `code.root` (by default the arm's
folder) and `code.include`. The copy keeps the places of the files relative to each other.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runner.code_files import CodeFile, LeftOut, UnusableCode, Walks, code_files
from runner.errors import HomeError, InfrastructureError, SpecError
from runner.home import Home
from runner.spec.command import script_of
from runner.spec.models import TRAINER, ResolvedArm
from runner.spec.trainer_check import trainer_package

MAX_TOTAL_BYTES = 64 * 1024 * 1024
_MIB = 1024 * 1024
_EXECUTABLE_STARTS = (b"#!", b"\x7fELF")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One frozen set of files. `root` is relative to the home, `arm_dir` to the root; `left_out` says what and why."""

    hash: str
    root: str
    arm_dir: str
    files: tuple[str, ...]
    size_bytes: int
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()


class Seen:
    """What was looked at for one launch: folders walked, files hashed, copies found unharmed. Never for longer, because
    files change."""

    def __init__(self) -> None:
        self.walks = Walks()
        self.digests: dict[CodeFile, tuple[str, int]] = {}
        self.verified: set[str] = set()


def preview(arm: ResolvedArm, home: Home, seen: Seen | None = None) -> Snapshot:
    """What `take` would freeze, without writing anything. `seen` is shared by the arms of one launch.

    Raises SpecError when the code is too large, cannot be read, or lacks the script that the command starts.
    """
    try:
        return _look(arm, home, seen or Seen())[0]
    except UnusableCode as error:
        raise _located(arm, error) from None


def take(arm: ResolvedArm, home: Home, seen: Seen | None = None) -> Snapshot:
    """Freeze the arm's code in the home, unless the same content is there already. `seen` as in `preview`.

    Atomic: the folder is complete or not there. Raises SpecError as `preview` does, HomeError when it cannot be
    written, InfrastructureError when an existing copy was tampered with.
    """
    seen = seen or Seen()
    try:
        snapshot, files = _look(arm, home, seen)
        if not (home.root / snapshot.root).is_dir():
            _copy(home, snapshot, files)
        elif snapshot.hash not in seen.verified:
            _verify(home, snapshot, files)
        seen.verified.add(snapshot.hash)
        # Arms of several folders may share one copy.
        (home.root / snapshot.root / snapshot.arm_dir).mkdir(parents=True, exist_ok=True)
        return snapshot
    except UnusableCode as error:
        raise _located(arm, error) from None
    except OSError as error:
        raise HomeError(f"{home.snapshots}: the code cannot be stored: {error.strerror or error}") from error


def _located(arm: ResolvedArm, error: UnusableCode) -> SpecError:
    again = f"runner check {shlex.quote(arm.file)}"
    return SpecError(arm.where(error.key), error.problem, allowed=error.allowed, next_command=again)


@dataclass(frozen=True, slots=True)
class _Hashed:
    """A file of the snapshot with the SHA-256 of its content."""

    file: CodeFile
    digest: str
    size_bytes: int


def _look(arm: ResolvedArm, home: Home, seen: Seen) -> tuple[Snapshot, tuple[_Hashed, ...]]:
    found = code_files(
        _roots(arm), _includes(arm), arm.sources, home.root, respect_git=arm.kind != TRAINER, walks=seen.walks
    )
    _refuse_too_large(found.files)
    for file in found.files:
        if file not in seen.digests:
            seen.digests[file] = _digest_of(file)
    hashed = tuple(_Hashed(file, *seen.digests[file]) for file in found.files)
    code_hash = _code_hash(hashed)
    arm_dir = "." if arm.kind == TRAINER else PurePosixPath(os.path.relpath(arm.folder, found.anchor)).as_posix()
    snapshot = Snapshot(
        hash=code_hash,
        root=f"{home.snapshots.name}/{code_hash}",
        arm_dir=arm_dir,
        files=tuple(each.file.name for each in hashed),
        size_bytes=sum(each.size_bytes for each in hashed),
        left_out=found.left_out,
        notes=found.notes,
    )
    _require_script(arm, snapshot)
    return snapshot, hashed


def _roots(arm: ResolvedArm) -> tuple[Path, ...]:
    """The folder whose files are code, and the arm's own folder, which must have a place in the copy."""
    if arm.kind == TRAINER:
        return (trainer_package(),)
    folder = Path(arm.folder)
    root = Path(os.path.normpath(folder / (arm.code["root"] or ".")))
    if not root.is_dir():
        raise UnusableCode("code.root", f"{root} is not a folder", "a folder, relative to the arm file")
    return (root, folder)


def _includes(arm: ResolvedArm) -> tuple[Path, ...]:
    included: list[Path] = []
    for index, pattern in enumerate(arm.code["include"]):
        key = f"code.include[{index}]"
        allowed = "a file, folder or pattern, relative to the arm file"
        try:
            found = sorted(Path(arm.folder).glob(pattern)) if _is_pattern(pattern) else [Path(arm.folder, pattern)]
        except (ValueError, NotImplementedError) as error:
            raise UnusableCode(key, f"{pattern!r} is no pattern: {error}", allowed) from None
        existing = [Path(os.path.normpath(path)) for path in found if path.exists()]
        if not existing:
            raise UnusableCode(key, f"{pattern!r} names nothing that exists", allowed)
        included.extend(existing)
    return tuple(included)


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _digest_of(file: CodeFile) -> tuple[str, int]:
    try:
        content = file.source.read_bytes()
    except OSError as error:
        problem = f"{file.source} cannot be read: {error.strerror}"
        raise UnusableCode("code.root", problem, "readable files, or a code.root without it") from None
    return hashlib.sha256(content).hexdigest(), len(content)


def _code_hash(files: Sequence[_Hashed]) -> str:
    """SHA-256 over names and contents; times and modes of files play no part."""
    whole = hashlib.sha256()
    for each in files:
        whole.update(os.fsencode(each.file.name) + b"\0" + each.digest.encode() + b"\n")
    return whole.hexdigest()


def _refuse_too_large(files: Sequence[CodeFile]) -> None:
    total = sum(file.size_bytes for file in files)
    if total > MAX_TOTAL_BYTES:
        largest = sorted(files, key=lambda file: -file.size_bytes)[:5]
        shown = ", ".join(f"{file.name} ({file.size_bytes / _MIB:.1f} MiB)" for file in largest)
        problem = f"the code to freeze is {total / _MIB:.0f} MiB in {len(files)} files; the largest: {shown}"
        allowed = f"at most {MAX_TOTAL_BYTES // _MIB} MiB; a smaller code.root, or a .gitignore"
        raise UnusableCode("code.root", problem, allowed)


def _require_script(arm: ResolvedArm, snapshot: Snapshot) -> None:
    """A command that starts a file of the arm's folder must find it in the copy."""
    script = script_of(arm.command) if arm.command else None
    if script is None:
        return
    name = os.path.normpath(os.path.join(snapshot.arm_dir, script))
    if name in snapshot.files:
        return
    reason = next((left.reason for left in snapshot.left_out if left.path == name), "there is no such file")
    problem = f"{{arm_dir}}/{script} is not in the code that will run: {reason}"
    raise UnusableCode("command", problem, "a script below code.root (default: the arm's folder)")


def _verify(home: Home, snapshot: Snapshot, files: Sequence[_Hashed]) -> None:
    """A run may write beside its code; what was frozen must still be as it was."""
    root = home.root / snapshot.root
    for each in files:
        path = root / each.file.name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != each.digest:
            raise InfrastructureError(
                f"{path}: the frozen code was changed after it was stored; remove {root} once nothing runs from it"
            )


def _copy(home: Home, snapshot: Snapshot, files: Sequence[_Hashed]) -> None:
    home.snapshots.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=home.snapshots))
    try:
        for each in files:
            _copy_file(each, temporary / each.file.name)
        os.replace(temporary, home.root / snapshot.root)
    except OSError:
        # Another launch may have stored the same content meanwhile: rename cannot replace a folder with files in it.
        if not (home.root / snapshot.root).is_dir():
            raise
        _verify(home, snapshot, files)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_file(each: _Hashed, target: Path) -> None:
    content = each.file.source.read_bytes()
    if hashlib.sha256(content).hexdigest() != each.digest:
        problem = f"{each.file.source} was changed while it was being copied"
        raise UnusableCode("code.root", problem, "files at rest while a launch is being prepared")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    # The mode follows from the content, so that equal hashes mean equal behaviour.
    target.chmod(stat.S_IRWXU if content.startswith(_EXECUTABLE_STARTS) else stat.S_IRUSR | stat.S_IWUSR)

"""Which files of a folder are code: walks it and says of everything else why it stays behind. Writes nothing."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from runner.spec.schema import TOP_LEVEL_KEYS

MAX_FILE_BYTES = 10 * 1024 * 1024
MAX_FILES = 5_000

SECRET_NAMES = (".env*", "*.pem", "*.key", "id_*", ".netrc", "hosts.yaml")
SECRET_FOLDERS = (".aws", ".ssh", ".gnupg")
CACHE_FOLDERS = (
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".ipynb_checkpoints",
)
CACHE_NAMES = ("*.pyc", "*.pyo")
TEXT_NAMES = ("*.md", "license", "license.*")
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
HOME_MARKS = ("runner.db", ".snapshots")

_TOP_LEVEL_KEY = re.compile(rb"^([A-Za-z_]\w*)[ \t]*:", re.MULTILINE)
_GIT_TIMEOUT_S = 60.0
# A YAML file is in the arm format when it has one of these and no key that the format lacks.
_TELLING_KEYS = frozenset({"arm", "study", "extends", "changes", "trainer", "command", "policy", "primary"})


class UnusableCode(Exception):
    """The code cannot be frozen. `key` is the dotted key of the arm that decides about it."""

    def __init__(self, key: str, problem: str, allowed: str) -> None:
        self.key = key
        self.problem = problem
        self.allowed = allowed
        super().__init__(problem)


@dataclass(frozen=True, slots=True)
class CodeFile:
    """A file to freeze. `name` is its path (with /) in the snapshot."""

    name: str
    source: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that is not frozen. `path` is relative to the snapshot's root."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class CodeFiles:
    """The code below `anchor`, the folder that becomes the snapshot's root; both lists sorted by name."""

    anchor: Path
    files: tuple[CodeFile, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Walked:
    """What lies below one folder. `by_real_path` finds the files by where they really are."""

    files: Mapping[str, CodeFile]
    left_out: Mapping[str, LeftOut]
    notes: tuple[str, ...]
    by_real_path: Mapping[str, Sequence[str]]


class Walks:
    """Folders that were walked for one launch, each once: five hundred arms of one folder have the same neighbours."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, Path, str, bool], _Walked] = {}

    def below(self, folder: Path, anchor: Path, home: str, *, respect_git: bool) -> _Walked:
        """What is below `folder`, with names relative to `anchor`. Every file that may be code, arm files of any other
        look among it. Raises UnusableCode."""
        key = (folder, anchor, home, respect_git)
        if key not in self._known:
            search = _Search(anchor, home)
            if respect_git:
                search.ask_git(folder)
            search.walk(folder, named=False)
            by_real_path: dict[str, list[str]] = {}
            for file in search.files:  # a link and the file that it leads to are both there
                by_real_path.setdefault(os.path.realpath(file.source), []).append(file.name)
            self._known[key] = _Walked(
                {file.name: file for file in search.files},
                {each.path: each for each in search.left_out},
                tuple(search.notes),
                by_real_path,
            )
        return self._known[key]


def code_files(
    roots: Sequence[Path],
    includes: Sequence[Path],
    arm_files: Sequence[str],
    home: Path,
    *,
    respect_git: bool,
    walks: Walks | None = None,
) -> CodeFiles:
    """The files below the first of `roots` and in `includes`; the other roots only need a place in the snapshot.

    What is included by name may also be text, an arm file or ignored by git, never a secret or too large. Raises
    UnusableCode for such an include, for a folder that cannot be read and for more than MAX_FILES files. `walks` holds
    what was walked for other arms of the launch.
    """
    folder = roots[0]
    anchor = (
        folder.parent if not respect_git else Path(os.path.commonpath([*roots, *(_folder(path) for path in includes)]))
    )
    if os.path.realpath(folder) == os.path.realpath(home):
        allowed = "a home elsewhere (--home or $RUNNER_HOME), or a code.root below it"
        raise UnusableCode("code.root", f"{folder} is the home of the runner itself", allowed)
    walked = (walks or Walks()).below(folder, anchor, os.path.realpath(home), respect_git=respect_git)
    found, left = dict(walked.files), dict(walked.left_out)
    for real_path in set(map(os.path.realpath, arm_files)):
        for name in walked.by_real_path.get(real_path, ()):
            del found[name]
            left[name] = LeftOut(name, "an arm file")
    search = _Search(anchor, os.path.realpath(home))
    for path in includes:
        search.include(path)
    found |= {file.name: file for file in search.files}
    if len(found) > MAX_FILES:
        problem = f"{len(found)} files to freeze with those of code.include (limit {MAX_FILES})"
        raise UnusableCode("code.include", problem, "fewer files, or a smaller code.root")
    left |= {each.path: each for each in search.left_out}
    return CodeFiles(
        anchor,
        tuple(found[name] for name in sorted(found)),
        tuple(left[path] for path in sorted(left) if path not in found),
        walked.notes,
    )


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


@dataclass(slots=True)
class _Search:
    """One walk. `ignored` holds absolute paths that git ignores."""

    anchor: Path
    home: str
    ignored: frozenset[str] = frozenset()
    files: list[CodeFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def ask_git(self, folder: Path) -> None:
        """Learn what git ignores below `folder`, when that is part of a repository and not ignored itself."""
        if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
            return
        try:
            if _git(folder, "check-ignore", "-q", ".").returncode == 0:
                return
            listed = _git(folder, "ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "-z")
        except (OSError, subprocess.TimeoutExpired) as error:
            self.notes.append(f"git could not be asked what it ignores: {error}")
            return
        if listed.returncode != 0:
            said = os.fsdecode(listed.stderr).strip().splitlines() or ["no reason given"]
            self.notes.append(f"git could not be asked what it ignores: {said[0]}")
            return
        names = [os.fsdecode(name).rstrip("/") for name in listed.stdout.split(b"\0") if name]
        self.ignored = frozenset(os.path.join(folder, name) for name in names)

    def include(self, path: Path) -> None:
        """Take what the arm names itself. Raises UnusableCode when a file named so cannot be taken."""
        if path.is_dir():
            self.walk(path, named=True)
        elif reason := self._reason(path, path.lstat(), named=True):
            raise UnusableCode("code.include", f"{path} cannot be included: {reason}", "other files")
        else:
            self._take(path)

    def walk(self, folder: Path, *, named: bool) -> None:
        """Take every file below `folder` that is code."""
        for path, status in _entries(folder):
            reason = self._reason(path, status, named)
            if reason:
                self.left_out.append(LeftOut(self._name(path), reason))
            elif stat.S_ISDIR(status.st_mode):
                self.walk(path, named=named)
            else:
                self._take(path)

    def _take(self, path: Path) -> None:
        self.files.append(CodeFile(self._name(path), path, path.stat().st_size))
        if len(self.files) > MAX_FILES:
            problem = f"more than {MAX_FILES} files to freeze, the last one in {path.parent}"
            raise UnusableCode("code.root", problem, "a smaller code.root, or a .gitignore for data")

    def _reason(self, path: Path, status: os.stat_result, named: bool) -> str | None:
        """Why an entry stays behind, or None. `named`: the arm itself includes it or a folder above it."""
        if stat.S_ISLNK(status.st_mode):
            return self._reason_link(path, named)
        if stat.S_ISDIR(status.st_mode):
            return self._reason_folder(path, named)
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        return self._reason_file(path, status.st_size, named)

    def _reason_link(self, path: Path, named: bool) -> str | None:
        """A link to a file inside is followed; everything else could bring in what nobody meant."""
        target = Path(os.path.realpath(path))
        if not target.is_file() or not target.is_relative_to(os.path.realpath(self.anchor)):
            return "a link that does not lead to a file inside"
        return self._reason_file(path, 0, named) or self._reason_file(target, target.stat().st_size, named)

    def _reason_folder(self, path: Path, named: bool) -> str | None:
        if path.name in CACHE_FOLDERS:
            return "a cache or version control"
        if path.name.lower() in SECRET_FOLDERS:
            return "may hold secrets"
        if os.path.realpath(path) == self.home or any((path / mark).exists() for mark in HOME_MARKS):
            return "a home of the runner"
        if any((path / mark).exists() for mark in ENVIRONMENT_MARKS):
            return "a virtual environment"
        return self._reason_ignored(path, named)

    def _reason_file(self, path: Path, size_bytes: int, named: bool) -> str | None:
        name = path.name.lower()
        if _matches(name, SECRET_NAMES):
            return "may hold secrets"
        if _matches(name, CACHE_NAMES):
            return "a cache or version control"
        if size_bytes > MAX_FILE_BYTES:
            return f"larger than {MAX_FILE_BYTES // 1024**2} MiB"
        if not named and _matches(name, TEXT_NAMES):
            return "text for people"
        if not named and _is_arm_file(path):
            return "an arm file"
        return self._reason_ignored(path, named)

    def _reason_ignored(self, path: Path, named: bool) -> str | None:
        return "ignored by git" if not named and str(path) in self.ignored else None

    def _name(self, path: Path) -> str:
        return PurePosixPath(os.path.relpath(path, self.anchor)).as_posix()


def _is_arm_file(path: Path) -> bool:
    if path.suffix.lower() not in (".yaml", ".yml"):
        return False
    try:
        status = path.stat()
        return _looks_like_an_arm(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        return False  # hashing it will say that it cannot be read


@functools.lru_cache(maxsize=MAX_FILES)
def _looks_like_an_arm(path: Path, inode: int, size: int, mtime_ns: int) -> bool:
    """Whether a YAML file, in this state of it, is in the arm format. Five hundred arms of one folder are each a
    neighbour of all the others, so what was read once is remembered."""
    text = path.read_bytes()
    keys = {key.decode() for key in _TOP_LEVEL_KEY.findall(text)}
    if text.lstrip().startswith(b"{"):
        keys = _keys_in_braces(text)
    return bool(keys & _TELLING_KEYS) and keys <= set(TOP_LEVEL_KEYS)


def _keys_in_braces(text: bytes) -> set[str]:
    """The keys of a document that is written in one pair of braces, as JSON is."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return set()
    return {str(key.value) for key, _ in node.value} if isinstance(node, yaml.MappingNode) else set()


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        problem = f"{folder} cannot be read: {error.strerror}"
        raise UnusableCode("code.root", problem, "folders that you may read") from None
    for name in names:
        path = folder / name
        yield path, path.lstat()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, env=environment, timeout=_GIT_TIMEOUT_S
    )

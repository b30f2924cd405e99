"""Brings the files of a run folder home and proves it: each is hashed there and here before it takes its place.

A connection may be lost anywhere: what has arrived of a file waits in `.<name>.home.part`, and the same work, begun
again, goes on from there. What the host says is hostile until it is checked; whatever does not come is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Base64Bytes, Field, TypeAdapter

from provisioning.agent_files import MOST_FILES, MOST_ODD, PAGE_FILES
from provisioning.base import HostLost
from provisioning.incoming import BLOCK_BYTES, Incoming, sync_folders
from provisioning.questions import PIECE_BYTES, Question, Steps
from provisioning.run_checkpoints import importance, left_behind
from provisioning.run_paths import is_ours, path_problem, shown

MOST_RUN_BYTES = 64 * 2**30

BATCH_BYTES = 4 * BLOCK_BYTES
"""What one question may have a host hash: a second or less."""

BATCH_BLOCKS = 256

Size = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of what lies in a folder of a host."""

    files: Annotated[tuple[tuple[str, Size], ...], Field(max_length=PAGE_FILES)]
    odd: Annotated[tuple[str, ...], Field(max_length=MOST_ODD)]
    is_all: bool


_LISTING = TypeAdapter(Listing)
_DIGESTS: TypeAdapter[tuple[tuple[Size, Size, Size, Digest] | None, ...]] = TypeAdapter(
    tuple[tuple[Size, Size, Size, Digest] | None, ...]
)
_PIECES: TypeAdapter[tuple[bytes | None, ...]] = TypeAdapter(tuple[Base64Bytes | None, ...])


@dataclass(frozen=True, slots=True)
class Evacuated:
    """What became of the files of a run folder: `verified` are here with the hash that they have there, those of them
    that had to travel are `brought` too; `left` were not wanted; `refused` can never be taken (a link, a name that
    leads out of the folder, more than a run may hold); `lost` were wanted and are not here. A waiver lists the last
    two. What only we write (run_paths.OURS) is none of them, and stays as it is here.

    `is_listed` is false when the host never said what it holds: then nobody knows what is missing.
    """

    is_listed: bool
    brought: tuple[str, ...]
    verified: tuple[str, ...]
    brought_bytes: int
    left: Mapping[str, str]
    refused: Mapping[str, str]
    lost: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether the host may go: another try would bring nothing more."""
        return self.is_listed and not self.lost


@dataclass(slots=True)
class Evacuation:
    """The files of one run folder of a host (`there`, an absolute path) on their way to `here`. For one thread; nobody
    else may write into `here`. `best_step` is the step of the best checkpoint, None when none is known to be; `others`
    are steps of further ones that somebody needs. Where `is_trainer` is false nobody knows what is a checkpoint: all of
    it comes."""

    there: str
    here: Path
    best_step: int | None = None
    most_bytes: int = MOST_RUN_BYTES
    others: frozenset[int] = frozenset()
    is_trainer: bool = True
    _is_listed: bool = False
    _wanted: dict[str, int] = field(default_factory=dict)
    _brought: dict[str, int] = field(default_factory=dict)
    _verified: set[str] = field(default_factory=set)
    _left: dict[str, str] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)
    _lost: dict[str, str] = field(default_factory=dict)

    def steps(self) -> Steps[Evacuated]:
        """What to ask the host. May be begun again after a lost connection, and after a file was `lost`."""
        names = yield from self._listing()
        self._choose(names)
        try:
            for batch in _batches(self._wanted):
                yield from self._bring(batch)
        finally:
            sync_folders(self.here, self._verified)
        return self.result()

    def result(self, why: str = "it was not brought before the end") -> Evacuated:
        """What has become of the files until now; `why` is said of those whose turn has not come."""
        lost = {name: self._lost.get(name, why) for name in self._wanted if name not in self._verified}
        # The thread of the host may still be at it when the time is up.
        lost |= {name: said for name, said in dict(self._lost).items() if name not in self._wanted}
        brought = {name: size for name, size in dict(self._brought).items() if name in self._verified}
        verified = tuple(sorted(self._verified))
        total = sum(brought.values())
        refused = dict(self._refused)
        return Evacuated(self._is_listed, tuple(sorted(brought)), verified, total, dict(self._left), refused, lost)

    def _listing(self) -> Steps[dict[str, int]]:
        """Bytes of every file there; what is neither file nor folder is refused."""
        names: dict[str, int] = {}
        after = ""
        while True:
            page = yield Question(_LISTING, "files", (self.there, after))
            for name in page.odd:
                self._refused.setdefault(
                    shown(name), "it is neither a file nor a folder that can be read, or it lies too deep"
                )
            for name, size in page.files:
                if name <= after:
                    raise HostLost("the host lists its files in no order")
                names[name] = size
                after = name
            if len(names) > MOST_FILES:
                self._refused["(more files)"] = f"the run has more than {MOST_FILES:,} files"
                return dict(list(names.items())[:MOST_FILES])
            if page.is_all:
                return names
            if not page.files:
                raise HostLost("the host says that it has more files and names none")

    def _choose(self, names: Mapping[str, int]) -> None:
        self._wanted, self._verified, self._lost = {}, set(), {}
        self._left = {}
        if self.is_trainer:
            self._left, missing = left_behind(names, self.best_step, self.others)
            self._lost |= missing
        held = 0
        for name in sorted(names, key=lambda one: (importance(one, self.best_step), one)):
            if problem := path_problem(name):
                self._left.pop(name, None)
                self._refused[shown(name)] = problem
            elif name in self._left or is_ours(name):
                continue
            elif held + names[name] > self.most_bytes:
                self._refused[name] = (
                    f"with it ({names[name]:,} bytes) the run would hold more than {self.most_bytes:,}"
                )
            else:
                held += names[name]
                self._wanted[name] = names[name]
        self._is_listed = True

    def _bring(self, batch: Sequence[str]) -> Steps[None]:
        """Bring a few files, side by side."""
        coming = []
        for name, blocks in (yield from self._digests(batch)).items():
            modified_ns, wanted = blocks
            one = Incoming(self.here / name, self._wanted[name], modified_ns, wanted)
            if self._settle(name, one.is_here_already()):
                continue
            if name not in self._lost:
                coming.append((name, one))
        for name, one in coming:
            self._lose(name, one.begin())
        while coming := [(name, one) for name, one in coming if name not in self._lost and not self._over(name, one)]:
            asked = list(_pieces(coming))
            question = [[name, one.have, count] for name, one, count in asked]
            answer = yield Question(_PIECES, "pieces", (self.there, question))
            if len(answer) != len(asked):
                raise HostLost("the host answered for other pieces than those that it was asked for")
            for (name, one, count), data in zip(asked, answer, strict=True):
                if data is None or len(data) != count:
                    self._lose(name, "it changed there while it was brought, or cannot be read")
                else:
                    self._brought[name] = self._wanted[name]
                    self._lose(name, one.take(data))

    def _over(self, name: str, one: Incoming) -> bool:
        """Whether all of a file is here; then it takes its place."""
        if one.have < one.size:
            return False
        self._brought[name] = self._wanted[name]
        problem = one.finish()
        self._lose(name, problem)
        self._settle(name, not problem)
        return True

    def _settle(self, name: str, is_here: bool) -> bool:
        if is_here:
            self._verified.add(name)
        return is_here

    def _lose(self, name: str, why: str) -> None:
        if why:
            self._lost[name] = why

    def _digests(self, batch: Sequence[str]) -> Steps[dict[str, tuple[int, list[str]]]]:
        """Modification time and digests of the blocks of each file, for those that stay as they were listed."""
        stamps: dict[str, tuple[int, int, int]] = {}
        found: dict[str, list[str]] = {}
        blocks = [(name, offset, count) for name in batch for offset, count in _blocks(self._wanted[name])]
        for question in _at_most(blocks):
            answer = yield Question(_DIGESTS, "digests", (self.there, [list(block) for block in question]))
            if len(answer) != len(question):
                raise HostLost("the host answered for other files than those that it was asked for")
            for (name, _, _), told in zip(question, answer, strict=True):
                if told is None:
                    self._lose(name, "it is gone, or cannot be read there")
                elif told[1] != self._wanted[name] or stamps.setdefault(name, told[:3]) != told[:3]:
                    self._lose(name, "it changed there while it was brought")
                else:
                    found.setdefault(name, []).append(told[3])
        return {name: (stamps[name][2], each) for name, each in found.items() if name not in self._lost}


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of the blocks of a file; an empty file has one."""
    for offset in range(0, max(size, 1), BLOCK_BYTES):
        yield offset, min(BLOCK_BYTES, size - offset)


def _at_most(blocks: Sequence[tuple[str, int, int]]) -> Iterator[list[tuple[str, int, int]]]:
    """Blocks in groups that a host can hash within one question."""
    group: list[tuple[str, int, int]] = []
    for block in blocks:
        if group and (len(group) >= BATCH_BLOCKS or sum(one[2] for one in group) + block[2] > BATCH_BYTES):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _batches(wanted: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in groups: small files share their questions, a large one has its own."""
    batch: list[str] = []
    held = 0
    for name, size in wanted.items():
        if batch and (len(batch) >= BATCH_BLOCKS or held + size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += size
    if batch:
        yield batch


def _pieces(coming: Sequence[tuple[str, Incoming]]) -> Iterator[tuple[str, Incoming, int]]:
    """The next bytes of as many files as one answer carries."""
    left = PIECE_BYTES
    for name, one in coming[:BATCH_BLOCKS]:
        count = min(left, one.lacks())
        if count > 0:
            left -= count
            yield name, one, count

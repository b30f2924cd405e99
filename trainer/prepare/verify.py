"""`python -m trainer verify DATA [--fix] [--json]`: reads everything of a prepared set and names what is not right.

0: nothing was found; 65: something was. What is merely not made yet, or could not be made, is no finding: `status`
counts that. No torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from trainer.data.artefacts import array_members
from trainer.data.set_index import INDEX, SetIndex, find_index
from trainer.errors import EXIT_DATA, EXIT_DONE, DataError, UsageError
from trainer.prepare.finding import Finding
from trainer.prepare.image_checks import READABLE, check_artefacts, is_unfinished, unknown_files
from trainer.prepare.lock import only_here
from trainer.prepare.manifest import ImageEntry, whole_manifest
from trainer.prepare.pack import SHARDS
from trainer.prepare.progress import bar
from trainer.prepare.publication import PUBLISHED
from trainer.prepare.recipe import Recipe
from trainer.prepare.recipes import FILE, read_recipes
from trainer.prepare.records import Samples, cannot_write
from trainer.prepare.shard_checks import check_index, check_shard, unknown_shard_files
from trainer.prepare.shard_tar import plan_file
from trainer.prepare.states import ImageState, look_up

_MOST_THREADS = 16
_OWN = re.compile(
    rf"manifest(-\d+-of-\d+)?\.json|{re.escape(FILE)}|card\.(md|png)|{re.escape(PUBLISHED)}|\.lock(-\d+-of-\d+)?"
    "|samples|shards"
)
_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Verified:
    """How much was read, and everything that was found: images in the order of the manifest, then shards.

    `gone` folders hold what was made for photographs that the set no longer has; nothing reads them, and they are right
    again when the photographs are back.
    """

    images: int
    shards: int
    gone: int
    findings: tuple[Finding, ...]


def verify(data: Path) -> Verified:
    """Read everything of a set; a process that prepares it meanwhile makes findings that mean nothing.

    Raises DataError if it is no prepared set.
    """
    images, recipes = whole_manifest(data).images, read_recipes(data)
    index, findings = _read_index(data)
    shards = index.shards if index is not None else ()
    with (
        ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "verify") as readers,
        bar("verify", len(images) + len(shards)) as advance,
    ):
        whole: dict[str, Mapping[str, str]] = {}
        for state, found in readers.map(lambda entry: _check_image(data, entry, recipes), images):
            findings += found
            if state.is_done:
                whole[state.entry.id] = state.files
            advance(1)
        members = array_members(index.recipes) if index is not None else ()
        checked = []
        for one in readers.map(lambda shard: check_shard(data / SHARDS, shard, members, whole), shards):
            checked.append(one)
            findings += one.findings
            advance(1)
    if index is not None:
        if all(one.ids for one in checked):
            findings += check_index(index, tuple(id for one in checked for id in one.ids), recipes)
        findings += unknown_shard_files(data / SHARDS, index)
    gone, unknown = _strangers(data, {entry.id for entry in images})
    return Verified(len(images), len(shards), gone, (*findings, *unknown))


def mend(data: Path, findings: Sequence[Finding]) -> tuple[int, int]:
    """Forget corrupt artefacts and remove corrupt shards, so that preparing makes them again; how many of either.

    Raises DataError if a file cannot be removed.
    """
    samples = Samples(data)
    artefacts = {(one.id, one.artefact) for one in findings if one.is_corrupt and one.artefact}
    shards = {one.path for one in findings if one.is_corrupt and not one.artefact}
    try:
        for id, artefact in sorted(artefacts):
            samples.drop(id, artefact)
        for path in sorted(shards):
            plan_file(data / path).unlink(missing_ok=True)
            (data / path).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(Path(error.filename or data), error) from error
    return len(artefacts), len(shards)


def main(argv: Sequence[str]) -> int:
    """Verify a set, and mend it if asked to."""
    given = _parser().parse_args(argv)
    if not given.data.is_dir():
        raise UsageError(f"{given.data} is no folder of a prepared set")
    with only_here(given.data) if given.fix else nullcontext():
        verified = verify(given.data)
        mended = mend(given.data, verified.findings) if given.fix else None
    advice = _advice(given.data, verified.findings, mended)
    if given.json:
        print(json.dumps(_as_json(verified, mended, advice), indent=1, ensure_ascii=False))
    else:
        _tell(verified, advice)
    return EXIT_DATA if verified.findings else EXIT_DONE


def _check_image(data: Path, entry: ImageEntry, recipes: Mapping[str, Recipe]) -> tuple[ImageState, list[Finding]]:
    samples = Samples(data)
    state = look_up(samples, entry, recipes)
    return state, [*check_artefacts(samples, state, recipes), *unknown_files(samples, entry)]


def _read_index(data: Path) -> tuple[SetIndex | None, list[Finding]]:
    path = f"{SHARDS}/{INDEX}"
    try:
        index = find_index(data / SHARDS)
    except DataError as error:
        return None, [Finding("broken index", path, str(error), "the index of the shards")]
    is_packed = index is not None or not any((data / SHARDS).glob("bucket_*"))
    return index, [] if is_packed else [Finding("broken index", path, "no file", "the index of the shards beside it")]


def _strangers(data: Path, ids: Collection[str]) -> tuple[int, list[Finding]]:
    """How many images are gone whose artefacts are still there, and what in the set is not its own."""
    gone, unknown, closed = 0, [path for path in data.iterdir() if not _OWN.fullmatch(path.name)], []
    for folder in (data / "samples").glob("*"):
        try:
            inside = [(path, path.is_dir()) for path in folder.iterdir()]
        except NotADirectoryError:
            unknown.append(folder)
            continue
        except OSError as error:
            closed.append(
                Finding("unreadable folder", folder.relative_to(data).as_posix(), str(error.strerror), READABLE)
            )
            continue
        for path, is_folder in inside:
            if is_folder and _ID.fullmatch(path.name) and path.name.startswith(folder.name):
                gone += path.name not in ids
            else:
                unknown.append(path)
    named = sorted(path.relative_to(data).as_posix() for path in unknown if not is_unfinished(path))
    return gone, [*closed, *(Finding("unknown file", name, "a file or folder", "nothing") for name in named)]


def _advice(data: Path, findings: Sequence[Finding], mended: tuple[int, int] | None) -> str:
    """What to do about it; '' if nothing was found."""
    if not findings:
        return ""
    prepare = f"python -m trainer prepare {whole_manifest(data).photos} --out {data}, with the options it was made with"
    if mended is not None:
        artefacts, shards = mended
        return (
            f"{artefacts} artefacts and {shards} shards that were corrupt are taken out; to make them again: {prepare}"
        )
    if any(finding.kind == "unreadable folder" for finding in findings):
        return "let the owner of these folders give the right to read them (chmod), then verify again"
    if any(finding.is_corrupt for finding in findings):
        return f"python -m trainer verify {data} --fix takes out what is corrupt; then: {prepare}"
    if all(finding.kind == "unknown file" for finding in findings):
        return "nothing is wrong with the set; remove what does not belong to it, or move it elsewhere"
    return f"to bring the set up to date: {prepare}"


def _as_json(verified: Verified, mended: tuple[int, int] | None, advice: str) -> dict[str, object]:
    return {
        "images": verified.images,
        "shards": verified.shards,
        "gone": verified.gone,
        "findings": [finding.as_json() for finding in verified.findings],
        "mended": None if mended is None else {"artefacts": mended[0], "shards": mended[1]},
        "next": advice,
    }


def _tell(verified: Verified, advice: str) -> None:
    for finding in verified.findings:
        print(finding)
    found = f"{len(verified.findings):,} findings" if verified.findings else "nothing is wrong"
    print(f"{verified.images:,} images and {verified.shards:,} shards were read: {found}")
    if verified.gone:
        print(f"{verified.gone:,} folders below samples/ are of photographs that are gone: nothing reads them")
    if advice:
        print(advice, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer verify",
        description="Read every byte of a prepared set and name what is not right. 0: nothing, 65: something.",
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="the --out folder of prepare")
    parser.add_argument("--fix", action="store_true", help="take out what is corrupt, so that prepare makes it again")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser

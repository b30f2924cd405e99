"""`python -m trainer publish DATA --to hub:OWNER/NAME`: a packed set and its card to the hub. A dry run without --yes.

A dry run touches no network: what is there already it knows from DATA/published.json, which every upload leaves behind.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.data.remote.address import parse_address
from trainer.data.set_index import SetIndex
from trainer.errors import EXIT_DONE, EXIT_STOPPED, DataError, UsageError
from trainer.prepare.lock import only_here
from trainer.prepare.publication import PUBLISHED, Difference, File, There, as_json, difference, files_of, summary
from trainer.prepare.records import write_json


def main(argv: Sequence[str]) -> int:
    """Run the command. 0: published, or told what would be. Raises UsageError and DataError."""
    given = _parser().parse_args(argv)
    repository = _repository(given.to)
    if not given.data.is_dir():
        raise UsageError(f"{given.data} is no folder of a prepared set")
    index, files = files_of(given.data, given.license)
    visibility = "public" if given.public else "private"
    if not given.yes:
        found = difference(files, _published(given.data, repository))
        _tell(given.json, repository, index, found, visibility, done=False)
        if not given.json:
            print("nothing was sent; add --yes to upload")
        return EXIT_DONE
    try:
        with only_here(given.data):
            found = publish(given.data, repository, index, files, is_public=given.public)
    except KeyboardInterrupt:
        print("stopped; what is up stays up, the same command goes on from there", file=sys.stderr)
        return EXIT_STOPPED
    _tell(given.json, repository, index, found, visibility, done=True)
    return EXIT_DONE


def publish(data: Path, repository: str, index: SetIndex, files: Sequence[File], is_public: bool = False) -> Difference:
    """Bring a set to the hub, and look whether it is there as it is here; what was uploaded. Raises DataError."""
    from trainer.prepare.hub import Hub  # half a second of imports

    hub = Hub(repository)
    head = hub.prepare(private=not is_public)
    if head.is_private == is_public:
        is_now, flag = ("private", "--private") if head.is_private else ("public", "--public")
        raise DataError(
            f"hub:{repository} is there and {is_now}: say {flag}, change that on the hub, or choose another name; "
            "nothing was uploaded"
        )
    found = difference(files, head.files)
    if not found.missing and not found.obsolete:
        _note(data, repository, head.commit, files)
        return found
    commit = hub.upload(found, head.commit, f"{index.samples} samples, index {index.digest[:12]}")
    _require_same(repository, files, hub.head().files)
    _note(data, repository, commit, files)
    return found


def _require_same(repository: str, files: Sequence[File], there: Sequence[There]) -> None:
    """The index that others will read is ours, and so is every shard that it names."""
    left = difference(files, there)
    if left.missing or left.obsolete:
        named = ", ".join([*(file.path for file in left.missing), *left.obsolete][:5])
        raise DataError(f"hub:{repository} does not have what was uploaded ({named}): give the same command again")


def _published(data: Path, repository: str) -> tuple[There, ...]:
    """What the last upload from here left in the repository, as far as we know."""
    path = data / PUBLISHED
    try:
        files = json.loads(path.read_bytes()).get(repository, {}).get("files", {})
        return tuple(There(name, 0, str(digest), "") for name, digest in files.items())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no list of what was published ({error}): remove it") from error


def _note(data: Path, repository: str, commit: str, files: Sequence[File]) -> None:
    path = data / PUBLISHED
    known = json.loads(path.read_bytes()) if path.exists() else {}
    known[repository] = {"commit": commit, "files": {file.path: file.sha256 for file in files}}
    write_json(path, known)


def _tell(is_json: bool, repository: str, index: SetIndex, found: Difference, visibility: str, done: bool) -> None:
    if is_json:
        print(json.dumps(as_json(repository, index, found, visibility, done), indent=1))
    elif done:
        print(f"hub:{repository} has the set; {len(found.missing)} files were uploaded, {len(found.same)} were there")
        print(f"to train on it: data.path: hub:{repository}")
    else:
        print(summary(repository, index, found, visibility))


def _repository(text: str) -> str:
    if not text.startswith("hub:") or "@" in text:
        raise UsageError(f"--to {text}: allowed is hub:OWNER/NAME")
    try:
        return parse_address(text).repository
    except DataError as error:
        raise UsageError(f"--to {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer publish",
        description="Publish a packed set with its card. Without --yes nothing is sent.",
        epilog="The token is that of HF_TOKEN or of `hf auth login`. An upload that was interrupted goes on.",
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of a prepared set")
    parser.add_argument("--to", required=True, metavar="hub:OWNER/NAME", help="data set on the hub; made if not there")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="only you and whom you invite can see it (default)")
    seen.add_argument("--public", action="store_true", help="everybody can see it")
    parser.add_argument("--license", metavar="ID", help="licence in the card's header, as the hub names it: cc-by-4.0")
    parser.add_argument("--yes", action="store_true", help="upload")
    parser.add_argument("--json", action="store_true", help="say it for a program")
    return parser

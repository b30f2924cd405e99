"""The hub as one repository of data sets: look, upload, commit. Every refusal becomes a DataError that says what to do.

Everything goes through huggingface_hub. Content is uploaded first and named in one commit at the end, so that a reader
sees the old set or the new one and never a mixture. An upload that was interrupted leaves content without a name: the
hub knows it by its SHA-256 (or, where hf_xet is installed, piece by piece) and does not take it a second time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from trainer.byte_progress import Advance, byte_bar
from trainer.data.remote.address import HUB, hub_endpoint
from trainer.data.remote.download import sha256_of
from trainer.errors import DataError
from trainer.prepare.publication import Difference, File, There

FILES_AT_ONCE = 5
_DATASET = "dataset"
_TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True, slots=True)
class Head:
    """A repository as it is now: its newest commit, whether others cannot see it, and its files."""

    commit: str
    is_private: bool
    files: tuple[There, ...]


class Hub:
    """One repository. Raises DataError without a token, and from every verb for whatever the hub refuses."""

    def __init__(self, repository: str) -> None:
        token = os.environ.get("HF_TOKEN", "").strip() or get_token()
        if not token:
            raise DataError(f"there is no token: set HF_TOKEN, or log in with `hf auth login`; {_TOKENS} makes one")
        self.repository = repository
        self._token = token
        self._api = HfApi(endpoint=hub_endpoint(), token=token, library_name="armature")

    def prepare(self, private: bool) -> Head:
        """The repository, made if it is not there. One that is there keeps its visibility."""
        with self._told("look at"):
            self._api.create_repo(self.repository, repo_type=_DATASET, private=private, exist_ok=True)
            return self.head()

    def head(self) -> Head:
        """How it is now."""
        with self._told("look at"):
            info = self._api.dataset_info(self.repository)
            if info.sha is None:
                raise DataError(f"the hub says of {self.repository} no commit: give the same command again")
            tree = self._api.list_repo_tree(self.repository, repo_type=_DATASET, revision=info.sha, recursive=True)
            files = tuple(_there(entry) for entry in tree if isinstance(entry, RepoFile))
            return Head(info.sha, bool(info.private), files)

    def upload(self, found: Difference, parent: str, message: str) -> str:
        """Bring up what is missing, then name it; the new commit. Nothing is named before everything is there."""
        additions = []
        with self._told("write to"), _progress(found.size) as advance:
            for group in _groups(found.missing):
                operations = [self._addition(file) for file in group]
                self._api.preupload_lfs_files(
                    self.repository, operations, repo_type=_DATASET, num_threads=FILES_AT_ONCE, free_memory=False
                )
                additions += operations
                advance(sum(file.size for file in group))
            removals = [CommitOperationDelete(path_in_repo=path) for path in found.obsolete]
            made = self._api.create_commit(
                self.repository,
                [*additions, *removals],
                commit_message=message,
                repo_type=_DATASET,
                parent_commit=parent,
            )
            return str(made.oid)

    def _addition(self, file: File) -> CommitOperationAdd:
        if file.content is not None:
            return CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.content)
        if (found := sha256_of(file.source)) != file.sha256:
            raise DataError(
                f"{file.source} has changed since it was packed (SHA-256 {found[:12]}…, the index says "
                f"{file.sha256[:12]}…): remove it and pack the set again; nothing of the set was named on the hub"
            )
        addition = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=str(file.source))
        addition.upload_info.sha256 = bytes.fromhex(found)  # read once, by us
        return addition

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Errors of the library in our words; the token in none of them."""
        try:
            yield
        except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RuntimeError, ValueError, OSError) as error:
            raise DataError(self._in_words(what, error)) from None

    def _in_words(self, what: str, error: BaseException) -> str:
        answered = _answered(error)
        if answered is not None:
            status = answered.response.status_code
            return (
                f"cannot {what} hub:{self.repository}: {self._advice(status)} (status {status}: {self._said(answered)})"
            )
        chain = list(_chain(error))
        if any(isinstance(each, HTTPError | OfflineModeIsEnabled | ConnectionError) for each in chain):
            return (
                f"cannot {what} hub:{self.repository}: {_endpoint_name()} cannot be reached; what is up stays up: look "
                "at the network and give the same command again"
            )
        return f"cannot {what} hub:{self.repository}: {self._clean(str(chain[-1]))}; give the same command again"

    def _advice(self, status: int) -> str:
        if status == 401:
            return f"the hub does not accept the token: set HF_TOKEN to a valid one ({_TOKENS})"
        if status == 403:
            owner = self.repository.partition("/")[0]
            return f"the token may not write there: it needs the right to write to repositories of {owner}"
        if status == 404:
            return "there is no such repository, or this token may not see it: is the name right?"
        if status in (409, 412):
            return "somebody else has changed it meanwhile: give the same command again"
        if status == 429:
            return "the hub asks for fewer requests: wait some minutes; what is up stays up"
        if status >= 500:
            return "the hub has a problem of its own: give the same command again later; what is up stays up"
        return "the hub refuses"

    def _said(self, error: HfHubHTTPError) -> str:
        """What the server itself says: its own words, not the library's, which hold addresses."""
        message = error.server_message or error.response.reason_phrase or "no reason given"
        return self._clean(message)

    def _clean(self, text: str) -> str:
        return " ".join(text.replace(self._token, "[hidden]").split())[:300]


@contextmanager
def _progress(size: int) -> Iterator[Advance]:
    """On a terminal the library's own bars, which know of every part of a file; elsewhere a line now and then."""
    if sys.stderr.isatty():
        yield lambda _: None
        return
    disable_progress_bars()
    with byte_bar("upload", size) as advance:
        yield advance


def _endpoint_name() -> str:
    endpoint = hub_endpoint()
    return "the hub" if endpoint == HUB else endpoint


def _there(entry: RepoFile) -> There:
    return There(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)


def _groups(files: Sequence[File]) -> Iterator[Sequence[File]]:
    for start in range(0, len(files), FILES_AT_ONCE):
        yield files[start : start + FILES_AT_ONCE]


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _answered(error: BaseException) -> HfHubHTTPError | None:
    """The answer of the hub that an error comes from, if it comes from one."""
    return next((each for each in _chain(error) if isinstance(each, HfHubHTTPError)), None)

"""Runs one pass over a set: batches of one shape, read ahead, computed, written behind.

Batches follow from the manifest alone. A batch of which anything is missing is computed as a whole and only what was
missing is written: a product's last bits depend on the size of the batch, so a run that was interrupted must compute in
the very batches of one that was not. A pass that answers for each image alone is asked only for what is missing.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np

from trainer.data.artefacts import CAPTION_FILE, IMAGE_MEMBER
from trainer.errors import DataError
from trainer.prepare.manifest import ImageEntry, Manifest
from trainer.prepare.passes import Concurrent, EachAlone, Failed, Inputs, LooksBeside, Made, Pass
from trainer.prepare.pipeline import answers_in_order
from trainer.prepare.progress import Advance, bar
from trainer.prepare.recipe import Recipe
from trainer.prepare.records import Samples, State

WRITERS = 2
IMAGE, CAPTION = "image", "caption"


@dataclass(slots=True)
class Outcome:
    """What a pass did: images that were `done` before, `made` now, `failed` (id, reason), and ids still `waiting` for
    an artefact that the pass needs. Of those made now, `undetected` show nothing of what the pass looks for."""

    artefact: str
    done: int = 0
    made: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    undetected: int = 0

    @property
    def total(self) -> int:
        """All images."""
        return self.done + self.made + len(self.failed) + len(self.waiting)


@dataclass(frozen=True, slots=True)
class Job:
    """One image of a batch: hashes of what it is made from (`inputs` None: not there yet), and the artefact's state."""

    entry: ImageEntry
    inputs: dict[str, str] | None
    state: State
    beside: Mapping[str, str]


def run_pass(work: Pass, samples: Samples, manifest: Manifest) -> Outcome:
    """Make what is missing, stale or failed. Raises DataError if the pass cannot go on; what was made is kept."""
    recipe, outcome = work.recipe, Outcome(work.artefact)
    todo = []
    for batch in batches_of(work, manifest.images):
        jobs = [_job(samples, manifest, entry, work, recipe) for entry in batch]
        ready = [job for job in jobs if job.inputs is not None]
        outcome.waiting += [job.entry.id for job in jobs if job.inputs is None]
        outcome.done += sum(job.state == "done" for job in ready)
        if any(job.state != "done" for job in ready):
            todo.append([job for job in ready if job.state != "done"] if isinstance(work, EachAlone) else ready)
    if todo:
        with bar(work.artefact, len(manifest.images), outcome.done) as advance:
            _compute(work, samples, manifest, todo, outcome, advance)
    return outcome


def batches_of(work: Pass, images: Sequence[ImageEntry]) -> Iterator[list[ImageEntry]]:
    """Images in the order of the manifest, bucket by bucket if the pass looks at pixels, `batch` at a time."""
    if IMAGE in work.needs:
        by_bucket = sorted(images, key=lambda entry: entry.bucket)
        groups = [list(group) for _, group in groupby(by_bucket, key=lambda entry: entry.bucket)]
    else:
        groups = [list(images)]
    for group in groups:
        for start in range(0, len(group), work.batch):
            yield group[start : start + work.batch]


def _job(samples: Samples, manifest: Manifest, entry: ImageEntry, work: Pass, recipe: Recipe) -> Job:
    inputs = samples.digests(entry.id, work.needs)
    beside = work.beside(manifest.source_root / entry.path) if isinstance(work, LooksBeside) else {}
    state = samples.state(entry.id, work.artefact, recipe, inputs or {}, beside)
    return Job(entry, inputs, state, beside)


def _compute(
    work: Pass,
    samples: Samples,
    manifest: Manifest,
    todo: Sequence[list[Job]],
    outcome: Outcome,
    advance: Advance,
) -> None:
    """Read the next batches and write the last ones while the model computes."""
    recipe = work.recipe
    threads = work.threads if isinstance(work, Concurrent) else 1
    read = partial(_read, samples, manifest, work)
    with (
        ThreadPoolExecutor(WRITERS, "write") as writers,
        work.open() as encode,
        closing(answers_in_order(todo, read, encode, threads)) as answered,  # and so ends before the model does
    ):
        written: deque[Future[object]] = deque()
        for jobs, answers in answered:
            assert len(answers) == len(jobs), "one answer per image"
            for job, answer in zip(jobs, answers, strict=True):
                if job.state == "done":
                    continue
                made = checked(work, answer)
                assert job.inputs is not None, "only images that have what the pass needs are asked for"
                written.append(
                    writers.submit(
                        samples.keep, job.entry.id, work.artefact, recipe, job.inputs, made, beside=job.beside
                    )
                )
                _count(outcome, job, made)
                advance(1)
            while len(written) > 2 * work.batch * WRITERS:
                written.popleft().result()
        while written:
            written.popleft().result()


def checked(work: Pass, made: Made | Failed) -> Made | Failed:
    """The answer itself; one that lacks a file, or holds a number that is not finite, has failed."""
    if isinstance(made, Failed):
        return made
    assert set(made.files) == set(work.files), f"{work.artefact} makes {work.files}, not {tuple(made.files)}"
    for name, content in made.files.items():
        if isinstance(content, np.ndarray) and content.dtype.kind == "f" and not np.isfinite(content).all():
            wrong = int(np.count_nonzero(~np.isfinite(content)))
            return Failed(f"{name} has {wrong} values that {content.dtype} cannot hold")
    return made


def _count(outcome: Outcome, job: Job, made: Made | Failed) -> None:
    if isinstance(made, Failed):
        outcome.failed.append((job.entry.id, made.reason))
    else:
        outcome.made += 1
        outcome.undetected += made.facts.get("detected") is False


def _read(samples: Samples, manifest: Manifest, work: Pass, jobs: Sequence[Job]) -> list[Inputs]:
    return [
        Inputs(
            id=job.entry.id,
            source=manifest.source_root / job.entry.path,
            image_CHW=read_image(samples, job.entry.id) if IMAGE in work.needs else None,
            caption=samples.read(job.entry.id, CAPTION_FILE).decode() if CAPTION in work.needs else None,
        )
        for job in jobs
    ]


def read_image(samples: Samples, id: str) -> np.ndarray:
    """The crop of an image: (3, H, W) uint8. Raises DataError if it is none."""
    try:
        image_CHW = np.lib.format.read_array(io.BytesIO(samples.read(id, IMAGE_MEMBER)), allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{samples.folder(id) / IMAGE_MEMBER} is no array: {error}; run verify --fix") from error
    if image_CHW.ndim != 3 or image_CHW.shape[0] != 3 or image_CHW.dtype != np.uint8:
        raise DataError(
            f"{samples.folder(id) / IMAGE_MEMBER} is {image_CHW.dtype} {image_CHW.shape}; needed: uint8 (3, H, W); run "
            "verify --fix"
        )
    return np.asarray(image_CHW)

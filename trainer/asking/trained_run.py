"""A run that has been trained, as whoever asks it needs it: configuration, checkpoint, what its data was made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import chosen_step, read_state
from trainer.config import TrainerConfig
from trainer.data.buckets import BUCKETS, SQUARE, Bucket
from trainer.data.sample import StreamShapes
from trainer.data.set_record import SetRecord, record_from_json, set_record
from trainer.document import Document, load_document
from trainer.errors import CheckpointError, UsageError


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """One checkpoint of a run.

    `streams` are the conditions that its model takes. `record` is what the shards that it learned from say of
    themselves, None for data of other sources and where nobody knows.
    """

    run_dir: Path
    document: Document
    step: int
    streams: StreamShapes
    record: SetRecord | None

    @property
    def config(self) -> TrainerConfig:
        """The trainer block."""
        return self.document.config

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes of images that the run learned from, the square first if it is one of them."""
        if self.record is None:
            return (Bucket(SQUARE, SQUARE),)
        return tuple(bucket for bucket in BUCKETS if bucket.name in self.record.buckets)

    def size_of(self, bucket: Bucket) -> tuple[int, int]:
        """Height and width in pixels of the images that the run draws in a bucket."""
        size = bucket.scaled(self.config.data.size)
        assert size is not None, "a run trains on buckets of whole pixels only"
        return size


def trained_run(run_dir: Path, step: int | None = None) -> TrainedRun:
    """The run in a folder at the checkpoint of `step` (None: the newest).

    Raises UsageError if there is no such run or checkpoint, ConfigError if its configuration can no longer be used.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UsageError(f"{run_dir} is no run directory: it has no config.yaml")
    document = load_document(run_dir / "config.yaml")
    step = chosen_step(run_dir, step)
    state = read_state(run_dir, step)
    try:
        record = record_from_json(state.get("encoding"))
        streams = StreamShapes(**state["streams"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"state.json of step {step} in {run_dir} cannot be understood: {error!r}") from error
    if record is None or not record.recipes:
        # A checkpoint from before runs remembered it, or shards that were described later: the set may still be here.
        record = set_record(document.config) or record
    return TrainedRun(run_dir, document, step, streams, record)

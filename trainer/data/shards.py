"""Shards as a source of images: every sample is read by itself, from the place in its tar file that an index remembers.

So the order is a true shuffle over all samples, resuming needs the step alone, and nothing is unpacked or written. What
is wrong with the structure of a set (a member is missing) is known once it is open, and the first samples of every
shard are decoded then; what is wrong with the content of any other sample is found when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import islice
from typing import NamedTuple

import numpy as np

from trainer.config import TrainerConfig
from trainer.data.artefacts import IMAGE_MEMBER, JSON_MEMBER, PARTS_MEMBER, STREAM_MEMBERS
from trainer.data.mirror import mirror, names_a_side
from trainer.data.named_set import opened_folder
from trainer.data.naming import safe_id
from trainer.data.order import BucketIds
from trainer.data.rejection import RejectedSample, first_few, refuse_too_many
from trainer.data.sample import Sample
from trainer.data.shapes import stream_shapes
from trainer.data.shard_sample import Fault, decode
from trainer.data.shard_set import ShardFolder, describe_set
from trainer.data.split import PROBE_IMAGES, split
from trainer.data.tar_index import Entry, Span, index_tar, read_span
from trainer.errors import DataError

_LOOKED_AT = 3  # samples of a shard, all of which must be broken before the shard as a whole is


class _Place(NamedTuple):
    """Where a sample lies: its shard, its bucket, and its row in the spans of that shard."""

    tar: int
    folder: int
    row: int


class ShardSource:
    """Images and stored features below `data.path`, bucket by bucket.

    Held-out and probe images come from all buckets. Raises DataError when the set is not in order, lacks a modality
    that `streams` wants, or has too much that cannot be used.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self._set = describe_set(opened_folder(config))
        self.streams = stream_shapes(config)
        self._streams_on = tuple(name for name in STREAM_MEMBERS if getattr(config.streams, name) != "off")
        features = (one for name in self._streams_on for one in STREAM_MEMBERS[name])
        self._wanted = (JSON_MEMBER, IMAGE_MEMBER, *features, *([PARTS_MEMBER] if config.segmentation.enabled else []))
        self._sizes = tuple(_size(folder, config.data.size, self._set.side) for folder in self._set.folders)
        pairs = [(tar, index) for index, folder in enumerate(self._set.folders) for tar in folder.tars]
        self._tars = tuple(tar for tar, _ in pairs)
        self._folder_of = tuple(index for _, index in pairs)
        self._places: dict[str, _Place] = {}
        # (samples, wanted members, offset and size) of every shard: arrays, because workers get a copy of all of it.
        self._spans: list[np.ndarray] = []
        self._total = 0
        rejected: list[tuple[str, str]] = []
        for index, tar in enumerate(self._tars):
            rejected += self._take(index, index_tar(tar))
        for index, ids in self._first_ids().items():
            rejected += self._look_into(index, ids)
        self._refuse_too_many(config, rejected)
        train, held_out, probe = split(tuple(self._places))
        self.train_buckets = self._by_bucket(train)
        self.train_ids = tuple(id for bucket in self.train_buckets for id in bucket.ids)
        self.held_out_ids, dropped = self._readable(held_out, config.validation.samples)
        self.probe_ids, dropped_probes = self._readable(probe, PROBE_IMAGES)
        self.rejected = (*rejected, *dropped, *dropped_probes)
        self._refuse_too_many(config, self.rejected)
        self.notes = self._describe(config)

    def load(self, id: str) -> Sample:
        """The image `id`. Raises RejectedSample if its content cannot be used, DataError if its shard is gone."""
        place = self._places[id]
        tar = self._tars[place.tar]
        try:
            descriptor = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
            try:
                spans = (Span(*span) for span in self._spans[place.tar][place.row].tolist())
                members = [read_span(descriptor, span) for span in spans]
            finally:
                os.close(descriptor)
            folder, size = self._set.folders[place.folder], self._sizes[place.folder]
            return decode(id, dict(zip(self._wanted, members, strict=True)), folder, size, self.streams)
        except OSError as error:
            raise DataError(f"{tar} can no longer be read: {error.strerror or error}") from error
        except (Fault, EOFError) as error:
            raise RejectedSample(self._name(place.tar), id, str(error)) from error

    def at_size(self, size: int) -> ShardSource:
        """The same samples, every bucket scaled to a square side of `size`."""
        other = copy(self)
        other._sizes = tuple(_size(folder, size, self._set.side) for folder in self._set.folders)
        return other

    def mirrored(self, id: str) -> Sample:
        """The image `id` mirrored, or as it is if a word of its caption might become wrong by that.

        Text in shards is stored features, in which no word can be exchanged. Image features keep their values: only
        the places of the patches move. Classes of part maps keep their sides, which no loss looks at.
        """
        sample = self.load(id)
        if sample.text_TD is not None and names_a_side(sample.caption):
            return sample
        return mirror(sample)

    def encode_caption(self, caption: str) -> np.ndarray:
        """Nothing but a DataError: shards hold the features of their own captions, not the encoder."""
        raise DataError("shards hold text as features of an encoder that is not here: no other words can be encoded")

    def edit(self, id: str) -> None:
        """Nothing: nobody knows what a photograph would look like with one attribute changed."""

    # ---- opening ----

    def _take(self, tar: int, entries: dict[str, Entry]) -> Iterator[tuple[str, str]]:
        """Remember the usable samples of one shard; names and reasons of the others."""
        self._refuse_missing_modality(tar, entries)
        folder = self._folder_of[tar]
        spans: list[list[Span]] = []
        for key, entry in entries.items():
            self._total += 1
            id = safe_id(key)
            missing = [suffix for suffix in self._wanted if suffix not in entry.members]
            name = f"{self._name(tar)}: {key}"
            if entry.repeated:
                yield name, f"{', '.join(entry.repeated)} occurs twice under this id"
            elif missing:
                yield name, f"no {' and no '.join(missing)}"
            elif id in self._places:
                yield name, f"the same id as in {self._name(self._places[id].tar)}"
            else:
                self._places[id] = _Place(tar, folder, len(spans))
                spans.append([entry.members[suffix] for suffix in self._wanted])
        self._spans.append(np.array(spans, dtype=np.int64).reshape(len(spans), len(self._wanted), 2))

    def _refuse_missing_modality(self, tar: int, entries: dict[str, Entry]) -> None:
        """What no sample of a shard has was never packed into it."""
        if not entries:
            raise DataError(f"{self._tars[tar]} holds no samples: take it out of the set")
        there = {suffix for entry in entries.values() for suffix in entry.members}
        switches = {f"streams.{stream}: off": STREAM_MEMBERS[stream] for stream in self._streams_on}
        if PARTS_MEMBER in self._wanted:
            switches["segmentation.enabled: false"] = (PARTS_MEMBER,)
        for switch, suffixes in switches.items():
            missing = [suffix for suffix in suffixes if suffix not in there]
            if missing:
                raise DataError(
                    f"shards missing a modality: no sample of {self._tars[tar]} has {' or '.join(missing)}; pack it "
                    f"again, or train with {switch}"
                )

    def _first_ids(self) -> dict[int, list[str]]:
        """The first ids of every shard."""
        first: dict[int, list[str]] = {}
        for id, place in self._places.items():
            known = first.setdefault(place.tar, [])
            if len(known) < _LOOKED_AT:
                known.append(id)
        return first

    def _look_into(self, tar: int, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Decode the first sample of a shard, and more while they are broken; a shard with no good one is refused."""
        faults: list[tuple[str, str]] = []
        for id in ids:
            try:
                self.load(id)
            except RejectedSample as fault:
                faults.append(fault.entry)
                continue
            break
        if len(faults) == len(ids):
            raise DataError(
                f"the first samples of {self._tars[tar]} cannot be used: {first_few(faults)}; pack the shard again, "
                "take it out of the set, or switch the stream off"
            )
        for id in ids[: len(faults)]:
            del self._places[id]
        return faults

    def _readable(self, ids: Sequence[str], needed: int) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
        """The ids without those that turned out to be broken before `needed` good ones were found."""
        dropped: dict[str, tuple[str, str]] = {}
        good = 0
        for id in ids:
            if good == needed:
                break
            try:
                self.load(id)
                good += 1
            except RejectedSample as fault:
                dropped[id] = fault.entry
        return tuple(id for id in ids if id not in dropped), list(dropped.values())

    def _refuse_too_many(self, config: TrainerConfig, rejected: Sequence[tuple[str, str]]) -> None:
        refuse_too_many(str(self._set.root), self._total, rejected, config.data.max_rejected_share, "samples")
        if len(self._places) < 2:
            raise DataError(f"{self._set.root} holds {len(self._places)} usable samples; at least 2 are needed")

    # ---- buckets ----

    def _by_bucket(self, ids: Sequence[str]) -> tuple[BucketIds, ...]:
        """Ids of every bucket that has some, buckets and ids in the order of the set."""
        found: dict[int, list[str]] = {}
        for id in ids:
            found.setdefault(self._places[id].folder, []).append(id)
        return tuple(BucketIds(self._set.folders[index].bucket.name, tuple(found[index])) for index in sorted(found))

    def _name(self, tar: int) -> str:
        return self._tars[tar].relative_to(self._set.root).as_posix()

    def _shares(self, what: str, ids: Sequence[str]) -> str:
        """How many of `ids` each bucket has; the first ones by id hash need not be of every bucket."""
        numbers = {bucket.name: len(bucket.ids) for bucket in self._by_bucket(ids)}
        names = [folder.bucket.name for folder in self._set.folders]
        return f"{what} images by bucket: {', '.join(f'{name} ({numbers.get(name, 0)})' for name in names)}"

    def _describe(self, config: TrainerConfig) -> tuple[str, ...]:
        """What was decided about the set."""
        stored = self._set.side
        notes = [f"shards: {len(self._places)} samples in {len(self._set.folders)} buckets, stored at {stored}"]
        notes += self._set.labels
        if config.data.size < stored:
            notes.append(f"stored images of {stored} are reduced to {config.data.size}")
        if len(self._set.folders) > 1:
            notes += [
                self._shares("validated", self.held_out_ids[: config.validation.samples]),
                *([self._shares("probed", self.probe_ids[:PROBE_IMAGES])] if self.probe_ids else []),
            ]
        small = [bucket for bucket in self.train_buckets if len(bucket.ids) < config.samples_per_step]
        if small and len(self.train_buckets) > 1:
            listed = ", ".join(f"{bucket.name} ({len(bucket.ids)})" for bucket in small)
            notes.append(f"buckets with fewer images than a step uses, which repeat within it: {listed}")
        if self._set.left_alone:
            few = ", ".join(islice(self._set.left_alone, 5))
            notes.append(f"{len(self._set.left_alone)} files or folders that are no shards were left alone: {few}")
        if not self.probe_ids:
            notes.append(f"{len(self._places)} samples are too few to keep one for probes: no probes")
        return (*notes, *([f"{len(self.rejected)} samples rejected"] if self.rejected else []))


def _size(folder: ShardFolder, size: int, side: int) -> tuple[int, int]:
    """(height, width) of a bucket's images in training."""
    if size > side:
        raise DataError(f"data.size {size} is more than the shards hold, which is {side}: allowed are 1 to {side}")
    scaled = folder.bucket.scaled(size)
    if scaled is None:
        raise DataError(
            f"bucket {folder.bucket.name} at data.size {size} is no whole number of pixels: a multiple of 16"
        )
    return scaled

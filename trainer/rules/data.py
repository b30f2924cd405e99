"""What the source of images demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.data.artefacts import STREAM_MEMBERS
from trainer.data.named_set import shards_of
from trainer.data.remote.address import is_address
from trainer.data.shard_set import ShardSet
from trainer.errors import DataError, Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet. Of shards those that are on this machine are looked at."""
    data = config.data
    if data.source in ("folder", "shards") and data.path is None:
        yield Issue("data.path", f"source {data.source} needs the path of a folder", "a path")
    if data.source == "procedural" and data.path is not None:
        yield Issue("data.path", "source procedural reads no folder", "null, or data.source: folder")
    if data.source != "shards" and data.path is not None and is_address(data.path):
        yield Issue(
            "data.path", f"{data.path} is an address, and source {data.source} reads none", "data.source: shards"
        )
    if data.source != "shards" and data.index is not None:
        yield Issue("data.index", f"source {data.source} has no index", "null, or data.source: shards")
    if data.source == "shards":
        yield from _shard_rules(config)


def _shard_rules(config: TrainerConfig) -> Iterator[Issue]:
    try:
        found = shards_of(config)
    except DataError as error:
        yield Issue("data.path", str(error), "a folder or an address of shards that is in order")
        return
    if found is None:
        return
    if config.data.size > found.side:
        stored = f"shards in {found.root} hold images of {found.side} (the square bucket)"
        yield Issue("data.size", f"{config.data.size} is more than what the {stored}", f"1 to {found.side}")
    else:
        yield from _bucket_rules(config, found)
    for stream, suffixes in STREAM_MEMBERS.items():
        missing = [suffix for suffix in suffixes if suffix not in found.suffixes]
        if missing and getattr(config.streams, stream) != "off":
            yield Issue(
                f"streams.{stream}",
                f"the shards in {found.root} hold no {' and no '.join(missing)}",
                "off for this set",
            )


def _bucket_rules(config: TrainerConfig, found: ShardSet) -> Iterator[Issue]:
    size, patch = config.data.size, config.model.patch
    for folder in found.folders:
        name = folder.bucket.name
        scaled = folder.bucket.scaled(size)
        if scaled is None:
            yield Issue(
                "data.size", f"bucket {name} scaled to {size} / 1024 is no whole number of pixels", "a multiple of 16"
            )
        elif (scaled[0] % patch or scaled[1] % patch) and folder.bucket.width != folder.bucket.height:
            height, width = scaled
            yield Issue(
                "model.patch",
                f"patches of {patch} do not divide bucket {name}, which is {width} x {height} at data.size {size}",
                "a divisor of data.size / 16, or a larger data.size",
            )

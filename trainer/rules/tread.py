"""What token routing demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.data.shapes import bucket_tokens
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    if not config.tread.enabled:
        return
    depth = config.model.depth
    first, last = config.tread_blocks
    allowed = f"0 to {depth - 1}, or -{depth} to -1 from the end"
    for name, block in (("first", first), ("last", last)):
        if not 0 <= block < depth:
            yield Issue(f"tread.{name}", f"there is no such block in a model of depth {depth}", allowed)
    if first > last:
        yield Issue("tread.first", f"block {first} comes after tread.last, which is block {last}", allowed)
    for bucket, tokens in bucket_tokens(config).items():
        if config.kept_of(tokens) == tokens:
            where = f" of bucket {bucket}" if bucket else ""
            yield Issue(
                "tread.ratio",
                f"all {tokens} tokens{where} are kept after rounding up to keep_multiple {config.tread.keep_multiple}",
                "a ratio and a keep_multiple that route at least one token",
            )
    if config.routed_steps == 0:
        yield Issue("tread.dense_tail", "the dense tail is the whole run, so nothing is routed", "a share below 1")

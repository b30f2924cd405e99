"""Samples per second of our whole training step beside the same step in plain PyTorch (plain_peer.py), one CPU thread.

Both train the same model on noise of the same sizes, in fp32, with the seven-way dropout, in full shuffled epochs, and
both log every step. They take turns in one process, a turn is two epochs; the clock is the CPU time of the one thread.
The process keeps freed memory, as our trainer has the C library do when it starts; the plain step gains from it, too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.plain_peer import DROPOUT, STREAMS, Training, noise_images
from benchmarks.train_step import block_operations, spread
from benchmarks.train_step_rig import IMAGES, JOINTS, Cell, Rig, Sizes
from trainer.device import keep_freed_memory

TURNS = 11
EPOCHS = 2
STEPS = 100_000
CELLS = {"dense": Cell("dense", {}), "tread": Cell("tread", {"tread": {"enabled": True}})}


def kept(name: str, sizes: Sizes) -> int | None:
    """Tokens that the routed blocks of a cell see; None where none are routed."""
    return sizes.tokens - sizes.tokens // 2 if name == "tread" else None


def measure(sizes: Sizes, turns: int) -> list[dict[str, Any]]:
    """One row per cell; a first turn of everything is not counted."""
    contenders: dict[tuple[str, str], Callable[[], None]] = {}
    for name, cell in CELLS.items():
        contenders[name, "ours"] = epoch_of(Rig(sizes, cell, torch.device("cpu")))
        contenders[name, "plain"] = Training(sizes, noise_images(sizes, IMAGES), kept(name, sizes), STEPS).epoch
    seen: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
    for turn in range(turns + 1):
        for key in contenders if turn % 2 else reversed(contenders):
            seconds = timed(contenders[key])
            if turn:
                seen[key].append(seconds)
    return [row(sizes, name, seen[name, "ours"], seen[name, "plain"]) for name in CELLS]


def epoch_of(rig: Rig) -> Callable[[], None]:
    """As many of our whole steps as see every sample once."""
    steps = IMAGES // rig.config.samples_per_step

    def epoch() -> None:
        for _ in range(steps):
            rig.step()

    return epoch


def timed(epoch: Callable[[], None]) -> float:
    """CPU seconds of this thread for the epochs of one turn."""
    begun = time.thread_time()
    for _ in range(EPOCHS):
        epoch()
    return time.thread_time() - begun


def row(sizes: Sizes, name: str, ours: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    """What the turns of one cell say: times of a step, samples per second, and their ratio turn by turn."""
    samples = EPOCHS * IMAGES
    seconds = {"ours": ours, "plain": plain}
    return {
        "cell": name,
        "step_ms": {who: 1000.0 * sizes.batch * median(each) / samples for who, each in seconds.items()},
        "samples_per_s": {who: spread([samples / value for value in each]) for who, each in seconds.items()},
        "ratio": spread([other / own for own, other in zip(ours, plain, strict=True)]),
        "operations": operations(sizes, name),
    }


def operations(sizes: Sizes, name: str) -> float:
    """How many more operations all blocks of the plain step do on average, because it only masks dropped conditions.

    For ours a stream has its full length or, dropped, that of one token; operations are linear in the whole length, so
    the mean over the seven categories is enough.
    """
    lengths = dict(zip(STREAMS, (sizes.text, 1, sizes.patches, JOINTS), strict=True))
    mean = sum(
        chance * sum(lengths[stream] if keeps else 1 for stream, keeps in zip(STREAMS, kind, strict=True))
        for kind, chance in DROPOUT.items()
    )
    routed = kept(name, sizes) or sizes.tokens

    def blocks(context: float) -> float:
        whole, inner = (block_operations(sizes, tokens, context) for tokens in (sizes.tokens, routed))
        return 2 * whole + (sizes.depth - 2) * inner

    return blocks(sum(lengths.values())) / blocks(mean)


def run(quick: bool) -> dict[str, Any]:
    """The sizes of the README, as plain JSON values."""
    torch.set_num_threads(1)
    keep_freed_memory()
    turns = 2 if quick else TURNS
    sizes = Sizes()
    rows = measure(sizes, turns)
    print(f"  {rows}", file=sys.stderr, flush=True)
    return {
        "benchmark": "train_peer",
        "device": "cpu, one thread",
        "torch": torch.__version__,
        "turns": turns,
        "epochs_per_turn": EPOCHS,
        "sizes": vars(sizes),
        "rows": rows,
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| TREAD | ours, samples/s | plain, samples/s | ours over plain | operations of the blocks, plain over ours |",
        "|---|--:|--:|--:|--:|",
    ]
    for found in result["rows"]:
        speeds = found["samples_per_s"]
        shown = (_shown(speeds["ours"]), _shown(speeds["plain"]), _shown(found["ratio"]))
        routed = "yes" if found["cell"] == "tread" else "no"
        lines.append(f"| {routed} | {' | '.join(shown)} | {found['operations']:.2f} |")
    return "\n".join(lines)


def _shown(values: Mapping[str, float]) -> str:
    return f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"

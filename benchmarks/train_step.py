"""What a training step costs, and what of it is work: forward, backward, whole steps, TREAD beside its theory.

    python -m benchmarks.train_step                                  # the CPU sizes of the README, one thread
    python -m benchmarks.train_step --device cuda --width 768 --depth 18 --heads 12 --size 1024 --patch 16 \
        --text 512 --patches 4096 --batch 4 --precision bf16 bf16+compile fp8+compile

Data is noise of the asked sizes, kept in memory, with the seven-way dropout of training. Cells take turns, so that
whatever slows the machine slows all of them; medians, with the span of the middle half. On a CPU the clock is the time
of the one computing thread, on a GPU the wall clock between two synchronisations.

- *forward + backward* is the network alone under all conditions; *products* are the matrix products and attentions that
  it asked for, repeated alone.
- *theory* is the ratio of the operations of all blocks (linear maps and attention; conditions are never routed).
- *step* is everything a run does, with the seven-way dropout: data, draws, loss, gradients, optimizer, averages and
  metrics; *bare* is network, loss and gradients of the same samples, drawn beforehand.
- *MFU*: operations of forward + backward (forward x 3, only the tokens that are really computed, no recomputation) over
  what the device can do with dense bf16.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.train_step_rig import Cell, Products, Rig, Sizes
from trainer.config import TrainerConfig
from trainer.device import keep_freed_memory
from trainer.utilization import peak_flops

TURNS = 5
WARM_UP = 2


def block_operations(sizes: Sizes, tokens: int, context: int) -> float:
    """Forward operations of one block for one sample: linear maps and attention, a multiply-add as two."""
    width = sizes.width
    linear = (14 * tokens + 2 * context) * width**2
    return 2.0 * (linear + 2 * tokens * (tokens + context) * width)


def theory(sizes: Sizes, config: TrainerConfig, context: int) -> float:
    """How much less the blocks have to do with routing."""
    first, last = config.routed_blocks
    dense = block_operations(sizes, sizes.tokens, context)
    saved = (last - first + 1) * (dense - block_operations(sizes, config.kept_tokens, context))
    return sizes.depth * dense / (sizes.depth * dense - saved)


def measure(sizes: Sizes, patches: str, changes: Mapping[str, Any], device: torch.device, turns: int) -> dict[str, Any]:
    """Dense and TREAD taking turns, for one kind of image conditions and one way to compute."""
    kind = {**changes, "streams": {"patches": patches}}
    multiple = 128 if sizes.tokens >= 1024 else 1
    cells = {
        "dense": Cell("dense", kind),
        "tread": Cell("tread", {**kind, "tread": {"enabled": True, "keep_multiple": multiple}}),
    }
    rigs = {name: Rig(sizes, cell, device) for name, cell in cells.items()}
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in rigs}
    products = {name: recorded(sizes, cell, device) for name, cell in cells.items()} if device.type == "cpu" else {}
    for turn in range(turns + WARM_UP):
        if turn == WARM_UP:
            seen = {name: {} for name in rigs}
        for name in rigs if turn % 2 else reversed(rigs):
            take_turn(rigs[name], products.get(name), seen[name])
    found = {"patches": patches, **summary(sizes, rigs, seen, sizes.context(patches), device)}
    if device.type == "cuda":
        rigs.clear()
        found["peak_gib"] = {name: peak_gib(sizes, cell, device) for name, cell in cells.items()}
    return found


def peak_gib(sizes: Sizes, cell: Cell, device: torch.device) -> float:
    """The most memory that two steps of a cell hold on the device, alone there."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    rig = Rig(sizes, cell, device)
    for _ in range(2):
        rig.step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**30


def take_turn(rig: Rig, products: Products | None, seen: dict[str, list[float]]) -> None:
    """Every quantity of one cell once."""
    for name, what in (("network", rig.forward_backward), ("products", products and products.repeat)):
        if what is not None:
            seen.setdefault(name, []).append(rig.timed(what))
    seen.setdefault("bare", []).append(rig.timed(rig.bare()))
    seen.setdefault("step", []).append(rig.timed(rig.step))


def recorded(sizes: Sizes, cell: Cell, device: torch.device) -> Products:
    """The products of one forward and backward pass; not compiled, since a compiled one cannot be listened to."""
    rig = Rig(sizes, Cell(cell.name, {**cell.changes, "compile": {"enabled": False}}), device)
    with Products() as products:
        rig.forward_backward()
    return products


def summary(
    sizes: Sizes,
    rigs: Mapping[str, Rig],
    seen: Mapping[str, Mapping[str, list[float]]],
    context: int,
    device: torch.device,
) -> dict[str, Any]:
    """Medians and spans of what `measure` has seen."""

    def ratios(one: str, other: str, name: str) -> list[float]:
        return [a / b for a, b in zip(seen[name][one], seen[name][other], strict=True)]

    config = rigs["tread"].config
    speed_up = [a / b for a, b in zip(seen["dense"]["network"], seen["tread"]["network"], strict=True)]
    found: dict[str, Any] = {
        "context": context,
        "network_ms": {name: 1000.0 * median(times["network"]) for name, times in seen.items()},
        "step_ms": {name: 1000.0 * median(times["step"]) for name, times in seen.items()},
        "samples_per_s": {name: rigs[name].config.samples_per_step / median(seen[name]["step"]) for name in rigs},
        "step_over_bare": {name: spread(ratios("step", "bare", name)) for name in rigs},
        "tread_speed_up": spread(speed_up),
        "tread_theory": theory(sizes, config, context),
        "data_wait_share": {name: rig.data_share for name, rig in rigs.items()},
    }
    if "products" in seen["dense"]:
        found["network_over_products"] = {name: spread(ratios("network", "products", name)) for name in rigs}
    if device.type == "cuda":
        found["mfu"] = {name: mfu(sizes, rig, context, median(seen[name]["network"])) for name, rig in rigs.items()}
    return found


def mfu(sizes: Sizes, rig: Rig, context: int, seconds: float) -> float | None:
    """Share of what the device can do with dense bf16; None for a device whose figure is not known."""
    peak = peak_flops(torch.cuda.get_device_name(rig.device))
    if peak is None:
        return None
    first, last = rig.config.routed_blocks
    routed = last - first + 1 if rig.config.tread.enabled else 0
    blocks = routed * block_operations(sizes, rig.config.kept_tokens, context)
    blocks += (sizes.depth - routed) * block_operations(sizes, sizes.tokens, context)
    outer = 2.0 * sizes.width * (2 * sizes.tokens * 3 * sizes.patch**2 + context * sizes.features)
    return 3.0 * sizes.batch * (blocks + outer) / seconds / peak


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the span of the middle half."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return {"median": median(values), "low": ordered[quarter], "high": ordered[-1 - quarter]}


PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": {"compute": "bf16"}},
    "fp8": {"precision": {"compute": "bf16", "fp8": {"enabled": True}}},
}


def way(name: str) -> dict[str, Any]:
    """Changes of a way to compute, such as bf16 or fp8+compile."""
    precision, _, compiled = name.partition("+")
    if precision not in PRECISIONS or compiled not in ("", "compile"):
        raise ValueError(
            f"{name!r} is no way to compute; allowed: {', '.join(PRECISIONS)}, each with or without +compile"
        )
    return {**PRECISIONS[precision], **({"compile": {"enabled": True}} if compiled else {})}


def run(quick: bool) -> dict[str, Any]:
    """The CPU sizes, fp32, and its blocks compiled unless it must be quick, as plain JSON values."""
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cpu")
    found = _rows(Sizes(), ("full", "pooled", "off"), ("fp32",), device, 2 if quick else TURNS)
    if not quick:
        found["rows"] += _rows(Sizes(), ("full",), ("fp32+compile",), device, TURNS)["rows"]
    return found


def _rows(
    sizes: Sizes, patches: Sequence[str], ways: Sequence[str], device: torch.device, turns: int
) -> dict[str, Any]:
    rows = []
    for computing in ways:
        for kind in patches:
            rows.append({"way": computing, **measure(sizes, kind, way(computing), device, turns)})
            print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one thread"
    return {
        "benchmark": "train_step",
        "device": name,
        "torch": torch.__version__,
        "turns": turns,
        "sizes": vars(sizes),
        "rows": rows,
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| computing | image patches | context | TREAD | forward + backward, ms | of its products | step, ms "
        "| of bare | samples/s | MFU | peak, GiB | TREAD speed-up (theory) |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        for name in ("dense", "tread"):
            products, share = row.get("network_over_products", {}).get(name), row.get("mfu", {}).get(name)
            peak = row.get("peak_gib", {}).get(name)
            gain = f"{_shown(row['tread_speed_up'])} ({row['tread_theory']:.3f})" if name == "tread" else ""
            cells = (
                *(row["way"], row["patches"], row["context"], "yes" if name == "tread" else "no"),
                *(
                    f"{row['network_ms'][name]:.0f}",
                    _shown(products) if products else "–",
                    f"{row['step_ms'][name]:.0f}",
                ),
                *(_shown(row["step_over_bare"][name]), f"{row['samples_per_s'][name]:.2f}"),
                *("–" if share is None else f"{100 * share:.1f} %", "–" if peak is None else f"{peak:.1f}", gain),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _shown(values: Mapping[str, float]) -> str:
    return f"{values['median']:.3f} ({values['low']:.3f} to {values['high']:.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Any sizes, any device: prints the table, and the result as JSON where --json says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.split("\n")[0])
    for field in ("width", "depth", "heads", "size", "patch", "text", "patches", "features", "batch"):
        parser.add_argument(f"--{field}", type=int, default=getattr(Sizes, field))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", nargs="+", default=["fp32"], metavar="WAY", help="fp32 bf16 fp8, or with +compile"
    )
    parser.add_argument("--conditions", nargs="+", default=["full", "pooled", "off"], metavar="KIND")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--json", metavar="F", help="write the result there, too")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    sizes = Sizes(**{field: getattr(given, field) for field in Sizes.__dataclass_fields__})
    result = _rows(sizes, given.conditions, given.precision, torch.device(given.device), given.turns)
    print(table(result))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Is anything left rented? Seeded schedules of everything that can go wrong, ours and how others give machines back.

Ours is the real loop over the real provider and client, with a real database (tests/fakes/renting_case.py); each
schedule fails by itself when a machine is left, two live for one want, the spacing is broken, anything foreign is
touched, or the bill differs by more than 1 %. `python -m benchmarks.renting --seeds 2000 [--first N] [--jobs N]`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.renting_peers import POLICIES, Client
from tests.fakes.renting_case import play

SEEDS, QUICK_SEEDS, CHUNK = 2000, 60, 20
RESULTS = Path(__file__).resolve().parent / "results" / "renting.json"


def run(quick: bool, first: int = 0, seeds: int | None = None, jobs: int = 2) -> dict[str, Any]:
    """Play the schedules from seed `first` on; the sums of ours and of each policy."""
    count = seeds if seeds is not None else (QUICK_SEEDS if quick else SEEDS)
    begun = time.monotonic()
    chunks = [range(at, min(at + CHUNK, first + count)) for at in range(first, first + count, CHUNK)]
    parts: list[dict[str, Any]] = []
    with ProcessPoolExecutor(jobs) as pool:
        for part in pool.map(_chunk, chunks):
            parts.append(part)
            print(f"  {len(parts) * CHUNK:,} of {count:,}", file=sys.stderr, flush=True)
    ours = _added([part["ours"] for part in parts])
    return {
        "first_seed": first,
        "schedules": count,
        "wall_s": round(time.monotonic() - begun, 1),
        "jobs": jobs,
        "failures": [text for part in parts for text in part["failures"]],
        "ours": ours,
        "peers": {one.name: _added([part["peers"][one.name] for part in parts]) for one in POLICIES},
    }


def _chunk(seeds: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"failures": [], "ours": {}, "peers": {one.name: {} for one in POLICIES}}
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, clear=True):
        for seed in seeds:
            try:
                played = asdict(play(seed, Path(folder)))
                played["schedules_with_deaths"] = int(played["deaths"] > 0)
                del played["seed"]
                found["ours"] = _added([found["ours"], played])
            except AssertionError as error:
                found["failures"].append(f"seed {seed}: {error}")
            for policy in POLICIES:
                left = asdict(Client(seed, policy).play())
                left["schedules_with_leaks"] = int(left["machines"] > 0)
                found["peers"][policy.name] = _added([found["peers"][policy.name], left])
    return found


def _added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    names = [name for part in parts for name in part]
    return {name: round(sum(part.get(name, 0.0) for part in parts), 6) for name in dict.fromkeys(names)}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    ours, count = result["ours"], result["schedules"]
    rows = [  # a schedule of ours that leaves anything fails, and stands in the first column, killed or not
        f"| ours | {len(result['failures'])} | {ours['left_machines']:.0f} | {ours['left_machines']:.0f} | "
        f"{ours['left_h']:.1f} | "
        f"{ours['left_usd']:.2f} | {ours['doubles']:.0f} |"
    ]
    for name, left in result["peers"].items():
        rows.append(
            f"| {name} | {left['schedules_with_leaks']:.0f} | {left['machines']:.0f} | "
            f"{left['machines_without_kill']:.0f} | {left['hours']:.1f} | "
            f"{left['usd']:.2f} | {left['doubles']:.0f} |"
        )
    return "\n".join(
        [
            f"{count:,} schedules from seed {result['first_seed']}: {ours['rents']:.0f} machines rented by us, "
            f"{ours['deaths']:.0f} kills of the controller, {ours['requests']:.0f} requests, "
            f"{ours['finished']:.0f} of {ours['waves']:.0f} waves finished, bill {ours['billed_usd']:.2f} USD, ours "
            f"{ours['ours_usd']:.2f} USD ({ours['metered_usd']:.2f} by our meter alone).",
            "",
            "| who | schedules with a leak | machines left | of them without a kill | instance-hours in the day after "
            "| USD | double rents |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
        ]
    )


def main() -> int:
    """The command line; exit code 1 when one of our schedules failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.renting", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    result = run(False, given.first, given.seeds, given.jobs)
    for text in result["failures"]:
        print(text)
    print(table(result))
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""The crash soak: `make soak` plays 200 cases, `make soak SEED=123` plays case 123 again.

In each case the controller of a small study is killed with -9 several times, at random lines of its code among others,
and then left alone; whatever happened, the home must be whole (tests/fakes/soak_checks.py says what that means). The
last line is a summary; a case that fails keeps its folder.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fakes.soak_case import Told, make_plan, read_told, start_case  # noqa: E402
from tests.fakes.soak_checks import check  # noqa: E402

CASES = 200


def main() -> int:
    """The command line; exit code 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="number of the first case; drawn when it is not given")
    parser.add_argument("--cases", type=int, help=f"how many: {CASES}, or 1 with --seed")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--keep", type=Path, help="an empty folder for the cases, which are all kept there")
    parser.add_argument("--show", action="store_true", help="print what a case would do, and do nothing")
    asked = parser.parse_args()
    first = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    count = asked.cases or (CASES if asked.seed is None else 1)
    if asked.show:
        for number in range(first, first + count):
            _show(number)
        return 0
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="armature-soak-"))
    print(f"{count} cases from {first} on, {asked.jobs} at a time, in {folder}", flush=True)
    begun = time.monotonic()
    told = _play_all(list(range(first, first + count)), folder, asked.jobs, keep=asked.keep is not None)
    if asked.keep is None and not any(one.wrong for one in told):
        shutil.rmtree(folder, ignore_errors=True)
    return _sum_up(told, folder, time.monotonic() - begun)


def _play_all(numbers: list[int], folder: Path, jobs: int, *, keep: bool) -> list[Told]:
    """Every case in a process of its own, so many at a time; in the order in which they ended."""
    running: dict[int, int] = {}
    told: list[Told] = []
    total = len(numbers)
    while numbers or running:
        while numbers and len(running) < jobs:
            number = numbers.pop(0)
            running[start_case(make_plan(number), folder / str(number), check)] = number
        found, _ = os.waitpid(-1, os.WNOHANG)
        if not found:
            time.sleep(0.02)
            continue
        number = running.pop(found)
        told.append(read_told(make_plan(number), folder / str(number)))
        _say(told[-1], f"[{len(told)}/{total}]", folder / str(number))
        if not told[-1].wrong and not keep:
            shutil.rmtree(folder / str(number), ignore_errors=True)
    return told


def _say(told: Told, count: str, folder: Path) -> None:
    if not told.wrong:
        lives = f"{len(told.deaths)} lives, {told.seconds:.1f} s"
        print(f"{count} case {told.number}: ok, {lives}", flush=True)
        return
    print(f"{count} case {told.number}: FAILED after {told.seconds:.1f} s", flush=True)
    for what in [*told.wrong, *(f"life {life + 1}: {death}" for life, death in enumerate(told.deaths))]:
        print(f"    {what}")
    print(f"    look at: runner status --home {folder}/runs    and {folder}/runs/controller.log")
    print(f"    again:   make soak SEED={told.number}", flush=True)


def _sum_up(told: list[Told], folder: Path, took_s: float) -> int:
    failed = [str(one.number) for one in told if one.wrong]
    deaths = [death.removeprefix("launch: ") for one in told for death in one.deaths]
    ways = Counter(death.split(" at ")[0] for death in deaths)
    places = {death.split(" at ")[1] for death in deaths if " at " in death}
    took = sorted(one.seconds for one in told)
    total = {name: sum(getattr(one, name) for one in told) for name in ("attempts", "points", "litter")}
    print(f"{len(told)} cases in {took_s:.0f} s (median {took[len(took) // 2]:.1f} s, longest {took[-1]:.1f} s)")
    print(f"  {len(deaths)} lives: {', '.join(f'{way} {count}' for way, count in ways.most_common())}")
    print(f"  {len(places)} different lines; {total['attempts']} attempts, {total['points']} points", end="")
    print(f", {total['litter']} part files left behind")
    if failed:
        print(f"  FAILED: {len(failed)}: {', '.join(failed)}; kept in {folder}")
        return 1
    print("  every point once, no double start, no orphan, every run in its right state")
    return 0


def _show(number: int) -> None:
    plan = make_plan(number)
    print(f"case {number}: {', '.join(f'{one.name} ({one.form}, {one.steps} steps)' for one in plan.arms)}")
    for kill in ([plan.launch_kill] if plan.launch_kill else []) + list(plan.kills):
        print(f"    {kill}")


if __name__ == "__main__":
    sys.exit(main())

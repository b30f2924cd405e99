"""Every benchmark, or those that are named: `make bench`, `QUICK=1 make bench`, `make bench ONLY="launch adoption"`.

A benchmark is a module here with `run(quick) -> result` and `table(result) -> Markdown`. Its result goes to
results/<name>.json, and its table into README.md between the two comments that carry its name. A quick run is a trial:
it prints its table and writes to results/quick-<name>.json only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = (
    "launch",
    "adoption",
    "ingest",
    "status",
    "steady",
    "detectors",
    "indicators",
    "renting",
    "train_step",
    "train_peer",
    "prepare",
)


def main() -> int:
    """The command line; exit code 1 when a benchmark failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all when none is given")
    names = parser.parse_args().names or list(NAMES)
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"{unknown[0]!r} is no benchmark; allowed: {', '.join(NAMES)}")
    quick = os.environ.get("QUICK", "") not in ("", "0")
    failed = [name for name in names if not _play(name, quick)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _play(name: str, quick: bool) -> bool:
    """Run one benchmark in this process and keep its result; a failure is told and does not stop the others."""
    print(f"{name} …", flush=True)
    begun = time.monotonic()
    try:
        module = importlib.import_module(f"benchmarks.{name}")
        result: dict[str, Any] = {**module.run(quick), "machine": machine()}
    except (OSError, RuntimeError, TimeoutError, AssertionError, subprocess.SubprocessError, ImportError) as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return False
    result["seconds"] = round(time.monotonic() - begun, 1)
    table = module.table(result)
    path = HERE / "results" / f"{'quick-' if quick else ''}{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{table}\n\n{name}: {result['seconds']} s, written to {path}\n", flush=True)
    if not quick:
        _put_in_readme(name, table)
    return True


def _put_in_readme(name: str, table: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; left alone when the marks are not there."""
    readme = HERE / "README.md"
    block = f"<!-- {name} -->\n{table}\n\nMeasured on {time.strftime('%Y-%m-%d')}.\n<!-- /{name} -->"
    text = readme.read_text()
    readme.write_text(re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _match: block, text, flags=re.S))


def machine() -> dict[str, Any]:
    """What the figures were measured on, without any name of it."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "gpus": 0,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


if __name__ == "__main__":
    sys.exit(main())

"""Lines of `make accept` about the trainer: what it can learn by heart, what a step costs, what its switches do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.accept_bench import Bench, require
from tests.accept_elsewhere import by_tests

SHEETS = Path(__file__).resolve().parent.parent / ".accept" / "overfit"
LIMIT_S = 300.0


def overfit(bench: Bench) -> None:
    """64 portraits by heart with every prediction, each within five minutes; the sheets are kept for a look."""
    out = bench.run(".venv/bin/python", "tests/overfit.py", "overfit", limit_s=3600, code=None)
    results = [json.loads(line) for line in out.splitlines() if line.startswith('{"prediction"')]
    bench.notes["results"] = results
    SHEETS.mkdir(parents=True, exist_ok=True)
    for sheet in (bench.clone / "overfit").glob("*.png"):
        shutil.copy(sheet, SHEETS)
    require([each["prediction"] for each in results] == ["x", "v", "asymflow"], "every prediction was trained")
    require(all(each["passed"] for each in results), "errors below half the distance to the nearest other image")
    require(all(each["train_s"] < LIMIT_S for each in results), "five minutes at most for each")


def train_step_targets(result: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    """(measured, target, whether less is better) at the CPU sizes, under all conditions, eager and compiled."""
    found = {}
    for row in (row for row in result["rows"] if row["patches"] == "full"):
        found |= {
            f"{row['way']}: tread_share_of_theory": (
                row["tread_speed_up"]["median"] / row["tread_theory"],
                0.97,
                False,
            ),
            f"{row['way']}: network_times_products": (row["network_over_products"]["dense"]["median"], 1.25, True),
            f"{row['way']}: step_times_bare": (row["step_over_bare"]["dense"]["median"], 1.10, True),
        }
    return found


switches = by_tests(
    "tests/test_trainer_golden.py",
    "tests/test_trainer_prediction.py",
    "tests/test_trainer_switches.py",
    "tests/test_trainer_optimizers.py",
    "tests/test_trainer_perceptual.py",
    "tests/test_trainer_segmentation.py",
    "tests/test_trainer_precision.py",
    "tests/test_trainer_sync.py",
)
again = by_tests("tests/test_trainer_evaluate_again.py")
shards = by_tests("tests/test_trainer_distributed.py", "tests/test_trainer_buckets.py")

"""Lines of `make accept` about preparing photographs: from a folder of pictures to a trained model that is asked."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from tests.accept_bench import Bench, require
from tests.accept_elsewhere import by_tests

PORTRAITS = 200
KILLS = 10
SEED = 20261122
SIDE = "256"
POLL_S = 0.02
TRAINING: dict[str, Any] = {
    "steps": 100,
    "batch": 4,
    "device": "cpu",
    "log_every": 10,
    "data": {"source": "shards", "size": 128},
    "model": {"width": 64, "depth": 4, "heads": 4, "patch": 8},
    "repa": {"enabled": True},
    "optimizer": {"name": "muon", "lr": 2e-3, "warmup_steps": 10},
    "validation": {"every": 100, "samples": 6, "sampler_steps": 4},
}


def prepared(bench: Bench) -> None:
    """Photographs, shards, verify, training with every stream, a new prompt; killed ten times, the same bytes."""
    photos, whole, killed = (bench.home(name) for name in ("photos", "whole", "killed"))
    bench.run(".venv/bin/python", "-m", "tests.fakes.picture_folder", str(photos), "--portraits", str(PORTRAITS))
    begun = time.monotonic()
    bench.run(*_prepare(photos, whole))
    bench.notes["prepare_s"] = round(time.monotonic() - begun, 1)
    bench.run(".venv/bin/python", "-m", "trainer", "verify", str(whole))
    bench.notes["kills_at"] = _kill_again_and_again(bench, photos, killed, _files(whole))
    bench.run(*_prepare(photos, killed))
    require(_tree(killed) == _tree(whole), "killed ten times, the final bytes are those of an undisturbed run")
    bench.notes["files"] = len(_tree(whole))
    _train_and_ask(bench, whole / "shards")


def _train_and_ask(bench: Bench, shards: Path) -> None:
    config = bench.home("run.yaml")
    block = {**TRAINING, "data": {**TRAINING["data"], "path": str(shards)}}
    config.write_text(yaml.safe_dump({"seed": 0, "trainer": block}))
    run_dir = bench.home("run")
    bench.run(".venv/bin/python", "-m", "trainer", "train", str(config), "--run-dir", str(run_dir))
    picture = bench.home("asked.png")
    bench.run(
        *(".venv/bin/python", "-m", "trainer", "sample", str(run_dir), "--out", str(picture)),
        *("--prompt", "a lighthouse keeper with a violet scarf, seen from below, at dusk"),
    )
    require(picture.stat().st_size > 1000, "a picture was drawn from a prompt that nobody trained on")


def _kill_again_and_again(bench: Bench, photos: Path, out: Path, total: int) -> list[int]:
    """SIGKILL whoever prepares once so many files are there, ten times on one folder; the numbers of files."""
    draw = random.Random(SEED)
    points = sorted(draw.sample(range(5, total - 5), KILLS))
    for point in points:
        with subprocess.Popen(_prepare(photos, out), cwd=bench.clone, stdout=subprocess.DEVNULL) as work:
            while work.poll() is None and _files(out) < point:
                time.sleep(POLL_S)
            require(work.poll() is None, f"still at work with {point} of {total} files")
            work.send_signal(signal.SIGKILL)
    return points


def _prepare(photos: Path, out: Path) -> tuple[str, ...]:
    command = (".venv/bin/python", "-m", "trainer", "prepare", str(photos), "--out", str(out))
    return (*command, "--encoders", "tiny", "--side", SIDE, "--max-rejected-share", "0.1")


def _files(folder: Path) -> int:
    """Finished files; a folder that is being filled may lose one between two looks."""
    return sum(1 for path in folder.rglob("*") if not path.name.startswith(".") and "." in path.name)


def _tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but locks, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


planted = by_tests(
    "tests/test_trainer_prepare_dwpose_geometry.py",
    "tests/test_trainer_prepare_dwpose.py",
    "tests/test_trainer_prepare_verify.py",
    "tests/test_trainer_prepare_pack_killed.py",
)


def prepare_targets(result: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    """(measured, target, whether less is better)."""
    return {
        f"{row['photographs']}: batched_over_image_by_image": (row["ratio"]["median"], 3.0, False)
        for row in result["rows"]
    }

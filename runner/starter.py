"""The first arm files for somebody's own training script: a commented baseline and a variant of it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from runner.errors import HomeError, UsageError
from runner.spec.schema import NAME_IN_WORDS

BASELINE_FILE = "a_baseline.yaml"
VARIANT_FILE = "b_variant.yaml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_BASELINE = """\
# One arm: one way to train, started by `runner launch {baseline}`.
# Check it first, that touches nothing: `runner check {baseline}`

study: {study}            # arms with the same study are compared with each other
arm: A                    # unique in the study
title: Baseline
hypothesis: What the other arms are read against.
seeds: [0]                # one run for each; several seeds show how far two equal runs lie apart

# How your script is started: one list entry for each argument, no shell in between.
#   {{arm_dir}}  a frozen copy of the folder of this file: editing your code never changes a run that is queued
#   {{run_dir}}  the folder of the run: write checkpoints and results there
#   {{seed}}     the seed of the run          {{gpus}}  the GPUs of the run, as CUDA_VISIBLE_DEVICES has them
#   {{steps}}    the number under `steps` below, or what `runner extend RUN --steps N` made of it later: without it in
#              the command a run cannot be extended, and with it your script goes on by itself from {{run_dir}}
# Numbers stand in quotes. A literal brace is doubled.
command: [python3, "{{arm_dir}}/{script}", --lr, "0.05", --seed, "{{seed}}", --steps, "{{steps}}"]

# Where the metrics are. A regex reads what the script prints; the group `step` is required, every other group is a
# metric. This one reads lines such as:  step 10/200 loss=0.53
metrics: {{source: regex, pattern: 'step (?P<step>\\d+)/\\d+ loss=(?P<loss>\\S+)'}}
# Or a file that the script writes into {{run_dir}}:
#   metrics: {{source: jsonl, path: metrics.jsonl}}     one line: {{"step": 10, "loss": 0.53}}
#   metrics: {{source: csv, path: metrics.csv}}         a header with the column `step`
#   metrics: {{source: tensorboard, path: logs}}        scalars of TensorBoard
steps: 200                # the last step of a run: for the progress, the time left and the judge

# The one metric that ranks the arms and that the judge watches for a slow turn for the worse.
primary: {{metric: loss, direction: min, select: last}}

resources: {{gpus: 0, cpus: 1}}      # gpus: 0 is a CPU slot, 1 pins the run to one GPU
# env: {{HF_TOKEN: {{from: HF_TOKEN}}}}   # passed on from your shell, never stored
# code: {{root: .., include: [../configs]}}   # when the script imports more than its own folder
"""

_VARIANT = """\
# A variant says only what differs: everything else comes from the file that it extends.
extends: {baseline}
arm: B
title: Smaller learning rate
hypothesis: A smaller learning rate ends lower.
baseline: A
changes:
  command: [python3, "{{arm_dir}}/{script}", --lr, "0.01", --seed, "{{seed}}", --steps, "{{steps}}"]
"""


def init(folder: Path, script: str = "train.py", study: str | None = None) -> tuple[Path, ...]:
    """Write a baseline and a variant for `script` (a path relative to `folder`) and return both paths.

    Nothing is ever overwritten: when one of the files is there already, neither is written. The study is named after
    the folder unless given. Raises UsageError, or HomeError when the folder cannot be written.
    """
    name = study or _study_name(folder)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a study; allowed: {NAME_IN_WORDS}")
    if os.path.isabs(script) or ".." in Path(script).parts or any(sign in script for sign in "\"'\\\n{}"):
        raise UsageError(f"{script!r} is not allowed; allowed: a plain path below {folder}, for example train.py")
    texts = {
        folder / BASELINE_FILE: _BASELINE.format(study=name, script=script, baseline=BASELINE_FILE),
        folder / VARIANT_FILE: _VARIANT.format(script=script, baseline=BASELINE_FILE),
    }
    for path in texts:
        if path.exists() or path.is_symlink():
            raise UsageError(f"{path} exists already and is kept; next: runner check {shlex.quote(str(path))}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with open(path, "x", encoding="utf-8") as stream:
                stream.write(text)
    except OSError as error:
        raise HomeError(f"{folder}: the arm files cannot be written: {error.strerror}") from error
    return tuple(texts)


def _study_name(folder: Path) -> str:
    """A name that an arm file may use, made from the folder's own."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")
    return plain[:64] or "my-study"

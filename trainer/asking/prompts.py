"""`python -m trainer evaluate RUN_DIR --prompts FILE`: what a run draws from words that nobody trained it on.

<folder>/0001_seed0.png     the image that `sample` draws from the first prompt with seed 0
<folder>/sheet.png          one row a prompt, one column a seed: the same noise in a column
<folder>/prompts.json       which file belongs to which prompt, and how it was drawn; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.asking.answer import Painter, conditions_of, was_trained
from trainer.asking.encoders import ModelPlaces
from trainer.asking.question import Asked, Question
from trainer.asking.trained_run import TrainedRun, trained_run
from trainer.device import cap_threads
from trainer.errors import UsageError
from trainer.evaluate.pictures import write_images
from trainer.evaluate.sheet import Row, contact_sheet, save_sheet

SHEET_ROWS = 64
"""A sheet shows so many prompts at most: pictures that are higher do not open everywhere."""
INDEX_FILE, SHEET_FILE = "prompts.json", "sheet.png"


@dataclass(frozen=True, slots=True)
class Manner:
    """How prompts are drawn: weights (raw or ema), sampler (common or native), noises of each prompt, and bucket."""

    weights: str = "ema"
    sampler: str = "native"
    seeds: int = 4
    bucket: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a file of prompts, white space collapsed; `line` is its number there, from 1."""

    line: int
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """One prompt a line; empty lines are left out. Raises UsageError if the file cannot be read or holds none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"--prompts {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts {path} is not UTF-8 text: {error}") from error
    found = [Prompt(number, " ".join(line.split())) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UsageError(f"--prompts {path} holds no prompt: write one a line")
    return found


def draw_prompts(
    run_dir: Path, prompts_path: Path, step: int | None, out: Path | None, manner: Manner, places: ModelPlaces
) -> dict[str, Any]:
    """Draw every prompt with every seed, and what was written as plain JSON values (as in prompts.json).

    The folder is `out`, or else one in the validation of the step whose name follows from what is asked. Raises
    UsageError for a run, checkpoint, file or folder that cannot be used, DataError for an encoder that is not here.
    """
    cap_threads()
    run, prompts = trained_run(run_dir, step), read_prompts(prompts_path)
    folder = _own_folder(run, prompts_path, prompts, manner) if out is None else _empty_folder(out)
    asked = conditions_of(run, [Question(prompt.text, bucket=manner.bucket) for prompt in prompts], places)
    painter = Painter(run, manner.weights, manner.sampler)
    shown: list[list[Tensor]] = []
    for prompt, one in zip(prompts, asked, strict=True):
        drawn = [painter.draw(one, seed).cpu() for seed in range(manner.seeds)]
        write_images(folder, _names(prompt, manner), drawn, [prompt.text] * manner.seeds)
        shown += [drawn] if len(shown) < SHEET_ROWS else []
    content = _described(run, prompts, asked, manner, painter.guidance.kind)
    save_sheet(
        folder / SHEET_FILE, contact_sheet(_title(run, content, len(shown)), _columns(manner), _rows(prompts, shown))
    )
    _write_json(folder / INDEX_FILE, content)
    return {"folder": str(folder), **content}


def _own_folder(run: TrainedRun, path: Path, prompts: Sequence[Prompt], manner: Manner) -> Path:
    """The same for the same question, so that asking twice writes the same files, and no others are written over."""
    asked = [
        [(prompt.line, prompt.text) for prompt in prompts],
        manner.weights,
        manner.sampler,
        manner.seeds,
        manner.bucket,
    ]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    return run.run_dir / "validation" / f"step_{run.step:06d}" / "prompts" / f"{path.stem}-{digest}"


def _empty_folder(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} holds something already: name a new or an empty folder")
    return out


def _names(prompt: Prompt, manner: Manner) -> list[str]:
    return [f"{prompt.line:04d}_seed{seed}" for seed in range(manner.seeds)]


def _described(
    run: TrainedRun, prompts: Sequence[Prompt], asked: Sequence[Asked], manner: Manner, guidance: str
) -> dict[str, Any]:
    common = [note for note in asked[0].notes if all(note in one.notes for one in asked)]
    notes = common if was_trained(("text",), run.config) else [*common, "training never saw words alone"]
    return {
        "run": run.document.run,
        "step": run.step,
        "weights": manner.weights,
        "sampler": manner.sampler,
        "guidance": guidance,
        "seeds": list(range(manner.seeds)),
        "size": list(asked[0].size),
        "recipes": {} if run.record is None else dict(run.record.recipes),
        "notes": notes,
        "prompts": [
            {
                "line": prompt.line,
                "prompt": prompt.text,
                "files": [f"{name}.png" for name in _names(prompt, manner)],
                "notes": [note for note in one.notes if note not in common],
            }
            for prompt, one in zip(prompts, asked, strict=True)
        ],
    }


def _title(run: TrainedRun, content: dict[str, Any], rows: int) -> str:
    total = len(content["prompts"])
    cut = "" if rows == total else f", the first {rows} of {total} prompts"
    head = f"{run.document.run}, step {run.step}, {content['weights']} weights, {content['guidance']}{cut}"
    return "\n".join([head, *content["notes"]])


def _columns(manner: Manner) -> list[str]:
    return [f"seed {seed}" for seed in range(manner.seeds)]


def _rows(prompts: Sequence[Prompt], shown: Sequence[Sequence[Tensor]]) -> list[Row]:
    return [Row(drawn, prompt.text) for prompt, drawn in zip(prompts, shown, strict=False)]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(path)

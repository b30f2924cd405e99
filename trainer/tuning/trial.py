"""The process that measures one candidate: `python -m trainer.tuning.trial`, a request as one line of JSON on stdin.

It opens a session as `train` does and makes steps as `train` does (`trainer.train.advance`: loading, micro-batches,
recomputation, update, averages, metrics), so there is nothing here that could be built otherwise than in a run. What it
finds goes to the file `answer` of the request, one JSON object a line: `refused` (an error
that concerns every candidate), or `opened` and then `measured`, `impossible` (this machine lacks what the candidate
needs) or `over` (more memory than the limit). It dies when its stdin is closed.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from trainer.acceleration.network import described
from trainer.config import TrainerConfig
from trainer.control import Control, StopRequest
from trainer.data import open_source
from trainer.data.sample import Source
from trainer.device import cap_threads, choose_device, keep_freed_memory
from trainer.document import Document
from trainer.errors import EXIT_DONE, ConfigError, DataError
from trainer.precision.means import require_means
from trainer.session import Session, open_session
from trainer.telemetry import Telemetry
from trainer.train import advance
from trainer.tuning.memory import MIB, available_mib, cap, peak_mib
from trainer.tuning.noise import NoiseData
from trainer.tuning.plan import SLOW
from trainer.tuning.request import HEADROOM, LEAST_STEPS, MOST_STEPS, REHEARSED_STEPS, Request

_LOOK_EVERY_S = 0.05
_STDIN = 0


def main() -> int:
    """Measure what stdin asks for. Errors that concern every candidate are answers, others are crashes."""
    request = Request(**json.loads(sys.stdin.readline()))
    config = TrainerConfig.model_validate_json(request.config)
    cap_threads()
    try:
        device = choose_device(config)
        source = NoiseData(config) if request.synthetic else open_source(config, request.seed)
    except (ConfigError, DataError) as error:
        _answer(request, "refused", exit_code=error.exit_code, message=str(error))
        return EXIT_DONE
    if device.type == "cpu":
        keep_freed_memory()
    limit_mib = HEADROOM * available_mib(device) if request.limit_mib is None else request.limit_mib
    _answer(
        request, "opened", device=str(device), name=_name(device), limit_mib=limit_mib, images=len(source.train_ids)
    )
    cap(device, limit_mib)
    _watch(request, limit_mib if device.type == "cpu" else float("inf"))
    try:
        require_means(config, device)
    except ConfigError as error:
        _answer(request, "impossible", message=str(error))
        return EXIT_DONE
    _answer(request, "measured", **_measured(request, Document(config, request.seed, request.run), source, device))
    return EXIT_DONE


def _measured(request: Request, document: Document, source: Source, device: torch.device) -> dict[str, Any]:
    """Open a session, make the steps, and say how long they took, with the largest images of the run from the first."""
    config = document.config.at_size(document.config.data.size)
    document = Document(config, document.seed, document.run)
    run_dir = Path(request.run_dir)
    with Telemetry(run_dir / f"attempt-{request.attempt}") as telemetry:
        control = Control(run_dir, request.attempt)
        session = open_session(document, run_dir, source, device, telemetry, control, StopRequest())
        with session.batches:
            facts = _steps(request, session)
            computing = described(session.learner.modules, document.config, source.streams)
            return {**facts, "peak_mib": peak_mib(device), "recomputed_blocks": len(computing["recomputed_blocks"])}


def _steps(request: Request, session: Session) -> dict[str, Any]:
    """Warm up, time steps, and make one step of each kind that takes more memory, which counts too.

    Compiled blocks rehearse the steps that are timed: every shape that comes up in them has been compiled then.
    """
    steps = session.config.steps
    first = min(request.warm_up, steps - 1)
    losses = [_step(session, step)[1] for step in range(first)]
    is_compiled = session.config.compile.enabled
    most = min(request.steps or (REHEARSED_STEPS if is_compiled else MOST_STEPS), steps - first)
    if is_compiled:
        losses += [_step(session, step)[1] for step in range(first, first + most)]
    step_s: list[float] = []
    data_s = 0.0
    while len(step_s) < most and not _is_enough(request, step_s):
        seconds, loss, waited_s = _step(session, first + len(step_s))
        step_s.append(seconds)
        losses += [] if is_compiled else [loss]
        data_s += waited_s
    for step in _larger_steps(session.config, first):
        _step(session, step)
    return {"step_s": step_s, "losses": losses, "data_share": data_s / max(sum(step_s), 1e-9)}


def _larger_steps(config: TrainerConfig, first: int) -> list[int]:
    """Steps that may take more memory than those that are timed: dense ones at the end, and images of other sizes."""
    last = config.steps - 1
    ends = [*(end - 1 for end, _ in config.stages), last]
    others = {end for end in ends if config.size_at(end) != config.size_at(first)}
    return sorted(others | ({last} if 0 < config.routed_steps < config.steps else set()))


def _is_enough(request: Request, step_s: list[float]) -> bool:
    if len(step_s) < LEAST_STEPS:
        return False
    if request.best_s is not None and min(step_s) > SLOW * request.best_s:
        return True
    return request.steps is None and sum(step_s) >= request.seconds


def _step(session: Session, step: int) -> tuple[float, float, float]:
    """Make one optimizer step to its very end: seconds, total loss, seconds of waiting for data."""
    device = session.learner.device
    _finish(device)
    started = time.perf_counter()
    result = advance(session, step)
    _finish(device)
    seconds = time.perf_counter() - started
    assert result is not None, "nobody asks a trial to stop"
    return seconds, float(result.losses_L[0]), result.data_s


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _answer(request: Request, what: str, **facts: Any) -> None:
    """Add one line to the answer."""
    with Path(request.answer).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"what": what, **facts}) + "\n")


def _watch(request: Request, limit_mib: float) -> None:
    """End this process when it takes more main memory than the limit, or when whoever asked is gone."""

    def look() -> None:
        process = psutil.Process()
        while not select.select([_STDIN], [], [], _LOOK_EVERY_S)[0] or os.read(_STDIN, 1):
            taken_mib = process.memory_info().rss / MIB
            if taken_mib > limit_mib:
                _answer(request, "over", taken_mib=taken_mib)
                break
        os._exit(EXIT_DONE)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

"""One attempt at work: everything that the training loop touches, and how it introduces itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainer import checkpoint, rules, size
from trainer.acceleration.network import described
from trainer.config import TrainerConfig
from trainer.control import Control, StopRequest
from trainer.data.batches import Batches, open_batches
from trainer.data.reader import buckets_of
from trainer.data.sample import Source
from trainer.data.set_record import SetRecord, set_record
from trainer.device import gpu_uuids, surroundings
from trainer.distributed import sharding
from trainer.distributed.team import Team
from trainer.document import Document
from trainer.evaluate.probe import Probe
from trainer.evaluate.suite import Validation
from trainer.meter import Meter
from trainer.objective.basis import basis_of_run
from trainer.scores import Scores
from trainer.step import Learner
from trainer.telemetry import Telemetry
from trainer.utilization import peak_of_run


@dataclass
class Session:
    """The parts of one attempt. Only `learner` learns; `meter`, `scores` and `telemetry` remember and report.

    `encoding` is what stored features were made with, None where there are none. `probe_every_steps` is the cadence of
    probes that control.json asks for, None when it asks for none.
    """

    document: Document
    run_dir: Path
    source: Source
    learner: Learner
    batches: Batches
    validation: Validation
    probe: Probe
    scores: Scores
    meter: Meter
    telemetry: Telemetry
    control: Control
    stop: StopRequest
    encoding: SetRecord | None = None
    probe_every_steps: int | None = None

    @property
    def config(self) -> TrainerConfig:
        """The trainer block."""
        return self.document.config


def open_session(
    document: Document,
    run_dir: Path,
    source: Source,
    device: torch.device,
    telemetry: Telemetry,
    control: Control,
    stop: StopRequest,
    team: Team | None = None,
) -> Session:
    """Build the model and everything around it for one attempt."""
    config = document.config
    learner = Learner(config, source.streams, document.seed, device, basis_of_run(config, source, run_dir), team)
    batches = open_batches(config, source, document.seed)
    batches.read_ahead(learner.plan, config.steps, config.data.worker_processes, device.type == "cuda")
    return Session(
        document=document,
        run_dir=run_dir,
        source=source,
        learner=learner,
        batches=batches,
        validation=Validation(config, source, device, document.run, run_dir),
        probe=Probe(document, source, device, run_dir),
        scores=Scores(run_dir, config),
        meter=Meter(config, device, learner.loss_names, peak_of_run(config, device, learner.team.size)),
        telemetry=telemetry,
        control=control,
        stop=stop,
        encoding=set_record(config),
    )


def stored_modules(learner: Learner) -> dict[str, nn.Module]:
    """What a checkpoint stores of a learner, by file stem: model, averages, and the alignment projector if any."""
    averages = {checkpoint.ema_name(half_life): model for half_life, model in learner.ema.models.items()}
    projector = {"projector": learner.modules["repa"]} if "repa" in learner.modules else {}
    return {"model": learner.model, **averages, **projector}


def announce(session: Session, attempt: int) -> None:
    """The first line of the attempt: what it runs on and what it trains."""
    config, learner = session.config, session.learner
    print(learner.optimizer.table(), flush=True)
    computing = described(learner.modules, config, session.source.streams)
    for line in computing["fp8_plan"]:
        print(line, flush=True)
    session.telemetry.event(
        0,
        "started",
        attempt=attempt,
        device=str(learner.device),
        gpu_uuids=gpu_uuids(),
        torch=torch.__version__,
        **surroundings(),
        threads=torch.get_num_threads(),
        processes=learner.team.size,
        strategy=sharding.strategy(learner),
        parameters=sum(parameter.numel() for parameter in learner.modules.parameters()),
        flops_per_sample=size.flops_per_sample(config, session.source.streams),
        optimizer_groups=learner.optimizer.groups._asdict(),
        train_images=len(session.source.train_ids),
        held_out_images=len(session.source.held_out_ids),
        data={"path": config.data.path, "index": config.data.index},
        probe_images=len(session.probe.ids),
        epochs=round(config.steps * config.samples_per_step / len(session.source.train_ids), 3),
        kept_tokens=config.kept_tokens if config.routed_steps else config.tokens,
        tokens=config.tokens,
        **computing,
        buckets={bucket.name: len(bucket.ids) for bucket in buckets_of(session.source) if bucket.name},
        notes=[
            *session.source.notes,
            *(() if session.encoding is None else session.encoding.notes),
            *rules.notes(config),
            *(note for each in learner.auxiliaries for note in each.notes),
        ],
        rejected=[list(entry) for entry in session.source.rejected[:20]],
        rejected_total=len(session.source.rejected),
    )

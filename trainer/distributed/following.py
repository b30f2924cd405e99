"""What a process does that is not the leader: build the same learner, take over the leader's state, obey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.control import StopRequest
from trainer.data import open_source
from trainer.data.batches import Batches, open_batches
from trainer.data.sample import Source
from trainer.distributed import sharding
from trainer.distributed.sending import receive, send
from trainer.distributed.team import END, STEP, Processes
from trainer.document import Document
from trainer.objective.basis import basis_of_run
from trainer.step import Learner

BEGIN = "begin"


def share_beginning(learner: Learner) -> None:
    """The leader has filled its learner with what the first step starts from: the others get the same."""
    team = learner.team
    if not isinstance(team, Processes):
        return
    team.order(BEGIN)
    for rank in range(1, team.size):
        send(_state(learner), rank)
    sharding.shard_if_large(learner)


def follow(document: Document, run_dir: Path, team: Processes, stop: StopRequest) -> int:
    """Train under the leader until it says that this is over; returns the exit code, which is the leader's."""
    require_order(team, BEGIN)  # data and basis are prepared by one process only
    source = open_source(document.config, document.seed)
    basis_FR = basis_of_run(document.config, source, run_dir)
    learner = Learner(document.config, source.streams, document.seed, team.device, basis_FR, team)
    _fill(learner, receive(0, team.device))
    sharding.shard_if_large(learner)
    with batches_of(learner, source) as batches:
        while (order := team.next_order())["do"] != END:
            if order["do"] == STEP:
                learner.step(batches, order["step"], stop)
            else:
                learner.whole()
    return int(order["code"])


def require_order(team: Processes, what: str) -> None:
    """Wait for the next order, which can only be this one."""
    order = team.next_order()
    assert order["do"] == what, f"the leader says {order['do']} where it should say {what}"


def batches_of(learner: Learner, source: Source) -> Batches:
    """The samples of this process's micro-batches, read ahead if the configuration says so."""
    config = learner.config
    batches = open_batches(config, source, learner.run_seed)
    is_cuda = learner.device.type == "cuda"
    batches.read_ahead(learner.plan, config.steps, config.data.worker_processes, is_cuda)
    return batches


def _state(learner: Learner) -> dict[str, Any]:
    """All that the next steps depend on. Averages are the leader's alone unless they are divided later."""
    averages = {str(half_life): model.state_dict() for half_life, model in learner.ema.models.items()}
    return {
        "modules": learner.modules.state_dict(),
        "averages": averages if sharding.is_large(learner) else {},
        "optimizer": learner.optimizer.state_dict(),
        "scaling": learner.scaling.state_dict(),
        "recorder": learner.recorder.state_dict(),
        "auxiliaries": {auxiliary.name: auxiliary.state_dict() for auxiliary in learner.auxiliaries},
    }


def _fill(learner: Learner, state: dict[str, Any]) -> None:
    learner.modules.load_state_dict(state["modules"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scaling.load_state_dict(state["scaling"])
    learner.recorder.load_state_dict(state["recorder"])
    for auxiliary in learner.auxiliaries:
        auxiliary.load_state_dict(state["auxiliaries"][auxiliary.name])
    if not state["averages"]:
        learner.ema.models.clear()
    for half_life, model in learner.ema.models.items():
        model.load_state_dict(state["averages"][str(half_life)])

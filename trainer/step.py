"""One optimizer step: draw, predict, compare, accumulate, move the weights.

Nothing inside the loop over micro-batches waits for the device. Every loss over some of the samples is their sum
divided by their number in the whole optimizer step, which is known beforehand because draws are counter-based; so
splitting a step into micro-batches changes neither draws nor weights of samples.

Shapes: E samples of the effective batch, B samples of a micro-batch, S covered ones among them, C channels,
H x W pixels, L losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainer.acceleration.network import training_network
from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.sample import Batch, StreamShapes, to_unit_range
from trainer.distributed import sharding
from trainer.distributed.gradients import exchange_for
from trainer.distributed.observations import share_observations
from trainer.distributed.team import Team
from trainer.indicators.reading import Reading
from trainer.indicators.recorder import Measurement, Recorder
from trainer.model.conditioning import is_long
from trainer.model.nanodit import Output, build
from trainer.model.tread import Route
from trainer.objective.auxiliaries import build_auxiliaries
from trainer.objective.auxiliary import Auxiliary, MicroBatch
from trainer.objective.draws import Draws, StepDraws, draw_present
from trainer.objective.dropout import kept_streams
from trainer.objective.flow import Noisy, corrupt, velocity
from trainer.objective.prediction import build_objective
from trainer.objective.segmentation import build_pixel_weights
from trainer.objective.timesteps import BINS, bin_of
from trainer.optim.ema import Ema
from trainer.optim.optimizers import Optimizers
from trainer.optim.schedule import learning_rate
from trainer.precision.autocast import computing_in
from trainer.precision.means import require_means
from trainer.precision.scaling import LossScaling
from trainer.utilization import step_flops


class StepResult(NamedTuple):
    """What one optimizer step reports. Tensors stay on the device.

    `losses_L` follows `Learner.loss_names`, and `counts` says of each what its mean over steps is a mean of: 1 or 0
    steps, or samples. `weights` holds the weight of every auxiliary loss by name, `extra` metrics by full name.
    `data_s` is the time spent waiting for data, `flops` what the model computed, in all processes. `reading` holds the
    indicators if they were due. `grad_norm` is None where loss scaling skipped the update.
    """

    losses_L: Tensor
    counts: tuple[int, ...]
    grad_norm: Tensor | None
    lr: float
    weights: dict[str, float]
    extra: dict[str, float]
    active_tokens: float
    data_s: float
    reading: Reading | None
    flops: float = 0.0


class Cover(NamedTuple):
    """An auxiliary loss in one optimizer step: its weight, whom of the effective batch it covers, and how many."""

    loss: Auxiliary
    weight: float
    covered_E: Tensor
    covered_count: int


class MicroLosses(NamedTuple):
    """Losses of one micro-batch, already divided by the numbers of the whole optimizer step.

    `auxiliary` holds (weight, loss), the loss None where no sample is covered; `rest` is only reported.
    """

    flow: Tensor
    auxiliary: tuple[tuple[float, Tensor | None], ...]
    rest: Tensor


class Learner:
    """Everything that learns: model, auxiliary losses, optimizer, averages."""

    def __init__(
        self,
        config: TrainerConfig,
        streams: StreamShapes,
        run_seed: int,
        device: torch.device,
        basis_FR: Tensor | None = None,
        team: Team | None = None,
    ) -> None:
        self.config = config
        self.team = Team(device) if team is None else team
        self.run_seed = run_seed
        self.device = device
        self.streams = streams
        self.objective = build_objective(config, basis_FR)
        require_means(config, device)
        model = build(config.model, streams, run_seed, device, self.objective, config.streams.pooled)
        self.model = computing_in(model, config.precision)
        self.network: Callable[..., Output] = training_network(self.model, config, streams)
        self.modules = nn.ModuleDict({"model": self.model})
        self.pixel_weights = build_pixel_weights(config, device)
        self.auxiliaries = build_auxiliaries(config, streams, run_seed, device)
        for auxiliary in self.auxiliaries:
            if auxiliary.projector is not None:
                self.modules[auxiliary.name] = auxiliary.projector
        self.loss_names = (
            *("loss", "flow_loss", *(f"{auxiliary.name}_loss" for auxiliary in self.auxiliaries)),
            *("velocity_square", *(f"flow_loss_t{centre:g}" for centre in BINS)),
        )
        self.optimizer = Optimizers(config.optimizer, self.modules)
        self.ema = Ema(config.ema, self.model, config.steps)
        self.set_parameters()
        self.exchange = exchange_for(self.team, self._parameters)
        self.recorder = Recorder(config, self.modules, self.optimizer, self.exchange)
        self.scaling = LossScaling(config.precision, device, self._parameters)
        self._flops = cache(partial(step_flops, config, streams, kept_streams()))

    def step(self, batches: Batches, step: int, stop: StopRequest) -> StepResult | None:
        """Make the update that follows `step` finished steps. None, and no trace, if a stop was asked for meanwhile."""
        self.team.begin_step(step)
        draws = StepDraws(self.config, self.run_seed, step)
        covers = [cover for each in self.auxiliaries if (cover := _cover(each, step, draws)).covered_count]
        losses_L = torch.zeros(len(self.loss_names), device=self.device)
        data_s, tokens = 0.0, 0
        measurement = self.recorder.begin(step + 1)
        starts = self.team.starts(self.config)
        for start, positions in zip(starts, self._micro_batches(draws.present), strict=True):
            if self.team.agrees_to_stop(stop):
                self.optimizer.clear()
                return None
            before = time.perf_counter()
            batch = batches.batch(step, positions)
            data_s += time.perf_counter() - before
            height, width = batch.pixels_BCHW.shape[2:]
            tokens = math.prod(self.config.grid_of(height, width))  # all batches of a step have the shape of one bucket
            losses = self._losses(
                batch, draws.of(positions, (height, width), batch.noise_BCHW), covers, step, positions
            )
            if start == starts[-1]:
                self.exchange.expect_last()
            losses_L += _backward(losses, self.scaling)
            if measurement is not None:
                measurement.micro_batch_done(start // self.config.batch, self.scaling)
        grad_norm, lr, reading = self._update(step, measurement)
        losses_L = self.team.add_up(losses_L)
        share_observations(self.team, covers, step, self.config.batch)
        weights = {cover.loss.name: cover.weight for cover in covers}
        learned_from = covers if grad_norm is not None else []
        extra = {name: value for cover in learned_from for name, value in cover.loss.updated(step).items()}
        extra.update(self.scaling.metrics())
        counts = self._counts(covers, draws)
        active = self.active_tokens(step, tokens)
        flops = self._flops(self.config.size_at(step), step < self.config.routed_steps)
        return StepResult(losses_L, counts, grad_norm, lr, weights, extra, active, data_s, reading, flops)

    def plan(self, step: int) -> list[list[int]]:
        """Positions of the micro-batches of a step in the order in which `step` asks for their samples."""
        return list(self._micro_batches(draw_present(self.config, self.run_seed, step)))

    def set_parameters(self) -> None:
        """Remember the parameters of `modules`."""
        self._parameters = list(self.modules.parameters())

    def whole(self) -> Learner:
        """This learner with all weights and all state in the leader's hands, to be stored or evaluated there."""
        return sharding.whole(self)

    def is_finite(self) -> bool:
        """Whether all weights and their averages are finite numbers."""
        tensors = [*self._parameters, *(part for model in self.ema.models.values() for part in model.parameters())]
        return bool(torch.isfinite(get_total_norm(tensors)))

    def active_tokens(self, step: int, tokens: int) -> float:
        """Of so many image tokens per sample the mean per block in the update that follows `step` finished steps."""
        if step >= self.config.routed_steps:
            return float(tokens)
        first, last = self.config.routed_blocks
        share = (last - first + 1) / self.config.model.block_count
        return share * self.config.kept_of(tokens) + (1.0 - share) * tokens

    def _counts(self, covers: list[Cover], draws: StepDraws) -> tuple[int, ...]:
        """`StepResult.counts`."""
        covered = {cover.loss.name for cover in covers}
        auxiliary = (int(each.name in covered) for each in self.auxiliaries)
        return (1, 1, *auxiliary, 1, *bin_of(draws.t_E).bincount(minlength=len(BINS)).tolist())

    def _micro_batches(self, present: Mapping[str, Tensor]) -> Iterator[list[int]]:
        """Positions of the effective batch, one list per micro-batch of this process.

        Long sequences come first, and equal sets of conditions stand together, which spares the model the sorting;
        nothing depends on the order in a micro-batch.
        """
        kept = torch.stack([present[name] for name in ("patches", "pose", "text", "cls")]).int()
        order = (is_long(present).int() * 16 + torch.tensor([8, 4, 2, 1], dtype=torch.int) @ kept).tolist()
        for start in self.team.starts(self.config):
            yield sorted(range(start, start + self.config.batch), key=order.__getitem__, reverse=True)

    def _losses(self, batch: Batch, draws: Draws, covers: list[Cover], step: int, positions: list[int]) -> MicroLosses:
        micro = self._forward(batch, draws, covers)
        samples = self.config.samples_per_step
        flow_B = self.objective.loss(micro.output, micro.noisy, self._weight_of_pixels(batch))
        flow = flow_B.sum() / samples
        by_name = {}
        for cover in covers:
            covered_S = cover.covered_E[positions].nonzero()[:, 0]
            if len(covered_S):
                own = cover.loss.loss(micro, covered_S) / cover.covered_count
                by_name[cover.loss.name] = cover.weight, own
                cover.loss.watch(step, self.scaling.scaled(flow), self.scaling.scaled(own), micro)
        auxiliary = tuple(by_name.get(each.name, (0.0, None)) for each in self.auxiliaries)
        return MicroLosses(flow, auxiliary, self._rest(micro, flow_B.detach()))

    def _weight_of_pixels(self, batch: Batch) -> Tensor | None:
        """(B, 1, H, W); None where every pixel counts alike."""
        if self.pixel_weights is None:
            return None
        assert batch.parts_BHW is not None, "the source was not asked for part maps"
        return self.pixel_weights(batch.parts_BHW)

    @torch.no_grad()
    def _rest(self, micro: MicroBatch, flow_B: Tensor) -> Tensor:
        """What is only reported: mean squared velocity, and sums of the flow loss by time."""
        noisy = micro.noisy
        square = velocity(noisy.z_BCHW, micro.output.x_BCHW, noisy.t_B).square().mean() / self.config.accumulation
        # A product with the bins: unlike index_add it comes out alike every time on a GPU.
        is_in_KB = bin_of(noisy.t_B) == torch.arange(len(BINS), device=self.device)[:, None]
        return torch.cat([square[None], is_in_KB.to(flow_B.dtype) @ flow_B])

    def _forward(self, batch: Batch, draws: Draws, covers: list[Cover]) -> MicroBatch:
        x_BCHW = to_unit_range(batch.pixels_BCHW.to(self.device, non_blocking=True))
        conditions = batch.conditions.to(self.device)
        t_B, noise_BCHW = (draw.to(self.device, non_blocking=True) for draw in (draws.t_B, draws.noise_BCHW))
        scale = self.config.objective.noise_scale
        noisy = Noisy(x_BCHW, noise_BCHW, t_B, corrupt(x_BCHW, noise_BCHW, t_B, scale), scale)
        route = None if draws.keep_BK is None else Route(draws.keep_BK.to(self.device), *self.config.routed_blocks)
        tap = next((cover.loss.tap for cover in covers if cover.loss.tap is not None), None)
        output = self.network(noisy.z_BCHW, t_B, conditions, draws.present, route, tap)
        return MicroBatch(batch, noisy, route, output)

    def _update(self, step: int, measurement: Measurement | None) -> tuple[Tensor | None, float, Reading | None]:
        """Move weights and averages by the accumulated gradients: gradient norm, learning rate, indicators if due."""
        self.exchange.gradients_done()
        self.scaling.unscale()
        if measurement is not None:
            measurement.gradients_done()
        clip = self.config.optimizer.clip
        grad_norm = self.exchange.grad_norm(self._parameters)
        lr = learning_rate(self.config.optimizer, step + 1, self.config.steps)
        if not self.scaling.accepts():
            self.optimizer.clear()
            self.ema.update(self.model, step + 1)
            return None, lr, None
        if clip is not None:
            clip_grads_with_norm_(self._parameters, clip, grad_norm)
        if measurement is not None:
            measurement.before_update(lr)
        self.optimizer.step(lr)
        reading = None if measurement is None else measurement.finish()
        self.ema.update(self.model, step + 1)
        self.exchange.updated()
        return grad_norm, lr, reading


def _cover(loss: Auxiliary, step: int, draws: StepDraws) -> Cover:
    """What an auxiliary loss has to do with the update that follows `step` finished steps; nothing at weight 0."""
    weight = loss.weight(step)
    covered_E = loss.covers(draws.t_E, draws.present) if weight else torch.zeros_like(draws.t_E, dtype=torch.bool)
    return Cover(loss, weight, covered_E, int(covered_E.sum()))


def _backward(micro: MicroLosses, scaling: LossScaling) -> Tensor:
    """Add the gradients of one micro-batch; returns its share of `StepResult.losses_L`."""
    total = micro.flow
    for weight, loss in micro.auxiliary:
        total = total if loss is None else total + weight * loss
    scaling.scaled(total).backward()
    auxiliary = [micro.flow.new_zeros(()) if loss is None else loss for _, loss in micro.auxiliary]
    return torch.cat([torch.stack([total, micro.flow, *auxiliary]).detach(), micro.rest])

"""One optimizer step: draw, predict, compare, accumulate, move the weights.

Nothing inside the loop over micro-batches waits for the device. Every loss over some of the samples is their sum
divided by their number in the whole optimizer step, which is known beforehand because draws are counter-based; so
splitting a step into micro-batches changes neither draws nor weights of samples.

Shapes: B samples of a micro-batch, S aligned ones among them, C channels, H x W pixels, N image tokens, K kept tokens,
D channels, F teacher features.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.sample import Batch, StreamShapes, to_unit_range
from trainer.indicators.reading import Reading
from trainer.indicators.recorder import Measurement, Recorder
from trainer.model.conditioning import is_long
from trainer.model.nanodit import Output, build
from trainer.model.tread import Route
from trainer.objective import repa
from trainer.objective.draws import Draws, draw
from trainer.objective.dropout import draw_categories, present_streams
from trainer.objective.flow import corrupt, velocity, x_prediction_loss
from trainer.optim.ema import Ema
from trainer.optim.optimizers import Optimizers
from trainer.optim.schedule import learning_rate


class StepResult(NamedTuple):
    """What one optimizer step reports. Tensors stay on the device.

    `losses` holds total loss, flow loss, alignment loss (0 if no sample was aligned) and mean squared velocity.
    `aligned` counts 1 if any sample was aligned, else 0. `data_s` is the time spent waiting for data. `reading` holds
    the indicators if they were due.
    """

    losses: Tensor
    grad_norm: Tensor
    lr: float
    aligned: int
    repa_weight: float
    repa_cosine: float | None
    active_tokens: float
    data_s: float
    reading: Reading | None


class Alignment(NamedTuple):
    """Alignment in one optimizer step: its weight, how many samples it covers, whether to compare gradients."""

    weight: float
    samples: int
    probe: bool


class MicroLosses(NamedTuple):
    """Losses of one micro-batch, already divided by the numbers of the whole optimizer step, and S."""

    flow: Tensor
    repa: Tensor | None
    velocity_square: Tensor
    hidden_BND: Tensor | None


class Learner:
    """Everything that learns: model, alignment projector, optimizer, averages; and the alignment schedule."""

    def __init__(self, config: TrainerConfig, streams: StreamShapes, run_seed: int, device: torch.device) -> None:
        self.config = config
        self.run_seed = run_seed
        self.device = device
        self.model = build(config.model, streams, run_seed, device)
        self.modules = nn.ModuleDict({"model": self.model})
        if config.repa.enabled:
            self.modules["repa"] = repa.build_projector(config, streams.patch_width, run_seed, device)
        self.repa = repa.RepaSchedule(config)
        self.optimizer = Optimizers(config.optimizer, self.modules)
        self.ema = Ema(config.ema, self.model, config.steps)
        self.recorder = Recorder(config, self.modules, self.optimizer)
        self._parameters = list(self.modules.parameters())

    def step(self, batches: Batches, step: int, stop: StopRequest) -> StepResult | None:
        """Make the update that follows `step` finished steps. None, and no trace, if a stop was asked for meanwhile."""
        present = present_streams(draw_categories(self.run_seed, step, range(self.config.samples_per_step)))
        alignment = self._alignment(step, present)
        losses = torch.zeros(4, device=self.device)
        cosine, data_s = None, 0.0
        measurement = self.recorder.begin(step + 1)
        for index, positions in enumerate(self._micro_batches(present)):
            if stop:
                self.optimizer.clear()
                return None
            before = time.perf_counter()
            batch = batches.batch(step, positions)
            data_s += time.perf_counter() - before
            micro = self._losses(batch, draw(self.config, self.run_seed, step, positions), alignment)
            if alignment.probe and cosine is None and micro.repa is not None:
                cosine = repa.gradient_cosine(micro.flow, micro.repa, micro.hidden_BND)
            losses += _backward(micro, alignment.weight)
            if measurement is not None:
                measurement.micro_batch_done(index)
        grad_norm, lr, reading = self._update(step, measurement)
        if cosine is not None:
            self.repa.observe(cosine)
        aligned, active = int(alignment.samples > 0), self.active_tokens(step)
        return StepResult(losses, grad_norm, lr, aligned, alignment.weight, cosine, active, data_s, reading)

    def is_finite(self) -> bool:
        """Whether all weights and their averages are finite numbers."""
        tensors = [*self._parameters, *(part for model in self.ema.models.values() for part in model.parameters())]
        return bool(torch.isfinite(get_total_norm(tensors)))

    def active_tokens(self, step: int) -> float:
        """Mean image tokens per block and sample in the update that follows `step` finished steps."""
        if step >= self.config.routed_steps:
            return float(self.config.tokens)
        first, last = self.config.routed_blocks
        share = (last - first + 1) / self.config.model.depth
        return share * self.config.kept_tokens + (1.0 - share) * self.config.tokens

    def _micro_batches(self, present: Mapping[str, Tensor]) -> Iterator[list[int]]:
        """Positions of the effective batch, one list per micro-batch.

        Long sequences come first, which spares the model the sorting; nothing depends on the order in a micro-batch.
        """
        short = (~is_long(present)).tolist()
        for start in range(0, self.config.samples_per_step, self.config.batch):
            yield sorted(range(start, start + self.config.batch), key=short.__getitem__)

    def _alignment(self, step: int, present: Mapping[str, Tensor]) -> Alignment:
        weight = self.repa.weight(step)
        if weight == 0:
            return Alignment(0.0, 0, False)
        is_all = self.config.repa.samples == "all"
        samples = self.config.samples_per_step if is_all else int((~present["patches"]).sum())
        return Alignment(weight, samples, self.repa.wants_probe(step))

    def _losses(self, batch: Batch, draws: Draws, alignment: Alignment) -> MicroLosses:
        x_BCHW = to_unit_range(batch.pixels_BCHW.to(self.device, non_blocking=True))
        conditions = batch.conditions.to(self.device)
        t_B = draws.t_B.to(self.device)
        z_BCHW = corrupt(x_BCHW, draws.noise_BCHW.to(self.device), t_B, self.config.objective.noise_scale)
        route = self._route(draws)
        tap = self.config.repa_block if alignment.samples else None
        output = self.model(z_BCHW, t_B, conditions, draws.present, route, tap)
        flow = x_prediction_loss(output.x_BCHW, x_BCHW, t_B).sum() / self.config.samples_per_step
        with torch.no_grad():
            v_BCHW = velocity(z_BCHW, output.x_BCHW, t_B)
            velocity_square = v_BCHW.square().mean() / self.config.accumulation
        aligned_S = self._aligned(draws) if alignment.samples else draws.t_B.new_zeros(0, dtype=torch.long)
        if not len(aligned_S):
            return MicroLosses(flow, None, velocity_square, None)
        loss = self._alignment_loss(output, batch, route, aligned_S) / alignment.samples
        return MicroLosses(flow, loss, velocity_square, output.hidden_BND)

    def _route(self, draws: Draws) -> Route | None:
        return None if draws.keep_BK is None else Route(draws.keep_BK.to(self.device), *self.config.routed_blocks)

    def _aligned(self, draws: Draws) -> Tensor:
        """Indices of the samples of a micro-batch that are aligned, on the CPU: (S,)."""
        if self.config.repa.samples == "all":
            return torch.arange(len(draws.t_B))
        return (~draws.present["patches"]).nonzero()[:, 0]

    def _alignment_loss(self, output: Output, batch: Batch, route: Route | None, aligned_S: Tensor) -> Tensor:
        """Sum over the aligned samples of a micro-batch."""
        chosen = batch.conditions.select(aligned_S).to(self.device)
        index_S = aligned_S.to(self.device)
        side = self.config.data.size // self.config.model.patch
        teacher_SNF = repa.resample_teacher(chosen.patches_BPD, chosen.patch_grid, (side, side))
        projected = self.modules["repa"](output.hidden_BND[index_S])
        first, last = self.config.routed_blocks
        is_routed = route is not None and first <= self.config.repa_block <= last
        return repa.alignment_loss(projected, teacher_SNF, route.keep_BK[index_S] if is_routed else None).sum()

    def _update(self, step: int, measurement: Measurement | None) -> tuple[Tensor, float, Reading | None]:
        """Move weights and averages by the accumulated gradients: gradient norm, learning rate, indicators if due."""
        if measurement is not None:
            measurement.gradients_done()
        clip = self.config.optimizer.clip
        grad_norm = get_total_norm([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        if clip is not None:
            clip_grads_with_norm_(self._parameters, clip, grad_norm)
        lr = learning_rate(self.config.optimizer, step + 1, self.config.steps)
        if measurement is not None:
            measurement.before_update(lr)
        self.optimizer.step(lr)
        reading = None if measurement is None else measurement.finish()
        self.ema.update(self.model, step + 1)
        return grad_norm, lr, reading


def _backward(micro: MicroLosses, weight: float) -> Tensor:
    """Add the gradients of one micro-batch; returns its share of `StepResult.losses`."""
    total = micro.flow if micro.repa is None else micro.flow + weight * micro.repa
    total.backward()
    aligned = micro.flow.new_zeros(()) if micro.repa is None else micro.repa
    return torch.stack([total, micro.flow, aligned, micro.velocity_square]).detach()

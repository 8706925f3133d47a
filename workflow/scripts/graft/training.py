"""The one training loop: AdamW or Muon, warm-up and cosine decay, EMA, autocast, compilation, exact resume."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from graft.compute import Compute
from graft.errors import UserError
from graft.muon import BatchedMuon
from graft.progress import progress
from graft.seeding import Draw, generator
from graft.shards import ShardedTensor, TensorFile, write_tensors

logger = logging.getLogger(__name__)

GRADIENT_NORM = 1.0
LOG_POINTS = 100
"""Points of the loss curve, each the mean loss since the point before; more in a training of so many steps that they
would be further apart than LOG_STEPS."""

LOG_STEPS = 500
"""The most steps from point to point. Only at a point is a checkpoint written or a loss that is not finite noticed."""

CHECKPOINT_MINUTES = 3
WARMUP = 20
"""Steps left out of the timing."""

RESIDENT_BYTES = 2**30
"""Arrays of at most so many bytes are kept in the GPU's memory while they train."""


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to train.

    steps: optimiser steps. batch_size: samples a step. learning_rate: AdamW's peak rate, after a linear warm-up over
    the first 5 % of the steps. ema_decay: in [0, 1), the most that the running average keeps a step. optimizer:
    'adamw'; or 'muon' (Jordan et al. 2024), which takes the `hidden_matrices()` of a network that has such, in updates
    as large as AdamW's (Liu et al. 2025, arXiv 2502.16982), and leaves the other parameters to AdamW.
    """

    steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    optimizer: str = "adamw"


@dataclass(frozen=True)
class TrainingLog:
    """curve: points {step, loss}. seconds_per_step: without compilation, None if nothing was left to train."""

    curve: list[dict[str, float]]
    seconds_per_step: float | None


def train(
    model: nn.Module,
    strata: Sequence[Sequence[ShardedTensor | Tensor]],
    loss: Callable[..., Tensor],
    settings: TrainingSettings,
    *,
    seed: int,
    run: int,
    compute: Compute,
    checkpoint: Path,
    identity: str,
) -> TrainingLog:
    """Train `model` in place and leave its EMA weights in it.

    strata: parts of the data, each as arrays of one length, whose rows may differ in shape from part to part. A step
    draws with replacement from each in proportion to its length, `batch_size` rows in all, at least one of each.
    loss: `loss(network, *batch, generator)`, the scalar loss of rows of one stratum, with one tensor (B, ...) for each
    of its arrays; `network` is the model, compiled if `compute` says so. Rows and all other randomness are seeded by
    (seed, run, step), so that a step depends on nothing before it but the weights.
    checkpoint: a file that outlives a killed job. If it was written under the same settings and `identity` (a
    fingerprint of code and data), training goes on from it, to the same bytes on a CPU; otherwise it is ignored.
    Where a batch is more than a GPU's memory holds, and `compute` allows it, its gradient is taken in parts.
    Raises UserError at a loss that is not finite.
    """
    model.to(compute.device).train()
    state = TrainingState(model, settings, identity=f"{identity} seed{seed} run{run} {json.dumps(asdict(settings))}")
    first = state.load(checkpoint)
    # The shapes stay: strata's are compiled each for itself rather than once for any.
    network = compute.compile(model, dynamic=False)
    strata = [[resident(array, compute) for array in arrays] for arrays in strata]
    rows = sum(len(arrays[0]) for arrays in strata)
    running, count = torch.zeros((), device=compute.device), 0
    every = max(1, min(settings.steps // LOG_POINTS, LOG_STEPS))
    due = time.monotonic() + 60 * CHECKPOINT_MINUTES
    stopwatch = Stopwatch(compute, warmup=min(WARMUP, settings.steps // 2))
    largest = settings.batch_size

    def backward(size: int) -> tuple[Tensor, int]:
        """The loss of a step's batch, its gradient accumulated over parts of at most `size` rows; and that size."""
        if size < largest:  # what a part that did not fit has left
            state.forget_gradients()
        choice = generator(seed, Draw.BATCH, run, step)
        rng, total = generator(seed, Draw.TRAINING, run, step, device=compute.device), torch.zeros_like(running)
        for arrays in strata:
            share = len(arrays[0]) / rows
            count = max(1, round(share * settings.batch_size))
            batch = draw_batch(arrays, count, choice, compute)
            for part in zip(*(array.split(size) for array in batch), strict=True):
                with compute.autocast():
                    value = loss(network, *part, rng) * (share * len(part[0]) / count)
                value.backward()
                total += value.detach()
        return total, size

    for step in progress(range(first, settings.steps), "training", initial=first, total=settings.steps):
        value, largest = compute.fitting(backward, largest)
        state.advance()
        stopwatch.tick()
        running, count = running + value, count + 1
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            state.record(step + 1, (running / count).item())
            running, count = torch.zeros_like(running), 0
            if time.monotonic() > due or step + 1 == settings.steps:
                state.save(checkpoint, step + 1)
                due = time.monotonic() + 60 * CHECKPOINT_MINUTES
    state.ema.copy_to(state.parameters)
    model.eval().requires_grad_(False)
    return TrainingLog(state.curve, stopwatch.seconds_per_step())


def resident(array: ShardedTensor | Tensor, compute: Compute) -> ShardedTensor | Tensor:
    """An array (n, ...) in the GPU's memory, so that a batch need not be copied there; itself if large, or on a CPU."""
    if compute.device.type == "cpu" or array[:1].nbytes * len(array) > RESIDENT_BYTES:
        return array
    return array[:].to(compute.device)


def draw_batch(
    data: Sequence[ShardedTensor | Tensor], batch_size: int, rng: torch.Generator, compute: Compute
) -> list[Tensor]:
    """The same random rows of every array, (batch_size, ...) each, on the device."""
    rows = torch.randint(len(data[0]), (batch_size,), generator=rng)
    there = compute.to_device(rows)

    def part(array: ShardedTensor | Tensor) -> Tensor:
        on_device = isinstance(array, Tensor) and array.device.type == compute.device.type
        return array[there] if on_device else compute.to_device(array[rows])

    return [part(array) for array in data]


class Stopwatch:
    """Mean seconds a step, the first `warmup` steps (compilation, caches) left out."""

    def __init__(self, compute: Compute, warmup: int) -> None:
        self.compute, self.warmup, self.ticks, self.start = compute, warmup, 0, 0.0

    def tick(self) -> None:
        """Count a step."""
        self.ticks += 1
        if self.ticks == self.warmup:
            self.compute.synchronize()
            self.start = time.monotonic()

    def seconds_per_step(self) -> float | None:
        """None if nothing ran after the warm-up."""
        if self.ticks <= self.warmup:
            return None
        self.compute.synchronize()
        return (time.monotonic() - self.start) / (self.ticks - self.warmup)


def adamw(model: nn.Module, parameters: list[nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """AdamW, without weight decay, for all parameters."""
    return [torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)]


def muon(model: nn.Module, parameters: list[nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the model's hidden matrices and AdamW for the other parameters.

    Raises UserError if the model does not say which they are.
    """
    if not hasattr(model, "hidden_matrices"):
        raise UserError(
            f"training: optimizer muon is for networks with hidden matrices, and a {type(model).__name__} has none"
        )
    matrices = model.hidden_matrices()
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    return [
        BatchedMuon(matrices, lr=rate),
        *adamw(model, others, rate),
    ]


OPTIMIZERS = {"adamw": adamw, "muon": muon}


class TrainingState:
    """Everything that changes while training, and its file."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, identity: str) -> None:
        self.model, self.identity = model, identity
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizers = OPTIMIZERS[settings.optimizer](model, self.parameters, settings.learning_rate)
        warmup = math.ceil(settings.steps / 20)
        self.schedules = [get_cosine_schedule_with_warmup(each, warmup, settings.steps) for each in self.optimizers]
        self.ema = EMAModel(self.parameters, decay=settings.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        self.curve: list[dict[str, float]] = []
        # Gradients keep their memory: what a CUDA graph returns is overwritten by its next run, so it is added up here.
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def advance(self) -> None:
        """One optimiser step on the gradients in place."""
        nn.utils.clip_grad_norm_(self.parameters, GRADIENT_NORM)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.forget_gradients()
        self.ema.step(self.parameters)

    def forget_gradients(self) -> None:
        """Set them to zero, in place."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)

    def record(self, step: int, loss: float) -> None:
        """Append to the loss curve; a loss or weights that are not finite end the job."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self.parameters]).all()
        if not math.isfinite(loss) or not finite:
            what = "the weights are not finite" if math.isfinite(loss) else f"the loss is {loss}"
            raise UserError(f"training: {what} at step {step}; lower learning_rate (checkpoints before it are kept)")
        self.curve.append({"step": step, "loss": loss})

    def save(self, path: Path, step: int) -> None:
        """Write all of it; only ever called after a finite loss."""
        tensors = {f"model.{i}": p.data for i, p in enumerate(self.parameters)}
        tensors |= {f"ema.{i}": p for i, p in enumerate(self.ema.shadow_params)}
        for number, optimizer in enumerate(self.optimizers):
            moments = optimizer.state_dict()["state"]
            tensors |= {f"optimizer{number}.{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()}
        tensors["curve"] = torch.tensor([[p["step"], p["loss"]] for p in self.curve], dtype=torch.float64)
        write_tensors(path, tensors, {"identity": self.identity, "step": step})
        logger.info("checkpoint at step %d", step)

    def load(self, path: Path) -> int:
        """Take up a checkpoint of the same identity and return its step; 0 without one."""
        if not path.exists():
            return 0
        file = TensorFile(path)
        if file.metadata["identity"] != self.identity:
            logger.info("%s belongs to other settings, code or data: starting afresh", path)
            return 0
        tensors, step = file.tensors(), int(file.metadata["step"])
        for i, parameter in enumerate(self.parameters):
            parameter.data.copy_(tensors[f"model.{i}"])
            self.ema.shadow_params[i].copy_(tensors[f"ema.{i}"])
        for number, (optimizer, schedule) in enumerate(zip(self.optimizers, self.schedules, strict=True)):
            moments = defaultdict(dict)
            for name in (name for name in tensors if name.startswith(f"optimizer{number}.")):
                _, index, key = name.split(".")
                moments[int(index)][key] = tensors[name]
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
            schedule.load_state_dict({**schedule.state_dict(), "last_epoch": step})
            for group, rate in zip(optimizer.param_groups, schedule.get_lr(), strict=True):
                group["lr"] = rate
        self.ema.optimization_step = step
        self.curve = [{"step": int(s), "loss": loss} for s, loss in tensors["curve"].tolist()]
        logger.info("resuming from %s at step %d", path, step)
        return step

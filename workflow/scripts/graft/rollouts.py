"""Rollouts of a diffusion model, alone or tuned above a cut: the chain of stages, and batches drawn through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from graft.compute import Compute
from graft.progress import progress
from graft.sampling import Ddim, Normal, Stage, Update, shifted, snapshots, uniform_times
from graft.seeding import CHUNK, ChunkedNormal, Draw
from graft.shards import shard_batches


@dataclass(frozen=True)
class SamplerSettings:
    """steps: of the time grid t_i = `graft.sampling.shifted` (i / steps, shift). eta: stochasticity in [0, 1].

    batch_size: samples at a time.
    """

    steps: int
    shift: float
    eta: float
    batch_size: int

    def index(self, cut: float) -> int:
        """Grid index of a cut in [0, 1]; the configuration's check has seen that it is whole."""
        return round(cut * self.steps)

    @property
    def times(self) -> list[float]:
        """Times of all grid indices, descending as the sampler goes through them: from 1 (`steps`) to 0 (0)."""
        return [shifted(u, self.shift) for u in uniform_times(self.steps)]

    def time(self, index: int) -> float:
        """Time of a grid index."""
        return shifted(index / self.steps, self.shift)


def chain(
    above: Update, below: Update, cut: int, times: Sequence[float], stops: Iterable[int] = ()
) -> dict[int, Stage]:
    """Stages by the grid index that they end at, from noise to data: `above` down to the cut, then `below`.

    times: of all grid indices, descending, so that those of the noise come first and index 0 is the data. cut: a grid
    index; 0 is `above` alone (GRAFT), the highest is `below` alone (the base). Stages end at each index of `stops` too,
    so that `graft.sampling.snapshots` shows the states there, in descending order.
    """
    ascending, highest = times[::-1], len(times) - 1
    ends = sorted({0, highest, cut, *stops}, reverse=True)
    return {
        end: Stage(above if end >= cut else below, ascending[end : start + 1][::-1]) for start, end in pairwise(ends)
    }


def roll_out(
    task: Any,
    above: Callable[..., Tensor],
    below: Callable[..., Tensor],
    cut: int,
    settings: SamplerSettings,
    condition: dict[str, Tensor],
    normal: Normal,
    compute: Compute,
    stops: Sequence[int] = (),
) -> dict[int, Tensor]:
    """States of one batch by grid index, (B, ...) each on the device: at 0, and at each of `stops` in [0, steps].

    above, below: networks on the device. condition: tensors (B, ...) on the device. normal: draws the initial noise
    first, then that of the steps.
    """

    def projected() -> Tensor:
        return task.project(normal(), condition)

    updates = [Ddim(task.denoiser(network, condition), task.path, settings.eta) for network in (above, below)]
    stages = chain(*updates, cut, settings.times, stops)
    noise = projected()
    with compute.autocast():
        reached = snapshots(noise, stages.values(), projected)
    states = {settings.steps: noise, **dict(zip(stages, reached, strict=True))}
    return {index: states[index] for index in {0, *stops}}


def continue_from(
    task: Any,
    network: Callable[..., Tensor],
    x: Tensor,
    index: int,
    settings: SamplerSettings,
    condition: dict[str, Tensor],
    normal: Normal,
    compute: Compute,
) -> Tensor:
    """Samples x_0 (B, ...) from states x (B, ...) at a grid index, with the network all the way down."""
    update = Ddim(task.denoiser(network, condition), task.path, settings.eta)
    stage = Stage(update, settings.times[settings.steps - index :])
    with compute.autocast():
        return snapshots(x, [stage], lambda: task.project(normal(), condition))[-1]


def noise_at(
    task: Any,
    network: Callable[..., Tensor],
    x: Tensor,
    time: float,
    condition: dict[str, Tensor],
    compute: Compute,
) -> Tensor:
    """The noise E[eps | x_t] (B, ...) that a network sees in states x (B, ...) at one time > 0, all on the device.

    It is (x_t - alpha E[x_0 | x_t]) / sigma.
    """
    t = torch.full((len(x),), time, device=x.device, dtype=x.dtype)
    with torch.no_grad(), compute.autocast():
        x_0 = task.denoiser(network, condition)(x, t).float()
    alpha, sigma = (float(level(t[0])) for level in (task.path.alpha, task.path.sigma))
    return (x - alpha * x_0) / sigma


def in_batches(
    task: Any,
    condition: dict[str, Tensor],
    batch_size: int,
    compute: Compute,
    seed: int,
    draw: Draw,
    number: int,
    first: int = 0,
) -> Iterator[tuple[slice, dict[str, Tensor], Normal]]:
    """What to draw samples first, first + 1, ... with, one for each row of a condition: of each batch, its rows of it,
    the condition and the noise.

    condition: tensors (n, ...) on the CPU; those of a batch are on the device. Noise is that of (seed, draw, number).
    batch_size and first are multiples of the chunk (64).
    """
    count = len(next(iter(condition.values())))
    for start, stop in shard_batches(count, batch_size, shard=0, shards=1):
        part = {name: compute.to_device(value[start:stop]) for name, value in condition.items()}
        among = {"start": first + start, "stop": first + stop}
        noise = ChunkedNormal(seed, draw, number, **among, shape=task.shape, device=compute.device)
        yield slice(start, stop), part, noise


def roll_out_batches(
    task: Any,
    above: Callable[..., Tensor],
    below: Callable[..., Tensor],
    cut: int,
    settings: SamplerSettings,
    condition: dict[str, Tensor],
    compute: Compute,
    drawn: tuple[int, Draw, int],
    first: int = 0,
    stops: Sequence[int] = (),
    title: str = "rollouts",
) -> dict[int, Tensor]:
    """States of all samples of a condition by grid index, as `roll_out` gives them of one batch, on the CPU.

    In batches of the sampler's size, or smaller ones where these do not fit (`Compute.fitting`). drawn, first: see the
    arguments seed, draw, number and first of `in_batches`. title: of the progress.
    """

    def in_batches_of(size: int) -> dict[int, Tensor]:
        batches = list(in_batches(task, condition, size, compute, *drawn, first))
        states = []
        for _, part, normal in progress(batches, title):
            found = roll_out(task, above, below, cut, settings, part, normal, compute, stops)
            states.append({index: state.cpu() for index, state in found.items()})
        return {index: torch.cat([state[index] for state in states]) for index in states[0]}

    return compute.fitting(in_batches_of, settings.batch_size, CHUNK)

"""Rollouts of a diffusion model, alone or tuned above a cut: the chain of stages, and batches drawn through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from graft.compute import Compute
from graft.sampling import Ddim, Normal, Stage, Update, snapshots, uniform_times


@dataclass(frozen=True)
class SamplerSettings:
    """steps: of the uniform time grid t_i = i / steps. eta: stochasticity in [0, 1]. batch_size: samples at a time."""

    steps: int
    eta: float
    batch_size: int

    def index(self, cut: float) -> int:
        """Grid index of a cut in [0, 1]; the configuration's check has seen that it is whole."""
        return round(cut * self.steps)

    def time(self, index: int) -> float:
        """Time of a grid index."""
        return index / self.steps


def chain(above: Update, below: Update, cut: int, steps: int, stops: Iterable[int] = ()) -> list[Stage]:
    """Stages through the grid indices from `steps` (noise) to 0 (data): `above` down to the cut, then `below`.

    cut: a grid index; 0 is `above` alone (GRAFT), `steps` is `below` alone (the base). Stages end at each index of
    `stops` too, so that `graft.sampling.snapshots` shows the states there, in descending order.
    """
    times = uniform_times(steps)[::-1]
    ends = sorted({0, steps, cut, *stops}, reverse=True)
    return [Stage(above if end >= cut else below, times[end : start + 1][::-1]) for start, end in pairwise(ends)]


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
    """States of one batch by grid index, (B, ...) each on the device: at 0, and at each of `stops`.

    above, below: networks on the device. condition: tensors (B, ...) on the device. normal: draws the initial noise
    first, then that of the steps.
    """

    def projected() -> Tensor:
        return task.project(normal(), condition)

    updates = [Ddim(task.denoiser(network, condition), task.path, settings.eta) for network in (above, below)]
    stages = chain(*updates, cut, settings.steps, stops)
    ends = [round(stage.times[-1] * settings.steps) for stage in stages]
    with compute.autocast():
        states = dict(zip(ends, snapshots(projected(), stages, projected), strict=True))
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
    stage = Stage(update, uniform_times(settings.steps)[::-1][: index + 1][::-1])
    with compute.autocast():
        return snapshots(x, [stage], lambda: task.project(normal(), condition))[-1]

"""The sampler: flows integrated from noise (t = 1) to data (t = 0) by Euler steps on dx/dt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v(x, t) = E[dx_t/dt | x_t = x] for x (B, ...) and t (B,) in [0, 1]; returns the shape of x."""


@dataclass(frozen=True)
class Stage:
    """One flow of a chain of flows, and the number of equal Euler steps it is integrated with."""

    velocity: Velocity
    steps: int


def euler_times(steps: int) -> list[float]:
    """Times 1, 1 - h, ..., h, with h = 1 / steps, at which the velocity is evaluated."""
    return [1 - i / steps for i in range(steps)]


@torch.no_grad()
def sample(noise: Tensor, stages: Iterable[Stage]) -> Tensor:
    """Send noise (B, ...) through the stages in turn: x_{i+1} = x_i - h v(x_i, t_i).

    Each stage starts at t = 1 from what the one before left at its t = 0; for inverse noise correction the
    stages are the corrector, then the base. The state stays in the precision of `noise`.
    """
    x = noise
    for stage in stages:
        for time in euler_times(stage.steps):
            t = torch.full((len(x),), time, device=x.device, dtype=x.dtype)
            x = x - stage.velocity(x, t).to(x.dtype) / stage.steps
    return x

"""Training objectives, as losses of one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from graft.paths import GaussianPath, sample_path
from graft.sampling import Velocity


def flow_matching(velocity: Velocity, path: GaussianPath, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """Flow-matching loss E ||v(x_t, t) - dx_t/dt||^2, the mean over batch and dimensions (a scalar).

    x_0 (B, ...) is the target's batch; noise ~ N(0, I) and t ~ U(0, 1) come from `generator`, on x_0's device.
    The times are stratified over the batch, which leaves the expectation as it is and lowers the variance.
    """
    noise = torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
    uniform = torch.rand(1, generator=generator, device=x_0.device, dtype=x_0.dtype)
    t = (uniform + torch.arange(len(x_0), device=x_0.device) / len(x_0)) % 1
    point = sample_path(path, x_0, noise, t)
    return (velocity(point.x_t, t).float() - point.dx_t).square().mean()

"""A sampler of flows as an invertible map of the noise, and the laws that it carries from one space to the other.

For x = F(z) with F invertible, z ~ mu gives x the density mu(z) / |det dF/dz|, and x ~ p gives the inverted noise the
density rho(z) = p(F(z)) |det dF/dz|. A bijection keeps total variation: TV(F(mu), p) = TV(mu, rho).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from graft.grids import Grid
from graft.inversion import invert
from graft.sampling import Velocity, flow_stage, sample

TOLERANCE = 1e-5
MAX_ITERATIONS = 60
"""Of the inverse, see `graft.inversion.invert`."""

LogDensity = Callable[[Tensor], Tensor]
"""log of a density (B,) at points (B, D)."""


@dataclass(frozen=True)
class FlowMap:
    """x = F(z): `steps` Euler steps of a velocity, from noise z (B, D) at t = 1 to data x (B, D) at t = 0."""

    velocity: Velocity
    steps: int

    def __call__(self, z: Tensor) -> Tensor:
        """F(z), (B, D)."""
        return sample(z, [flow_stage(self.velocity, self.steps)])

    def log_det(self, z: Tensor) -> Tensor:
        """log |det dF/dz| (B,), by one directional derivative for each of the D dimensions."""
        directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        columns = [torch.func.jvp(self, (z,), (e.expand_as(z).contiguous(),))[1] for e in directions]
        return torch.linalg.slogdet(torch.stack(columns, dim=2)).logabsdet

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noise (B, D) of x (B, D), solved in float32, and whether it was found to `TOLERANCE`, (B,) bool."""
        found = invert(x.float(), self.velocity, self.steps, TOLERANCE, MAX_ITERATIONS)
        return found.noise.to(x.dtype), found.converged(TOLERANCE)


def pushed(flow: FlowMap, log_density: LogDensity, x: Tensor) -> Tensor:
    """log density (B,) of F(z) at x (B, D), z having `log_density`; -inf where no inverse was found."""
    z, found = flow.inverse(x)
    return torch.where(found, log_density(z) - flow.log_det(z), -torch.inf)


def pulled(flow: FlowMap, log_density: LogDensity, z: Tensor) -> Tensor:
    """log density (B,) of the inverted noise F^-1(x) at z (B, D), x having `log_density`."""
    return log_density(flow(z)) + flow.log_det(z)


def standard_normal(z: Tensor) -> Tensor:
    """log density of N(0, I), (B,) at z (B, D)."""
    return -(z.square().sum(dim=1) + z.shape[1] * math.log(2 * math.pi)) / 2


def distances(
    base: FlowMap, log_noise: LogDensity, log_data: LogDensity, noise_grid: Grid, data_grid: Grid
) -> dict[str, float]:
    """The total variation of one sampler in both spaces, each by a grid of its own, in the plane.

    The sampler is `base` from noises of `log_noise`, the truth is `log_data`. In the noise's space the noises are
    compared with the inverted noises of the data, which needs F; in the data's space samples with data, which needs
    F^-1. `integral_error`: how far any of the four densities' integrals is from 1, a check of Jacobians and grids.
    """
    pairs = {
        "noise": (noise_grid, log_noise, partial(pulled, base, log_data)),
        "data": (data_grid, partial(pushed, base, log_noise), log_data),
    }
    found, integrals = {}, []
    for space, (grid, *logs) in pairs.items():
        densities = [log(grid.nodes()).exp() for log in logs]
        found[f"{space}_total_variation"] = grid.integral((densities[0] - densities[1]).abs()) / 2
        integrals += [grid.integral(density) for density in densities]
    return {**found, "integral_error": max(abs(integral - 1) for integral in integrals)}

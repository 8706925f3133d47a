"""Gaussian probability paths x_t = alpha(t) x_0 + sigma(t) eps, with t = 0 at the data and t = 1 at the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class NoiseSchedule(Protocol):
    """Levels of a Gaussian path; every method takes times in [0, 1] of any shape and returns that shape."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal level, 1 at t = 0 and (almost) 0 at t = 1."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level, 0 at t = 0 and (almost) 1 at t = 1."""


class GaussianPath(NoiseSchedule, Protocol):
    """A schedule that can be followed: with the velocities of its levels."""

    def alpha_derivative(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    def sigma_derivative(self, t: Tensor) -> Tensor:
        """d sigma / dt."""


class StraightPath:
    """x_t = (1 - t) x_0 + t eps: the rectified-flow path, and the paper's choice for the noise corrector."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class TrigonometricPath:
    """x_t = cos(pi t / 2) x_0 + sin(pi t / 2) eps.

    alpha^2 + sigma^2 = 1, so for x_0 ~ N(0, I) every x_t ~ N(0, I) and the exact velocity
    E[dx_t/dt | x_t] = (alpha alpha' + sigma sigma') x_t is zero: a corrector on this path has to integrate
    only the deviation of its target from N(0, I).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) * torch.sin(t * (math.pi / 2))

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return (math.pi / 2) * torch.cos(t * (math.pi / 2))


class StableDiffusionPath:
    """Stable Diffusion's discrete schedule: x_t = sqrt(a_k) x_0 + sqrt(1 - a_k) eps, a_k = prod_{i <= k} (1 - beta_i).

    k = 1000 t counts noising steps; a time between two of them belongs to the later one, and a_0 = 1. The betas are
    those of every Stable Diffusion ('scaled_linear': the squares of evenly spaced numbers). A grid of times i / N, with
    N a divisor of 1000, is what diffusers' DDIMScheduler goes through with `timestep_spacing='trailing'` and
    `set_alpha_to_one=True`.
    """

    STEPS = 1000
    BETA_START, BETA_END = 0.00085, 0.012

    def __init__(self) -> None:
        betas = torch.linspace(self.BETA_START**0.5, self.BETA_END**0.5, self.STEPS, dtype=torch.float32) ** 2
        self._kept = torch.cat([torch.ones(1), (1 - betas).cumprod(dim=0)])

    def alpha(self, t: Tensor) -> Tensor:
        return self._at(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._at(t)).sqrt()

    def timestep(self, t: Tensor) -> Tensor:
        """The network's timestep k - 1, int64 in [0, 999], of times in (0, 1]."""
        return self._steps(t) - 1

    def _steps(self, t: Tensor) -> Tensor:
        # Rounding puts a time of the grid up to 6e-5 steps beside its whole number; any time above 0 has some noise.
        steps = (t * self.STEPS - 1e-3).ceil().long().clamp(min=1)
        return torch.where(t > 0, steps, 0)

    def _at(self, t: Tensor) -> Tensor:
        return self._kept.to(t.device, t.dtype)[self._steps(t)]


PATHS: dict[str, GaussianPath] = {"straight": StraightPath(), "trigonometric": TrigonometricPath()}


@dataclass(frozen=True)
class PathSample:
    """A point of a path: x_t and its time derivative dx_t, both (B, ...)."""

    x_t: Tensor
    dx_t: Tensor


def sample_path(path: GaussianPath, x_0: Tensor, noise: Tensor, t: Tensor) -> PathSample:
    """The point at time t of the path from x_0 (B, ...) to noise (B, ...), with t (B,) in [0, 1]."""
    t = t.reshape(-1, *[1] * (x_0.ndim - 1))
    return PathSample(
        x_t=path.alpha(t) * x_0 + path.sigma(t) * noise,
        dx_t=path.alpha_derivative(t) * x_0 + path.sigma_derivative(t) * noise,
    )


def conditional_sigma(path: NoiseSchedule, t: Tensor, s: Tensor) -> Tensor:
    """sigma(t|s), the noise that x_t has beyond that of x_s: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, its root.

    t >= s, of one shape, with alpha_s > 0.
    """
    kept = path.alpha(t) / path.alpha(s) * path.sigma(s)
    return (path.sigma(t) ** 2 - kept**2).clamp(min=0).sqrt()


def unit_information(path: NoiseSchedule, t: Tensor) -> Tensor:
    """Nats that x_t holds of a coordinate x_0 ~ N(0, 1): log(1 + alpha^2 / sigma^2) / 2, of t's shape; t > 0."""
    return (path.alpha(t) / path.sigma(t)).square().log1p() / 2

"""The sampler: models integrated from noise (t = 1) to data (t = 0), in stages.

Flows step by Euler on dx/dt. Diffusion models step by DDIM with stochasticity eta (Song et al. 2021): eta = 0 is
deterministic, eta = 1 the ancestral sampler, a Markov chain whose transitions are Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from graft.paths import NoiseSchedule, conditional_sigma

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v(x, t) = E[dx_t/dt | x_t = x] for x (B, ...) and t (B,) in [0, 1]; returns the shape of x."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""E[x_0 | x_t = x] for x (B, ...) and t (B,) in [0, 1]; returns the shape of x."""

Normal = Callable[[], Tensor]
"""Draws the next standard normal numbers of a batch, of the shape of its state."""

Update = Callable[[Tensor, float, float, Normal | None], Tensor]
"""One step of a sampler: from x (B, ...) at time t to time s < t."""


@dataclass(frozen=True)
class Euler:
    """The step x_s = x_t - (t - s) v(x_t, t) of a flow."""

    velocity: Velocity

    def __call__(self, x: Tensor, t: float, s: float, normal: Normal | None = None) -> Tensor:
        return x - (t - s) * self.velocity(x, _times(x, t)).to(x.dtype)


@dataclass(frozen=True)
class Ddim:
    """The step x_s = alpha_s x_0 + sqrt(sigma_s^2 - tau^2) eps + tau z, tau = eta (sigma_s / sigma_t) sigma(t|s).

    x_0 is the denoiser's, eps = (x_t - alpha_t x_0) / sigma_t, z standard normal. eta is in [0, 1].
    """

    denoise: Denoiser
    path: NoiseSchedule
    eta: float

    def __call__(self, x: Tensor, t: float, s: float, normal: Normal | None = None) -> Tensor:
        mean, tau = self.transition(x, t, s)
        return mean + tau * normal().to(x.dtype) if tau > 0 else mean

    def transition(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> tuple[Tensor, float | Tensor]:
        """Mean (B, ...) and standard deviation tau of x_s given x_t; tau is 0 at s = 0 and for eta = 0.

        t, s: one time for all of the batch, or (B,) float64, one for each row; tau is alike.
        """
        t, s = torch.as_tensor(t, dtype=torch.double), torch.as_tensor(s, dtype=torch.double)
        path = self.path
        sigma_t, sigma_s = path.sigma(t), path.sigma(s)
        tau = self.eta * sigma_s / sigma_t * conditional_sigma(path, t, s)
        rest = (sigma_s**2 - tau**2).clamp(min=0).sqrt()
        alpha_t, sigma_t, alpha_s, rest = (_factor(level, x) for level in (path.alpha(t), sigma_t, path.alpha(s), rest))
        x_0 = self.denoise(x, t.to(x) if t.ndim else _times(x, t.item())).to(x.dtype)
        eps = (x - alpha_t * x_0) / sigma_t
        return alpha_s * x_0 + rest * eps, tau if tau.ndim else tau.item()


@dataclass(frozen=True)
class Stage:
    """A model's share of a chain: its update, and the descending times it goes through, both ends included."""

    update: Update
    times: Sequence[float]


def uniform_times(steps: int) -> list[float]:
    """Times 1, 1 - h, ..., h, 0, with h = 1 / steps."""
    return [1 - i / steps for i in range(steps + 1)]


def shifted(u: float, shift: float) -> float:
    """The time s u / (1 + (s - 1) u) of an even grid's point u in [0, 1], with shift s > 0: 0 and 1 stay.

    s below 1 spends more steps near the data, above 1 near the noise (Esser et al. 2024, arXiv 2403.03206, eq. 23).
    """
    return shift * u / (1 + (shift - 1) * u)


def flow_stage(velocity: Velocity, steps: int) -> Stage:
    """A whole flow as a stage, from t = 1 to t = 0 in equal Euler steps."""
    return Stage(Euler(velocity), uniform_times(steps))


def sample(noise: Tensor, stages: Iterable[Stage], normal: Normal | None = None) -> Tensor:
    """Send noise (B, ...) through the stages in turn and return what the last one leaves, of the same shape.

    For inverse noise correction the stages are the corrector, then the base, each from t = 1 to t = 0; for P-GRAFT
    the tuned model down to the cut, then the base. `normal` is needed where an update draws (eta > 0). The state
    stays in the precision of `noise`.
    """
    *_, x = snapshots(noise, stages, normal)
    return x


@torch.no_grad()
def snapshots(noise: Tensor, stages: Iterable[Stage], normal: Normal | None = None) -> list[Tensor]:
    """The state (B, ...) with which each stage ends: cut a stage in two to see what is between. See `sample`."""
    x, states = noise, [noise]
    for stage in stages:
        for t, s in pairwise(stage.times):
            x = stage.update(x, t, s, normal)
        states.append(x)
    return states[1:] or [noise]


def _factor(level: Tensor, x: Tensor) -> float | Tensor:
    """A level, or those of the rows (B,), as a factor of x (B, ...)."""
    return level.to(x).reshape(-1, *[1] * (x.ndim - 1)) if level.ndim else level.item()


def _times(x: Tensor, t: float) -> Tensor:
    # Filled on the device: a copy from the CPU would wait for all that the device has to do.
    return torch.full((len(x),), t, device=x.device, dtype=x.dtype)

"""Training objectives, as losses of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graft.paths import GaussianPath, NoiseSchedule, conditional_sigma, sample_path
from graft.sampling import Denoiser, Velocity


def flow_matching(velocity: Velocity, path: GaussianPath, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """Flow-matching loss E ||v(x_t, t) - dx_t/dt||^2, the mean over batch and dimensions (a scalar).

    x_0 (B, ...) is the target's batch; noise ~ N(0, I) and t ~ U(0, 1) come from `generator`, on x_0's device.
    The times are stratified over the batch, which leaves the expectation as it is and lowers the variance.
    """
    noise = torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
    t = stratified_times(x_0, generator)
    point = sample_path(path, x_0, noise, t)
    return (velocity(point.x_t, t).float() - point.dx_t).square().mean()


@dataclass(frozen=True)
class LogitNormalTimes:
    """A law of times to train at: logit(t) ~ N(logit(centre), spread^2) (Esser et al. 2024, arXiv 2403.03206).

    centre: in (0, 1), its median. spread: above 0; at 1.6 it is about uniform in its middle.
    """

    centre: float
    spread: float

    def share_below(self, t: float) -> float:
        """The probability of a time below t in [0, 1]."""
        offset = torch.logit(torch.tensor([t, self.centre], dtype=torch.double))
        return torch.special.ndtr((offset[0] - offset[1]) / self.spread).item()

    def quantile(self, share: Tensor) -> Tensor:
        """The times below which the `share` in [0, 1] lies, of its shape."""
        middle = math.log(self.centre / (1 - self.centre))
        return torch.sigmoid(middle + self.spread * torch.special.ndtri(share))


def stratified_times(
    x: Tensor, generator: torch.Generator, lowest: float = 0.0, law: LogitNormalTimes | None = None
) -> Tensor:
    """Times (B,) above the lowest, one in each of as many intervals of equal probability; x is (B, ...).

    Their law is uniform, or `law` given that they are above the lowest. The intervals lower the variance.
    """
    uniform = torch.rand(1, generator=generator, device=x.device, dtype=x.dtype)
    fraction = (uniform + torch.arange(len(x), device=x.device) / len(x)) % 1
    # Modulo 1 a 0 is a 1: without noise, at time 0, a point above the cut 0 would be 0 / 0.
    fraction = fraction.where(fraction > 0, 1)
    if law is None:
        return lowest + (1 - lowest) * fraction
    below = law.share_below(lowest)
    return law.quantile(below + (1 - below) * fraction).clamp(min=lowest)


@dataclass(frozen=True)
class PointAboveCut:
    """x_t = (alpha_t / alpha_c) x_c + sigma(t|c) eps' for a snapshot x_c at time c < t, all (B, ...).

    ratio: rho = sigma(t|c) / sigma_t, which takes the total noise of x_t to its share beyond x_c: the expectation of
    eps' given x_t is rho times that of the total noise. target: rho x_c / alpha_c - alpha_t sigma_c^2 / (alpha_c^2
    sigma_t) eps', whose expectation given x_t is rho E[x_0 | x_t]. At c = 0, rho is 1 and the target is x_0.
    """

    x_t: Tensor
    ratio: Tensor
    target: Tensor


def point_above_cut(path: NoiseSchedule, x_c: Tensor, cut_time: float, noise: Tensor, t: Tensor) -> PointAboveCut:
    """The point at times t (B,) in (cut_time, 1] above the snapshots x_c (B, ...), with eps' = noise (B, ...)."""
    t = t.reshape(-1, *[1] * (x_c.ndim - 1))
    c = torch.full_like(t, cut_time)
    alpha_c, alpha_t, sigma_t, sigma_tc = path.alpha(c), path.alpha(t), path.sigma(t), conditional_sigma(path, t, c)
    ratio = sigma_tc / sigma_t
    return PointAboveCut(
        x_t=alpha_t / alpha_c * x_c + sigma_tc * noise,
        ratio=ratio,
        target=ratio / alpha_c * x_c - alpha_t * path.sigma(c) ** 2 / (alpha_c**2 * sigma_t) * noise,
    )


def denoising(
    denoise: Denoiser,
    weight: Callable[[Tensor], Tensor | float],
    path: NoiseSchedule,
    x_c: Tensor,
    cut_time: float,
    noise: Tensor,
    t: Tensor,
) -> Tensor:
    """Loss of x_0-prediction above a cut: mean of weight(t) (rho x_0(x_t, t) - target)^2, a scalar.

    See `PointAboveCut`. At cut_time 0 this is plain denoising of x_c = x_0; for the snapshots x_c that rejection
    sampling accepted, it is P-GRAFT's objective (arXiv 2510.02692), divided neither by alpha_t nor by rho. weight(t)
    broadcasts to (B, ...): the weight that the base was trained with.
    """
    point = point_above_cut(path, x_c, cut_time, noise, t)
    error = point.ratio * denoise(point.x_t, t).float() - point.target
    return (weight(t) * error.square()).mean()


def noise_prediction(
    predict_noise: Denoiser, path: NoiseSchedule, x_c: Tensor, cut_time: float, noise: Tensor, t: Tensor
) -> Tensor:
    """Loss of noise prediction above a cut: mean of (eps' - rho eps(x_t, t))^2, a scalar; eps is the total noise."""
    point = point_above_cut(path, x_c, cut_time, noise, t)
    return (noise - point.ratio * predict_noise(point.x_t, t).float()).square().mean()

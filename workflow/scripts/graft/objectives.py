"""Training objectives, as losses of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

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
class FocusedTimes:
    """A law of times to train at: with probability `uniform` U(0, 1), else logit(t) ~ N(logit(centre), spread^2).

    The logit-normal part (Esser et al. 2024, arXiv 2403.03206) learns most where a reward is decided; without the
    uniform one the noise's end would go untrained. centre: in (0, 1), the median of the first. spread: above 0.
    uniform: in (0, 1).
    """

    centre: float
    spread: float
    uniform: float

    def above(self, lowest: float, fraction: Tensor) -> Tensor:
        """Times (B,) of this law given that they are above the lowest, from uniform fractions (B,) in (0, 1].

        lowest: in [0, 1). Fractions up to the uniform part's probability become uniform times, the others logit-normal.
        """
        middle = math.log(self.centre / (1 - self.centre))
        below = NormalDist(middle, self.spread).cdf(math.log(lowest / (1 - lowest))) if lowest > 0 else 0.0
        parts = self.uniform * (1 - lowest), (1 - self.uniform) * (1 - below)
        share = parts[0] / sum(parts)
        even = lowest + (1 - lowest) * fraction / share
        # In float32 the largest would be a little above 1, and its quantile NaN.
        quantile = (below + (1 - below) * (fraction - share).clamp(min=0) / (1 - share)).clamp(max=1)
        focused = torch.sigmoid(middle + self.spread * torch.special.ndtri(quantile)).clamp(min=lowest)
        return torch.where(fraction <= share, even, focused)


def stratified_times(
    x: Tensor, generator: torch.Generator, lowest: float = 0.0, law: FocusedTimes | None = None
) -> Tensor:
    """Times (B,) above the lowest, x being (B, ...): uniform ones, or of a law given that they are above the lowest.

    One comes from each of as many intervals of equal probability, for a lower variance.
    """
    uniform = torch.rand(1, generator=generator, device=x.device, dtype=x.dtype)
    fraction = (uniform + torch.arange(len(x), device=x.device) / len(x)) % 1
    # Modulo 1 a 0 is a 1: without noise, at time 0, a point above the cut 0 would be 0 / 0.
    fraction = fraction.where(fraction > 0, 1)
    return lowest + (1 - lowest) * fraction if law is None else law.above(lowest, fraction)


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


@dataclass(frozen=True)
class Anchor:
    """The model that rollouts came from, and which of them were accepted: what tells selection from relearning.

    model: that model's network; in the losses below, its prediction of what they regress. odds: (B,), of each rollout
    A / P(A), 0 where it was not accepted and one over the accepted share where it was.
    """

    model: Callable[..., Tensor]
    odds: Tensor

    def predicting(self, form: Callable[[Callable[..., Tensor]], Denoiser]) -> Anchor:
        """The same with the prediction `form(model)` in the network's place."""
        return Anchor(form(self.model), self.odds)


def denoising(
    denoise: Denoiser,
    weight: Callable[[Tensor], Tensor | float],
    path: NoiseSchedule,
    x_c: Tensor,
    cut_time: float,
    noise: Tensor,
    t: Tensor,
    anchor: Anchor | None = None,
) -> Tensor:
    """Loss of x_0-prediction above a cut: mean of weight(t) (rho x_0(x_t, t) - target)^2, a scalar.

    See `PointAboveCut`. At cut_time 0 this is plain denoising of x_c = x_0; for the snapshots x_c that rejection
    sampling accepted, it is P-GRAFT's objective (arXiv 2510.02692), divided neither by alpha_t nor by rho. weight(t)
    broadcasts to (B, ...): the weight that the base was trained with. With an anchor see `squared_error`.
    """
    point = point_above_cut(path, x_c, cut_time, noise, t)
    return (weight(t) * squared_error(denoise, point, point.target, t, anchor)).mean()


def noise_prediction(
    predict_noise: Denoiser,
    path: NoiseSchedule,
    x_c: Tensor,
    cut_time: float,
    noise: Tensor,
    t: Tensor,
    anchor: Anchor | None = None,
) -> Tensor:
    """Loss of noise prediction above a cut: mean of (eps' - rho eps(x_t, t))^2, a scalar; eps is the total noise.

    With an anchor see `squared_error`.
    """
    point = point_above_cut(path, x_c, cut_time, noise, t)
    return squared_error(predict_noise, point, noise, t, anchor).mean()


def squared_error(predict: Denoiser, point: PointAboveCut, target: Tensor, t: Tensor, anchor: Anchor | None) -> Tensor:
    """(f - y)^2 of the prediction f = rho predict(x_t, t) and the target y, (B, ...).

    A model that relearns its own samples drifts, selected or not: b, the prediction of the model that they came from,
    is not m = E[y | x_t] of what its sampler made with it. With an anchor the batch is of all rollouts, and the target
    is b + (A / P(A) - 1) (y - b). Given x_t its mean is b + r (E[y | x_t, A] - m) + (r - 1) (m - b), with
    r = P(A | x_t) / P(A): b if everything is accepted, and else what acceptance changes, to first order, without the
    drift m - b where r is near 1. For an anchor that does not drift, fine-tuning starts in the direction of the
    accepted rollouts' loss.
    """
    if anchor is not None:
        with torch.no_grad():
            anchored = point.ratio * anchor.model(point.x_t, t).float()
        odds = anchor.odds.reshape(-1, *[1] * (target.ndim - 1))
        target = anchored + (odds - 1) * (target - anchored)
    return (point.ratio * predict(point.x_t, t).float() - target).square()

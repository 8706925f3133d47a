"""A Gaussian mixture, whose laws are known: at every noise level of a path, given a noisy point, and when tilted.

It stands in for a trained base wherever a statement is checked against the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graft.paths import GaussianPath, NoiseSchedule


@dataclass(frozen=True)
class Posterior:
    """The law of x_0 given x_t, for B points: again a mixture of K Gaussians in D dimensions.

    weights: (B, K), each row adds up to 1. means: (B, K, D). variances: (B, K), of each coordinate.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def mean(self) -> Tensor:
        """E[x_0 | x_t], (B, D)."""
        return (self.weights[..., None] * self.means).sum(dim=1)


@dataclass(frozen=True)
class GaussianMixture:
    """Sum over K components of weights * N(centres, variances I) in D dimensions.

    weights: (K,), positive, adding up to 1. centres: (K, D). variances: (K,), positive, of each coordinate. Methods
    compute in the precision and on the device of the points that they are given.
    """

    weights: Tensor
    centres: Tensor
    variances: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent draws (count, D), in the precision of the centres."""
        drawn = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.centres.shape[1], generator=generator, dtype=self.centres.dtype)
        return self.centres[drawn] + self.variances[drawn, None].sqrt() * noise

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) (B,) at x (B, D)."""
        return self._log_joint(x, *self._tables(x)).logsumexp(dim=1)

    def noised(self, path: NoiseSchedule, time: float) -> GaussianMixture:
        """The law of x_t at one time in [0, 1]: alpha_t times the mixture, plus N(0, sigma_t^2 I)."""
        t = torch.tensor(time, dtype=self.centres.dtype)
        alpha, sigma = path.alpha(t), path.sigma(t)
        return GaussianMixture(self.weights, alpha * self.centres, alpha**2 * self.variances + sigma**2)

    def posterior(self, path: NoiseSchedule, x: Tensor, t: Tensor) -> Posterior:
        """The law of x_0 given x_t = x (B, D) at times t (B,) in [0, 1]."""
        weights, centres, variances = self._tables(x)
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        noisy, at_level = alpha**2 * variances + sigma**2, alpha[..., None] * centres
        means = centres + (alpha * variances / noisy)[..., None] * (x[:, None] - at_level)
        shares = self._log_joint(x, weights, at_level, noisy).softmax(dim=1)
        return Posterior(shares, means, variances * sigma**2 / noisy)

    def denoise(self, path: NoiseSchedule, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x] (B, D) for x (B, D) and times t (B,) in [0, 1]."""
        return self.posterior(path, x, t).mean()

    def velocity(self, path: GaussianPath, x: Tensor, t: Tensor) -> Tensor:
        """E[dx_t/dt | x_t = x] (B, D) for x (B, D) and times t (B,) in (0, 1]."""
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        x_0 = self.denoise(path, x, t)
        noise = (x - alpha * x_0) / sigma
        return path.alpha_derivative(t)[:, None] * x_0 + path.sigma_derivative(t)[:, None] * noise

    def log_moment(self, slope: Tensor) -> Tensor:
        """log E exp(slope . x), a scalar, for slope (D,): the cumulant generating function."""
        return self._tilted_log_weights(slope).logsumexp(dim=0)

    def tilted(self, slope: Tensor) -> GaussianMixture:
        """The law p(x) exp(slope . x) / E exp(slope . x) for slope (D,): centres move by their variance times slope."""
        _, centres, variances = self._tables(slope)
        weights = self._tilted_log_weights(slope).softmax(dim=0)
        return GaussianMixture(weights, centres + variances[:, None] * slope, variances)

    def projected(self, direction: Tensor) -> GaussianMixture:
        """The law of direction . x for direction (D,), a mixture on the line (D = 1)."""
        weights, centres, variances = self._tables(direction)
        return GaussianMixture(weights, (centres @ direction)[:, None], variances * direction.square().sum())

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x) (B,) at x (B, 1), for a mixture on the line."""
        weights, centres, variances = self._tables(x)
        return torch.special.ndtr((x - centres.squeeze(1)) / variances.sqrt()) @ weights

    def mean(self) -> Tensor:
        """E[x], (D,)."""
        return self.weights @ self.centres

    def _tables(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights.to(like), self.centres.to(like), self.variances.to(like)

    def _log_joint(self, x: Tensor, weights: Tensor, centres: Tensor, variances: Tensor) -> Tensor:
        """log of weight times density (B, K) at x (B, D); centres (B or 1, K, D) and variances (B or 1, K)."""
        squares = (x[:, None] - centres).square().sum(dim=2)
        return weights.log() - squares / (2 * variances) - x.shape[1] / 2 * (2 * math.pi * variances).log()

    def _tilted_log_weights(self, slope: Tensor) -> Tensor:
        weights, centres, variances = self._tables(slope)
        return weights.log() + centres @ slope + variances * slope.square().sum() / 2

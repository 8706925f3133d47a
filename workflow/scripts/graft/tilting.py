"""What fine-tuning on accepted snapshots of a mixture comes to, exactly: the tilted laws at every noise level.

The base is a Gaussian mixture with its exact score, whose sampler at eta = 1 has the path's joint law, so that x_0
given x_t is a mixture too; the reward is linear. Expectations over x_0 given x_t are Gauss-Hermite sums, those over x_t
sums over a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graft.grids import Grid
from graft.paths import GaussianPath, conditional_sigma
from graft.rejection import Rule
from graft.rejection_law import LinearReward

NODES = 24
"""Of Gauss-Hermite sums over the reward, for each component."""

TIMES = 4
"""Of Gauss-Legendre sums over the times between two levels."""


@dataclass(frozen=True)
class Cut:
    """Exact values at one noise level; expectations over x_t are under the base unless it says otherwise.

    conditional_variance: E Var(r | x_t). divergence: KL of the tilted law of x_t to the base's, in nats. gain: of the
    base's samples from tilted snapshots, E[u E[r | x_t]] - E[r] with u = E[A | x_t] / E[A]. score_shift: of the tilted
    law, E ||eps_tuned - eps_base||^2 under that law, in units of the noise's variance, summed over dimensions.
    """

    conditional_variance: float
    divergence: float
    gain: float
    score_shift: float


@dataclass(frozen=True)
class TiltedMixture:
    """A planar mixture in double precision, a linear reward along a direction (2,) of length 1, and a rule.

    grid: over which x_t is summed; it must hold the mixture and N(0, I), with nodes closer than their components are
    wide.
    """

    reward: LinearReward
    rule: Rule
    path: GaussianPath
    grid: Grid

    def acceptance(self, rewards: Tensor) -> Tensor:
        """E[A | x_0] up to a factor, of rewards of any shape."""
        values = rewards.flatten().numpy()
        reshaped = self.rule.reshaped_reward(values, self.reward.cdf(values))
        return torch.from_numpy(np.exp(reshaped)).reshape(rewards.shape)

    def at(self, time: float) -> Cut:
        """Exact values at a time in [0, 1]."""
        x = self.grid.nodes()
        weight = self.reward.base.noised(self.path, time).log_density(x).softmax(dim=0)
        mean, variance, accepted, shift = self.given(x, time)
        u = accepted / (weight @ accepted)
        return Cut(
            conditional_variance=(weight @ variance).item(),
            divergence=(weight @ torch.xlogy(u, u)).item(),
            gain=(weight @ (u * mean) - weight @ mean).item(),
            score_shift=((weight * u) @ shift.square().sum(dim=1)).item(),
        )

    def given(self, x: Tensor, time: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of points x (B, 2) at a time: E[r | x_t], Var(r | x_t), E[A | x_t], each (B,), and the noise's shift (B, 2).

        The shift eps_tuned - eps_base is -alpha / sigma times that of the denoiser, E[x_0 A | x_t] / E[A | x_t] -
        E[x_0 | x_t]; zero at time 0, where there is no noise.
        """
        t = torch.full((len(x),), time, dtype=x.dtype)
        posterior, direction = self.reward.base.posterior(self.path, x, t), self.reward.direction
        weights, means, scale = posterior.weights, posterior.means @ direction, posterior.variances.sqrt()
        mean = (weights * means).sum(dim=1)
        variance = (weights * (posterior.variances + (means - mean[:, None]).square())).sum(dim=1)
        nodes, shares = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(NODES))
        shares = shares / shares.sum()
        at_nodes = self.acceptance(means[..., None] + scale[..., None] * nodes)
        accepted = weights * (at_nodes @ shares)
        # Far out nothing may be left of it in a double.
        total = accepted.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
        # Within a component x_0 depends on the reward along the direction alone.
        along = (weights * scale * (at_nodes @ (shares * nodes))).sum(dim=1, keepdim=True)
        tuned = (accepted[..., None] * posterior.means).sum(dim=1) + along * direction
        ratio = self.path.alpha(t) / self.path.sigma(t) if time > 0 else torch.zeros_like(t)
        return mean, variance, total.squeeze(1), -ratio[:, None] * (tuned / total - posterior.mean())

    def moved(self, start: float, end: float) -> float:
        """Half the integral of the score's shift over log alpha^2 / sigma^2 between times 0 <= start < end <= 1.

        It is the fall of the divergence from start to end.
        """
        nodes, shares = np.polynomial.legendre.leggauss(TIMES)
        times = start + (end - start) * (nodes + 1) / 2
        t, path = torch.from_numpy(times), self.path
        slope = path.sigma_derivative(t) / path.sigma(t) - path.alpha_derivative(t) / path.alpha(t)
        shifts = np.array([self.at(time).score_shift for time in times.tolist()])
        return float((shares * (end - start) / 2) @ (slope.numpy() * shifts))

    def branches(self, levels: Sequence[float], count: int, branches: int, generator: torch.Generator) -> Tensor:
        """Rewards (levels, count, branches) given snapshots of `count` chains at ascending levels; see `branching`."""
        x, before = self.reward.base.sample(count, generator), torch.tensor(0.0, dtype=torch.double)
        rewards = []
        for level in levels:
            t = torch.tensor(level, dtype=torch.double)
            kept, noise = self.path.alpha(t) / self.path.alpha(before), conditional_sigma(self.path, t, before)
            x = kept * x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            before = t
            posterior = self.reward.base.posterior(self.path, x, t.expand(count))
            drawn = torch.multinomial(posterior.weights, branches, replacement=True, generator=generator)
            means, scales = posterior.means @ self.reward.direction, posterior.variances.sqrt()
            spread = torch.randn(count, branches, generator=generator, dtype=x.dtype)
            rewards.append(means.gather(1, drawn) + scales.gather(1, drawn) * spread)
        return torch.stack(rewards)

"""DDPO (Black et al. 2024), the paper's baseline: the sampler as a policy, its Gaussian steps as actions.

With eta > 0 each step of `Ddim` draws x_s ~ N(mean(x_t), tau^2 I), so that a trajectory has an exact likelihood. The
gradient of the expected reward is estimated with importance ratios, clipped as in PPO (Schulman et al. 2017). Steps are
weighted by their noise, which the paper does not do and which biases that gradient; see `step_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from graft.errors import UserError
from graft.paths import NoiseSchedule
from graft.sampling import Ddim, Normal

LARGEST_LOG_RATIO = 20.0
"""Where log ratios are cut off. One step of a policy moves a mean that is near the data by many tau, and float32's exp
overflows at 88; in the gradient of a term that the clip has left out, infinity times zero would be NaN."""


@dataclass(frozen=True)
class Trajectory:
    """B rollouts of K random steps: the states (K, B, ...) before and after each, and the times (K,) float64 of both.

    x_0: (B, ...), where the rollouts ended. log_density: (K, B), see `log_density`, under the policy that drew them.
    """

    before: Tensor
    after: Tensor
    t: Tensor
    s: Tensor
    log_density: Tensor
    x_0: Tensor


def joined(parts: Sequence[Trajectory]) -> Trajectory:
    """The rollouts of several trajectories through the same times as one."""
    return Trajectory(
        before=torch.cat([part.before for part in parts], dim=1),
        after=torch.cat([part.after for part in parts], dim=1),
        t=parts[0].t,
        s=parts[0].s,
        log_density=torch.cat([part.log_density for part in parts], dim=1),
        x_0=torch.cat([part.x_0 for part in parts]),
    )


@torch.no_grad()
def draw_trajectory(update: Ddim, noise: Tensor, times: Sequence[float], normal: Normal) -> Trajectory:
    """Roll out noise (B, ...) through descending times; steps with tau = 0 leave nothing to learn from.

    Raises UserError if all steps are such (eta = 0).
    """
    x, steps = noise, []
    for t, s in pairwise(times):
        mean, tau = update.transition(x, t, s)
        following = mean + tau * normal().to(x.dtype) if tau > 0 else mean
        if tau > 0:
            step_times = torch.tensor([t, s], dtype=torch.double)
            steps.append((x, following, *step_times, log_density(following, mean, tau)))
        x = following
    if not steps:
        raise UserError(f"DDPO needs a sampler that draws, eta = {update.eta} does not; raise sampler.eta")
    before, after, t, s, density = (torch.stack(column) for column in zip(*steps, strict=True))
    return Trajectory(before, after, t, s, density, x_0=x)


def log_density(x: Tensor, mean: Tensor, tau: float | Tensor) -> Tensor:
    """Log density of N(mean, tau^2 I) at x, both (B, ...), up to a constant: -||x - mean||^2 / (2 tau^2), (B,).

    tau: of the whole batch, or (B,).

    In a subspace (centred coordinates, masked atoms) the directions that are left out contribute nothing.
    """
    return (-(x - mean).flatten(1).double().square().sum(dim=1) / (2 * tau**2)).float()


def step_weights(path: NoiseSchedule, t: Tensor) -> Tensor:
    """Weights (K,) float32 of the steps from times t (K,) in the objective: sigma_t^2 over its mean.

    In the plain sum over steps those near the data drown all others, as the densities' gradients grow when the noise
    falls. Weights leave each step's direction of ascent as it is and change what steps are worth to one another: their
    sum is no longer the unbiased gradient of the expected reward (TempFlow-GRPO, He et al. 2025, arXiv 2508.04324,
    weights by the noise as well).
    """
    variance = path.sigma(t).square()
    return (variance / variance.mean()).float()


def advantages(rewards: Tensor, conditions: Tensor) -> Tensor:
    """Rewards (B,) normalised to mean 0 and standard deviation 1 within each condition (B,) integer; float32.

    A condition whose rewards are all equal has nothing to teach: advantage 0.
    """
    # In double precision the mean of equal float32 rewards is their value, so that no rounding error is scaled up.
    rewards = rewards.double()
    _, group = conditions.unique(return_inverse=True)
    count = torch.bincount(group).double()
    mean = torch.zeros_like(count).index_add_(0, group, rewards) / count
    centred = rewards - mean[group]
    variance = torch.zeros_like(count).index_add_(0, group, centred.square()) / count
    return (centred / variance.sqrt()[group].clamp(min=1e-6)).float()


def clipped_objective(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's loss -mean min(r A, clip(r, 1 - clip, 1 + clip) A), a scalar; r = exp(log_ratio) (B,), A (B,).

    At log_ratio = 0 its gradient is minus the policy gradient, E[A grad log p].
    """
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()

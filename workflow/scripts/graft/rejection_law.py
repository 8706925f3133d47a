"""The law of accepted samples against p(x) exp(r̂(x) / alpha), and which rule buys reward at the least divergence.

All of it on a base with a known density: a Gaussian mixture in the plane with a linear reward, whose law under the base
is a mixture on the line. Divergences are KL(law || base), in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import betainc, xlogy
from scipy.stats import chi2, chisquare, sem
from torch import Tensor

from graft.grids import Grid, total_variation
from graft.mixture import PLANE, GaussianMixture
from graft.rejection import BestOf, Exponential, Rule, Threshold, TopK, deduplicate

LEAST_EXPECTED = 5
"""Expected count below which cells are merged (chi-square) or left out (de-duplication)."""

SIMULATIONS = 50
"""Sets of samples drawn from a law, for the total variation that chance alone gives."""

LINE_BINS = 20_000
"""Bins of a reward's law on the line, over LINE_DEVIATIONS standard deviations to either side of every component."""

LINE_DEVIATIONS = 10


@dataclass(frozen=True)
class LinearReward:
    """r(x) = direction . x, direction (D,), for x under `base`, a mixture in D dimensions."""

    base: GaussianMixture
    direction: Tensor

    def __call__(self, x: Tensor) -> NDArray[np.float64]:
        """Rewards (B,) of x (B, D)."""
        return (x @ self.direction).numpy()

    def cdf(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """F(r) = P(reward <= r) under the base, (B,) for rewards (B,)."""
        return self.law().cdf(torch.as_tensor(rewards, dtype=torch.double)[..., None]).numpy()

    def law(self) -> GaussianMixture:
        """The reward's law under the base, on the line."""
        return self.base.projected(self.direction)

    def reshaped(self, rule: Rule) -> Callable[[Tensor], NDArray[np.float64]]:
        """r̂(x) / alpha of a rule as a function of x (B, D), up to a constant."""
        return lambda x: rule.reshaped_reward(self(x), self.cdf(self(x)))

    def tilt(self, strength: float) -> tuple[float, float]:
        """Divergence and expected reward of the law p(x) exp(strength r(x)) / Z: strength E[r] - log Z, E[r]."""
        slope = strength * self.direction
        reward = (self.base.tilted(slope).mean() @ self.direction).item()
        return strength * reward - self.base.log_moment(slope).item(), reward

    def frontier(self, divergence: float) -> float:
        """The largest expected reward of any law at this divergence (>= 0) from the base: the exponential tilt's."""
        most = 1.0
        while self.tilt(most)[0] < divergence:
            most *= 2
        strength = brentq(lambda strength: self.tilt(strength)[0] - divergence, 0, most, xtol=1e-12)
        return self.tilt(strength)[1]

    def expected(self, rule: Rule) -> float:
        """E[r] over what a rule accepts, by bins on the line: a bin is an atom, which rules average over."""
        law = self.law()
        spread = LINE_DEVIATIONS * law.variances.max().sqrt()
        edges = np.linspace((law.centres.min() - spread).item(), (law.centres.max() + spread).item(), LINE_BINS + 1)
        middles, cdf = (edges[1:] + edges[:-1]) / 2, self.cdf(edges)
        weights = np.diff(cdf) * np.exp(rule.reshaped_reward(middles, cdf[1:], cdf[:-1]))
        return float(weights @ middles / weights.sum())


ON_PLANE = LinearReward(PLANE, torch.tensor([0.6, 0.8], dtype=torch.double))
"""The reward of the checks on the planar base."""


def closed_divergence(rule: Rule, reward: LinearReward) -> float:
    """KL(accepted || base) in closed form, for a reward with a continuous law.

    BestOf(n): log n - (n - 1) / n. Threshold(c): -log P(r >= c). TopK(k, m): the integral over u in [0, 1] of
    g log g, with g(u) = (m / k) I_u(m - k, k) the density of F(r) among the accepted. Exponential(alpha): that of the
    tilt by r / alpha.
    """
    match rule:
        case BestOf(n=n):
            return math.log(n) - (n - 1) / n
        case Threshold(c=c):
            return -math.log1p(-reward.cdf(np.array([c]))[0])
        case TopK(k=k, m=m) if k == m:
            return 0.0
        case TopK(k=k, m=m):
            return quad(lambda u: _entropy(m / k * betainc(m - k, k, u)), 0, 1)[0]
        case Exponential(alpha=alpha):
            return reward.tilt(1 / alpha)[0]
    raise TypeError(f"no closed divergence of {rule!r}")


def frontier_rows(reward: LinearReward, rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """For each rule its divergence, its expected reward, and the largest reward that any law has at this divergence."""
    rows = []
    for rule in rules:
        kl = closed_divergence(rule, reward)
        rewards = {"expected_reward": reward.expected(rule), "frontier_reward": reward.frontier(kl)}
        rows.append({**described(rule), "kl": kl, **rewards})
    return rows


def described(rule: Rule) -> dict[str, str]:
    """A rule's name and its parameters, as TopK and 'k=1, m=4'."""
    parameters = ", ".join(f"{name}={value:g}" for name, value in asdict(rule).items())
    return {"rule": type(rule).__name__, "parameter": parameters}


@dataclass(frozen=True)
class AcceptedLaw:
    """The law p(x) exp(r̂(x) / alpha) / Z on a grid.

    cells: (cells, cells), probabilities. divergence: from the base. reward: its expectation.
    """

    cells: Tensor
    divergence: float
    reward: float

    @classmethod
    def on(cls, grid: Grid, reward: LinearReward, reshaped: Callable[[Tensor], NDArray[np.float64]]) -> AcceptedLaw:
        """By the values at the grid's nodes; `reshaped` gives r̂ / alpha (B,), -inf where nothing is accepted."""
        nodes = grid.nodes()
        base, values = reward.base.log_density(nodes).softmax(dim=0).numpy(), reshaped(nodes)
        tilted = base * np.exp(values)
        law, some = tilted / tilted.sum(), tilted > 0
        return cls(
            cells=grid.law(torch.from_numpy(law)),
            divergence=float(law[some] @ values[some] - np.log(tilted.sum())),
            reward=float(law @ reward(nodes)),
        )


def check_rule(
    rule: Rule, reward: LinearReward, grid: Grid, x: Tensor, generator: np.random.Generator
) -> dict[str, Any]:
    """A rule's accepted samples, out of the base's draws x (M, 2), against its law; one row of the table.

    Of the samples that a group of TopK or BestOf accepts one is taken, at random, so that the samples are independent;
    under the other rules each is independent of the others (Exponential: to O(1/M), for the largest reward).
    """
    accepted, _ = deduplicate(np.arange(len(x)) // group_size(rule), rule.accept(reward(x), generator), generator)
    chosen, reshaped = x[torch.from_numpy(accepted)], reward.reshaped(rule)
    law = AcceptedLaw.on(grid, reward, reshaped)
    return {
        **described(rule),
        "chi_square_p": chi_square_p(grid.counts(chosen).flatten().numpy(), law.cells.flatten().numpy()),
        "kl_closed": closed_divergence(rule, reward),
        **_compared(law, reward, reshaped, grid, x, chosen, generator),
    }


def check_deduplication(
    rule: Threshold, reward: LinearReward, grid: Grid, x: Tensor, draws: int, generator: np.random.Generator
) -> dict[str, Any]:
    """The same for a threshold with de-duplication, keys being the grid's cells, over independent repetitions.

    x (M, 2) are M / draws repetitions of `draws` draws; a remainder is left out. Where one draw has a key and is
    accepted with probability q, log(`kept_probability` / q) is added to r̂ / alpha. A closed form of the divergence is
    not known. As no two samples of a repetition share a key, their distance from the law is below that by chance.
    """
    repetitions, nodes = len(x) // draws, grid.nodes()
    x = x[: repetitions * draws]
    accepted_base = reward.base.log_density(nodes).softmax(dim=0) * torch.from_numpy(
        rule.accept(reward(nodes), generator)
    )
    q = grid.sums(accepted_base).flatten().numpy()
    change = np.log(np.divide(kept_probability(q, draws), q, out=np.ones_like(q), where=q > 0))

    def reshaped(x: Tensor) -> NDArray[np.float64]:
        return reward.reshaped(rule)(x) + change[grid.cell_of(x).numpy()]

    keys = np.arange(len(x)) // draws * len(q) + grid.cell_of(x).numpy()
    kept, _ = deduplicate(keys, rule.accept(reward(x), generator), generator)
    chosen, alone = x[torch.from_numpy(kept)], described(rule)
    return {
        "rule": f"{alone['rule']}, one a key",
        "parameter": f"{alone['parameter']}, draws={draws}",
        "chi_square_p": occupancy_p(grid.counts(chosen).flatten().numpy(), q, draws, repetitions),
        "kl_closed": None,
        **_compared(AcceptedLaw.on(grid, reward, reshaped), reward, reshaped, grid, x, chosen, generator),
    }


def kept_probability(q: NDArray[np.float64], draws: int) -> NDArray[np.float64]:
    """1 - (1 - q)^draws: that at least one of `draws` draws has a key and is accepted, q in [0, 1) being one draw's."""
    return -np.expm1(draws * np.log1p(-q))


def group_size(rule: Rule) -> int:
    """How many consecutive samples compete with one another under a rule; 1 where each is accepted for itself."""
    match rule:
        case TopK(m=size) | BestOf(n=size):
            return size
    return 1


def chi_square_p(counts: NDArray, probabilities: NDArray) -> float:
    """Pearson's p-value of independent samples' counts (cells,); cells of small expectation are merged into one."""
    expected = probabilities * counts.sum()
    order = np.argsort(-expected)
    alone = int((expected >= LEAST_EXPECTED).sum())
    if expected[order[alone:]].sum() < LEAST_EXPECTED:
        alone -= 1
    starts = np.arange(alone + 1)
    return float(chisquare(*(np.add.reduceat(values[order], starts) for values in (counts, expected))).pvalue)


def occupancy_p(counts: NDArray, q: NDArray, draws: int, repetitions: int) -> float:
    """The p-value of how many repetitions kept each key, counts (cells,), given q (cells,) of one draw.

    Of one repetition the indicators of two keys have the covariance (1 - q_i - q_j)^draws - (1 - q_i)^draws
    (1 - q_j)^draws. The counts' Mahalanobis distance to their expectation is chi-square in the limit; keys that are
    kept, or missing, too rarely for it are left out.
    """
    missing = (1 - q) ** draws
    used = repetitions * np.minimum(missing, 1 - missing) >= LEAST_EXPECTED
    q, missing = q[used], missing[used]
    covariance = (1 - q[:, None] - q) ** draws - np.outer(missing, missing)
    np.fill_diagonal(covariance, missing * (1 - missing))
    off = counts[used] - repetitions * kept_probability(q, draws)
    return float(chi2.sf(off @ np.linalg.solve(repetitions * covariance, off), df=used.sum()))


def _entropy(g: float) -> float:
    """g log g, 0 at 0."""
    return float(xlogy(g, g))


def _compared(
    law: AcceptedLaw,
    reward: LinearReward,
    reshaped: Callable[[Tensor], NDArray[np.float64]],
    grid: Grid,
    x: Tensor,
    chosen: Tensor,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """What every row says: distances, divergences and expected rewards of the chosen samples and of their law.

    By chance, as many independent samples of the law itself are at that total variation from it, on average. The
    samples' divergence is the mean of log q / p = r̂ / alpha - log Z at the chosen ones, with Z the mean of
    exp(r̂ / alpha) over all draws x; its standard error takes the two means for independent.
    """
    count, cells = len(chosen), law.cells.flatten()
    simulated = torch.from_numpy(generator.multinomial(count, cells.numpy(), size=SIMULATIONS)) / count
    ratios, normaliser, rewards = reshaped(chosen), np.exp(reshaped(x)), reward(chosen)
    return {
        "samples": count,
        "total_variation": total_variation(grid.counts(chosen) / count, law.cells),
        "total_variation_by_chance": float(np.mean([total_variation(shares, cells) for shares in simulated])),
        "kl_law": law.divergence,
        "kl_samples": float(ratios.mean() - np.log(normaliser.mean())),
        "kl_samples_stderr": float(np.hypot(sem(ratios), sem(normaliser) / normaliser.mean())),
        "expected_reward": law.reward,
        "reward_samples": float(rewards.mean()),
        "reward_samples_stderr": float(sem(rewards)),
    }

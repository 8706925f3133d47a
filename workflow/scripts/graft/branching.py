"""What a snapshot x_c knows of the reward that its chain ends with, from several continuations of each snapshot.

Rewards are arrays (levels, n, branches): `branches` independent samples x_0 given each of n snapshots of the base's
chains at each noise level, NaN where a sample has none. At the data a snapshot is its own continuation, so there its
branches are equal. `groups` (n,) are the conditions within which rewards are compared. No fine-tuning is needed for any
of it, and every snapshot counts, also of chains whose own sample would not be accepted.

Bias: above a cut c the tuned law is p_c(x_c) â(x_c) / E[A], with â(x_c) = E[A | x_c] and A the acceptance, and the base
leads it to the data. So what can be gained falls with c (`pgraft_gain`), as the snapshot fixes less of the reward
(`conditional_variances`). Variance: KL_c = KL(p_c â / E[A] || p_c) is how far fine-tuning has to move the base
(`divergences`). It falls with c, and between two levels it falls by half the integral of E ||eps_tuned - eps_base||^2
over log alpha^2 / sigma^2, so its slope says where the score has to move.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import xlogy

from graft.rejection import Rule

Array = NDArray[np.float64]


def fixed_share(rewards: Array, groups: NDArray[np.int64]) -> float | None:
    """1 - E Var(r | x_c) / Var r, the share of the reward's variance within a group that snapshots x_c fix.

    rewards (n, branches), of one level; groups (n,). Both variances are unbiased, so the share can fall slightly
    outside [0, 1]. None where all rewards of a group are equal, or no group has two snapshots.
    """
    within = np.nanmean(conditional_variances(rewards))
    means = pd.Series(np.nanmean(rewards, axis=1)).groupby(groups)
    free = len(rewards) - means.ngroups
    if not free:
        return None
    between = means.transform(lambda group: (group - group.mean()) ** 2).sum() / free
    # The variance of the branches' means holds 1 / branches of the variance within.
    total = between + within * (1 - 1 / rewards.shape[1])
    return float(1 - within / total) if total > 0 else None


def conditional_variances(rewards: Array) -> Array:
    """Unbiased Var(r | x_c) of each snapshot, (..., n), from rewards (..., n, branches); NaN with fewer than two."""
    known = np.isfinite(rewards)
    count = known.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, rewards, 0).sum(axis=-1, keepdims=True) / count
        squares = np.where(known, rewards - mean, 0) ** 2
        return squares.sum(axis=-1) / (count[..., 0] - 1)


def relative_acceptance(rewards: Array, groups: NDArray[np.int64], rule: Rule) -> Array:
    """E[A | x_0] / E[A] of each continuation under a rule, (levels, n, branches), with mean 1 in each group.

    The rule's reshaped reward takes F from all rewards of the group, whatever their level: each of them is a sample of
    the base. NaN where the reward is, and in a group of which nothing is accepted.

    Where groups are small, F and E[A] are estimates from few chains, and what is computed from them is biased. With
    Gaussian rewards, four chains a group, TopK(1, 4), seven levels and eight branches, KL comes out as 0.58 instead of
    0.64 at the data and as 0.03 instead of 0 at the noise, the gain as 0.86 instead of 1.03 and as 0.06 instead of 0.
    """
    flat, of = rewards.ravel(), np.broadcast_to(groups[:, None], rewards.shape).ravel()
    pool = pd.Series(flat).groupby(of)
    count = pool.transform("count")
    cdf, cdf_left = pool.rank(method="max") / count, (pool.rank(method="min") - 1) / count
    reshaped = pd.Series(np.where(np.isnan(flat), np.nan, rule.reshaped_reward(flat, cdf, cdf_left))).groupby(of)
    # Less the group's largest, of which only the ratio matters, nothing overflows.
    accepted = np.exp(reshaped.obj - reshaped.transform("max").replace(-np.inf, np.nan))
    return (accepted / accepted.groupby(of).transform("mean")).to_numpy().reshape(rewards.shape)


def divergences(acceptance: Array) -> Array:
    """Contributions (levels, n) of the snapshots to KL_c in nats, from `relative_acceptance`; their mean estimates it.

    KL_c = E[u log u] = E[u log u - u + 1] over the base's snapshots, with u = â(x_c) / E[A] and E[u] = 1; the second
    form varies less. The mean of few branches instead of u makes it too large (`plug_in_divergences`), by
    Var(A | x_c) / (2 u E[A]^2 branches) to first order, which the jackknife over a snapshot's branches takes out. So
    contributions may be negative. NaN with fewer than two branches.
    """
    count = np.isfinite(acceptance).sum(axis=-1, keepdims=True)
    total = np.nansum(acceptance, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        without_one = _divergence((total - acceptance) / (count - 1))
        mean_without = np.nansum(without_one, axis=-1) / count[..., 0]
    corrected = count[..., 0] * plug_in_divergences(acceptance) - (count[..., 0] - 1) * mean_without
    return np.where(count[..., 0] > 1, corrected, np.nan)


def plug_in_divergences(acceptance: Array) -> Array:
    """The same with the mean over the branches as if it were u, which is too large; (levels, n)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return _divergence(np.nansum(acceptance, axis=-1) / np.isfinite(acceptance).sum(axis=-1))


def pgraft_gain(rewards: Array, acceptance: Array, groups: NDArray[np.int64]) -> Array:
    """Contributions (levels, n) of the snapshots to E[u r] - E[r], the gain of P-GRAFT's exact law over the base.

    u = â(x_c) / E[A] and r are estimated from different branches of the snapshot (their products with themselves are
    left out), so that the mean of the contributions is unbiased where groups are large. r is taken less its group's
    mean and u less 1, which varies less. NaN with fewer than two branches.
    """
    of = np.broadcast_to(groups[:, None], rewards.shape).ravel()
    mean = pd.Series(rewards.ravel()).groupby(of).transform("mean").to_numpy().reshape(rewards.shape)
    r, u = rewards - mean, acceptance - 1
    count = np.isfinite(r * u).sum(axis=-1)
    products = np.nansum(r, axis=-1) * np.nansum(u, axis=-1) - np.nansum(r * u, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / (count * (count - 1))


def tilts(rewards: Array, groups: NDArray[np.int64], rule: Rule) -> dict[str, Array]:
    """What each snapshot contributes, (levels, n), to how a rule tilts the base's law at each level, by name."""
    acceptance = relative_acceptance(rewards, groups, rule)
    return {
        "kl": divergences(acceptance),
        "kl_plug_in": plug_in_divergences(acceptance),
        "pgraft_gain": pgraft_gain(rewards, acceptance, groups),
    }


def estimate(contributions: Array, groups: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard error of one level's contributions (n,), NaN left out.

    Snapshots of one condition are not independent: where there are several conditions, each counts once, with the mean
    of its snapshots, and the standard error is over conditions; otherwise it is over snapshots.
    """
    units = groups if len(np.unique(groups)) > 1 else np.arange(len(groups))
    means = pd.Series(contributions).groupby(units).mean()
    return float(means.mean()), float(means.sem())


def is_non_decreasing(contributions: Array, groups: NDArray[np.int64], errors: float = 2.0) -> bool:
    """Whether the means of contributions (levels, n) rise from each level to the next, or fall by noise alone.

    Noise is up to so many standard errors of the difference, which is paired: the chains are the same at all levels.
    """
    steps = [estimate(step, groups) for step in np.diff(contributions, axis=0)]
    return all(mean >= -errors * error for mean, error in steps)


def elbow(contributions: Array, information: Array, groups: NDArray[np.int64]) -> tuple[Array, Array]:
    """How much more than its share of the movement a cut at each level keeps above itself, with standard errors.

    contributions: to KL_c, (levels, n), levels ascending from the data to the noise. information: what x_c holds of
    x_0, (levels,), falling, finite and up to a factor (see `graft.paths.unit_information`). With both scaled to 1 at
    the first level and 0 at the last the elbow, (levels,) in [-1, 1] but for noise, is their difference, and the level
    where it is largest is the suggested cut: above it are the levels, from the noise down, where the score has to move
    more than on average for what learning them costs.

    The cost: a fit to n samples is off by about the same share (parameters / n) of the residual
    ||x_0 - E[x_0 | x_t]||^2 at every level. Over the levels above c that comes to this share of the integral of half
    the residual over alpha^2 / sigma^2, in nats of the path, and the integral is the information that x_c holds of x_0
    (I-MMSE: Guo, Shamai and Verdu 2005). The share is unknown and cancels where both are scaled, so nothing is left to
    tune. It also means that the rule sees neither how many samples there are nor how well the network knows them, and
    that both ends have 0: the data end, which comes first, is suggested if no level above has more.

    NaN if the divergence does not differ between the ends.
    """

    def scaled(values: Array) -> Array:
        return (values - values[-1]) / (values[0] - values[-1])

    divergence = np.array([estimate(level, groups)[0] for level in contributions])
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = scaled(divergence)
        # The ratio's linearisation: what a snapshot adds to it.
        change = contributions - contributions[-1] - kept[:, None] * (contributions[0] - contributions[-1])
        errors = np.array([estimate(level, groups)[1] for level in change / (divergence[0] - divergence[-1])])
    return kept - scaled(information), errors


def _divergence(u: Array) -> Array:
    u = u.clip(min=0)  # rounding leaves less than 0 where all other branches are refused
    return xlogy(u, u) - u + 1

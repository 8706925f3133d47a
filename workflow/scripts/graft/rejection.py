"""Generalised rejection sampling: rules that accept samples by their rewards, and the law of what they accept.

Accepted samples follow p(x) E[A | x] / E[A], with p the base and A the acceptance. That is the optimum of
E[r̂(x)] - alpha KL(q || p) over q for the reshaped reward r̂(x) / alpha = log E[A | x] + constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from graft.errors import UserError

NARROW = 1e-6
"""Jump of the CDF, relative to its height, below which an average over the jump is its value in the middle."""


class Rule(Protocol):
    """What the rules of this module share."""

    def accept(self, rewards: ArrayLike, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Mask (M,) of the accepted samples.

        rewards (M,) are all rewards of ONE condition, in the order of drawing. Raises UserError if one is NaN or
        infinite.
        """
        ...

    def reshaped_reward(
        self, rewards: ArrayLike, cdf: ArrayLike, cdf_left: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """r̂ / alpha up to a constant, in the common shape of the arguments; -inf for what is never accepted.

        cdf in [0, 1] is F(r) = P(reward <= r) under the base at `rewards`, and cdf_left is F(r-) = P(reward < r);
        without it the rewards have no atoms, cdf_left = cdf.
        """
        ...


@dataclass(frozen=True)
class TopK:
    """The best k of each consecutive group of m; a remainder is not accepted, ties are broken at random.

    Raises ValueError unless 1 <= k <= m.
    """

    k: int
    m: int

    def __post_init__(self) -> None:
        _check_whole("k", self.k)
        _check_whole("m", self.m)
        if self.k > self.m:
            raise ValueError(f"k = {self.k} exceeds the group's size m = {self.m}")

    def accept(self, rewards: ArrayLike, generator: np.random.Generator) -> NDArray[np.bool_]:
        """See `Rule.accept`; one uniform number is drawn for each sample of a whole group."""
        rewards = _checked(rewards)
        mask = np.zeros(len(rewards), dtype=bool)
        grouped = len(rewards) // self.m * self.m
        groups = rewards[:grouped].reshape(-1, self.m)
        ascending = np.lexsort((generator.random(groups.shape), groups), axis=1)
        np.put_along_axis(mask[:grouped].reshape(-1, self.m), ascending[:, self.m - self.k :], True, axis=1)
        return mask

    def reshaped_reward(
        self, rewards: ArrayLike, cdf: ArrayLike, cdf_left: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """log E[A | x] = log I_F(m - k, k), the probability that fewer than k of m - 1 others are better.

        At an atom, where a tie puts x at random into its jump: the log of the average of I_u over u in [F(r-), F(r)].
        See `Rule.reshaped_reward`; -inf also where a double cannot hold the probability (below 1e-308).
        """
        high, low = _jump(rewards, cdf, cdf_left)
        if self.k == self.m:
            return np.zeros(high.shape)
        with np.errstate(divide="ignore"):
            return np.log(_mean_betainc(self.m - self.k, self.k, low, high))


@dataclass(frozen=True)
class BestOf:
    """The best of each consecutive group of n: TopK(1, n).

    Raises ValueError unless n >= 1.
    """

    n: int

    def __post_init__(self) -> None:
        _check_whole("n", self.n)

    def accept(self, rewards: ArrayLike, generator: np.random.Generator) -> NDArray[np.bool_]:
        """See `TopK.accept`."""
        return TopK(1, self.n).accept(rewards, generator)

    def reshaped_reward(
        self, rewards: ArrayLike, cdf: ArrayLike, cdf_left: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """log E[A | x] = (n - 1) log F; at an atom log (Fⁿ - F₋ⁿ) / (n (F - F₋)), F₋ = F(r-).

        See `Rule.reshaped_reward`.
        """
        from scipy.special import xlogy  # here, as in _mean_betainc: who only reads the configuration need not wait

        high, low = _jump(rewards, cdf, cdf_left)
        # With the jump's share s = 1 - F₋/F the fraction is F^(n-1) (1 - (1 - s)ⁿ) / (n s), exact for any small s.
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (high - low) / high
            tied = -np.expm1(self.n * np.log1p(-share)) / (self.n * share)
        return xlogy(self.n - 1, high) + np.log(np.where(share > 0, tied, 1))


@dataclass(frozen=True)
class Exponential:
    """Each sample with probability exp((r - r_max) / alpha), r_max the largest of the rewards given.

    alpha is in units of the reward. Raises ValueError unless 0 < alpha < inf.
    """

    alpha: float

    def __post_init__(self) -> None:
        _check_finite("alpha", self.alpha)
        if self.alpha <= 0:
            raise ValueError(f"alpha = {self.alpha} is not positive")

    def accept(self, rewards: ArrayLike, generator: np.random.Generator) -> NDArray[np.bool_]:
        """See `Rule.accept`; one uniform number is drawn for each sample. The best is always accepted."""
        rewards = _checked(rewards).astype(np.float64)
        below = rewards - rewards.max(initial=-np.inf)
        return generator.random(len(rewards)) < np.exp(below / self.alpha)

    def reshaped_reward(
        self, rewards: ArrayLike, cdf: ArrayLike, cdf_left: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """r / alpha, to O(1/M) since r_max depends on the M samples; see `Rule.reshaped_reward`."""
        high, _ = _jump(rewards, cdf, cdf_left)
        return np.broadcast_to(rewards, high.shape) / self.alpha


@dataclass(frozen=True)
class Threshold:
    """Every sample whose reward is at least c (binary rewards: c = 1).

    Raises ValueError unless c is finite.
    """

    c: float

    def __post_init__(self) -> None:
        _check_finite("c", self.c)

    def accept(self, rewards: ArrayLike, generator: np.random.Generator) -> NDArray[np.bool_]:
        """See `Rule.accept`; nothing is drawn."""
        return _checked(rewards) >= self.c

    def reshaped_reward(
        self, rewards: ArrayLike, cdf: ArrayLike, cdf_left: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """log 1[r >= c]: 0 or -inf; see `Rule.reshaped_reward`."""
        high, _ = _jump(rewards, cdf, cdf_left)
        return np.where(np.broadcast_to(rewards, high.shape) >= self.c, 0.0, -np.inf)


RULES: dict[str, type[Rule]] = {rule.__name__: rule for rule in (TopK, BestOf, Exponential, Threshold)}
"""The rules by the name that configuration files give them."""


def rule_from(settings: Mapping[str, Any]) -> Rule:
    """The rule that configuration describes, for instance {type: TopK, k: 1, m: 4}.

    Parameters that are None count as absent: that is how an overlay drops what the default's rule brings. Raises
    UserError for an unknown type, for missing or unknown parameters, and for values that the rule refuses.
    """
    parameters = {name: value for name, value in settings.items() if value is not None}
    name = parameters.pop("type", None)
    if name not in RULES:
        raise UserError(f"rejection rule: unknown type {name!r}; the known ones are {', '.join(RULES)}")
    expected = [field.name for field in fields(RULES[name])]
    superfluous = [parameter for parameter in parameters if parameter not in expected]
    if superfluous or len(parameters) < len(expected):
        hint = f"; set {superfluous[0]}: null to drop the one that the default brings" if superfluous else ""
        found = ", ".join(parameters) or "nothing"
        raise UserError(f"rejection rule {name}: give it exactly {', '.join(expected)}; found {found}{hint}")
    try:
        return RULES[name](**parameters)
    except ValueError as error:
        raise UserError(f"rejection rule {name}: {error}; change it in the configuration") from error


def accept_by_condition(
    rule: Rule, rewards: ArrayLike, conditions: ArrayLike, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Mask (M,) of the samples that `rule` accepts when applied within each condition (to each prompt's samples, say).

    rewards (M,), and conditions (M,), integers >= 0; the samples of one condition need not be neighbours, their order
    counts. Each condition has a stream of its own, a function of `generator`'s state on entry and the condition's
    value, so what is accepted for one does not depend on which others are present. `generator` advances by the same
    amount whatever the samples are. Raises UserError if a reward is NaN or infinite, and ValueError if `conditions`
    are not as many integers >= 0.
    """
    rewards, conditions = _checked(rewards), np.asarray(conditions)
    if conditions.shape != rewards.shape:
        raise ValueError(f"{rewards.shape} rewards, but {conditions.shape} conditions")
    if conditions.size and (not np.issubdtype(conditions.dtype, np.integer) or conditions.min() < 0):
        raise ValueError(f"conditions are to be integers >= 0, found {conditions.dtype} from {conditions.min()}")
    entropy = generator.integers(2**32, size=4).tolist()
    order = np.argsort(conditions, kind="stable")
    values, starts = np.unique(conditions[order], return_index=True)
    mask = np.zeros(len(rewards), dtype=bool)
    for value, members in zip(values, np.split(order, starts)[1:], strict=True):
        stream = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(int(value),)))
        mask[members] = rule.accept(rewards[members], stream)
    return mask


def deduplicate(
    keys: Sequence[str], accepted: ArrayLike, generator: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Keep one of the accepted samples of each key (canonical SMILES, say), chosen at random.

    keys and accepted (bool) are (M,), all samples of a round, after the rule; the keys of several conditions have to
    differ. Returns the mask (M,)
    of what is kept and, (M,), the number of accepted copies of a kept sample's key, 0 for all other samples. Given
    the draw this adds -log(copies) to r̂ / alpha; in law a key is kept with probability 1 - (1 - q)^M, where q is the
    probability that one draw has this key and is accepted. Raises ValueError if the lengths differ.
    """
    keys, accepted = np.asarray(keys), np.asarray(accepted, dtype=bool)
    if keys.shape != accepted.shape:
        raise ValueError(f"{keys.shape} keys, but {accepted.shape} samples")
    shuffled = generator.permutation(np.flatnonzero(accepted))
    _, first, counts = np.unique(keys[shuffled], return_index=True, return_counts=True)
    mask, copies = np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
    mask[shuffled[first]] = True
    copies[shuffled[first]] = counts
    return mask, copies


def _mean_betainc(a: int, b: int, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average of I_u(a, b) over u in [low, high]; I_high(a, b) where the two are equal."""
    from scipy.special import betainc

    def integral(u: NDArray[np.float64]) -> NDArray[np.float64]:
        # By parts: the integral of I over [0, u] is u I_u(a, b) - E[U; U <= u] for U ~ Beta(a, b).
        return u * betainc(a, b, u) - a / (a + b) * betainc(a + 1, b, u)

    width = high - low
    # Over narrow jumps the difference loses digits, while the middle is right to ((a + b) width / high)² / 24.
    narrow = width <= NARROW * high
    # Where all is about to underflow, rounding can leave a difference below zero.
    mean = (integral(high) - integral(low)).clip(min=0) / np.where(narrow, 1, width)
    return np.where(narrow, betainc(a, b, (low + high) / 2), mean)


def _jump(
    rewards: ArrayLike, cdf: ArrayLike, cdf_left: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F(r) and F(r-) as float64 arrays in the common shape of all three."""
    _, high, low = np.broadcast_arrays(rewards, cdf, cdf if cdf_left is None else cdf_left)
    return high.astype(np.float64), low.astype(np.float64)


def _checked(rewards: ArrayLike) -> NDArray[Any]:
    rewards = np.asarray(rewards)
    if rewards.ndim != 1:
        raise ValueError(f"rewards are to be one-dimensional, not {rewards.shape}")
    bad = np.flatnonzero(~np.isfinite(rewards))
    if len(bad):
        raise UserError(
            f"rewards: sample {bad[0]} has reward {rewards[bad[0]]} ({len(bad)} of {len(rewards)} are not finite); "
            "mend the reward function, or let it give such samples a low finite reward"
        )
    return rewards


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} = {value!r} is not a whole number of at least 1")


def _check_finite(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} = {value!r} is not a finite number")

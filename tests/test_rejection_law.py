"""Acceptance rules against their laws on a planar mixture: closed forms, the frontier, and tests that can fail."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from graft import rejection_law
from graft.grids import Grid
from graft.mixture import PLANE, GaussianMixture
from graft.rejection import BestOf, Exponential, Threshold, TopK
from graft.rejection_law import (
    AcceptedLaw,
    LinearReward,
    check_deduplication,
    check_rule,
    chi_square_p,
    closed_divergence,
    frontier_rows,
    occupancy_p,
)

REWARD = LinearReward(PLANE, torch.tensor([0.6, 0.8], dtype=torch.double))
GRID = Grid(extent=5.0, cells=16, points=16)
NORMAL = LinearReward(
    GaussianMixture(
        torch.ones(1).double(),
        torch.tensor([[0.3, -0.2]], dtype=torch.double),
        torch.tensor([0.49], dtype=torch.double),
    ),
    torch.tensor([1.5, 2.0], dtype=torch.double),
)
"""A Gaussian reward: mean -0.4 + 0.45 = 0.05, standard deviation 0.7 * 2.5 = 1.75."""

RULES = [TopK(1, 4), TopK(2, 8), TopK(3, 3), BestOf(6), Exponential(1.0), Exponential(0.5), Threshold(0.5)]


@pytest.fixture(scope="module")
def draws():
    return PLANE.sample(60_000, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_divergence_in_closed_form_is_the_grids(rule):
    """Measured: divergences within 2e-9, rewards within 3e-5 (the threshold; 1e-7 for the others)."""
    on_grid = AcceptedLaw.on(GRID, REWARD, REWARD.reshaped(rule))
    assert closed_divergence(rule, REWARD) == pytest.approx(on_grid.divergence, abs=1e-6)
    assert REWARD.expected(rule) == pytest.approx(on_grid.reward, abs=2e-4)


def test_best_of_is_top_1_and_top_m_of_m_is_the_base():
    assert closed_divergence(TopK(1, 6), REWARD) == pytest.approx(closed_divergence(BestOf(6), REWARD), abs=1e-9)
    assert closed_divergence(TopK(4, 4), REWARD) == 0
    assert REWARD.expected(TopK(4, 4)) == pytest.approx((PLANE.mean() @ REWARD.direction).item(), abs=1e-5)


def test_frontier_of_a_gaussian_reward():
    """mean + sigma sqrt(2 KL), and the tilt by s has divergence (s sigma)² / 2."""
    assert NORMAL.tilt(0.8)[0] == pytest.approx((0.8 * 1.75) ** 2 / 2, abs=1e-12)
    for divergence in (0.0, 0.1, 1.0, 4.0):
        assert NORMAL.frontier(divergence) == pytest.approx(0.05 + 1.75 * math.sqrt(2 * divergence), abs=1e-6)


def test_no_rule_is_above_the_frontier_and_the_exponential_is_on_it():
    rows = {row["parameter"]: row for row in frontier_rows(REWARD, RULES)}
    gaps = {name: row["frontier_reward"] - row["expected_reward"] for name, row in rows.items()}
    assert all(gap > -1e-6 for gap in gaps.values())
    for name in ("alpha=1", "alpha=0.5"):
        assert gaps[name] == pytest.approx(0, abs=1e-6)
    # Measured: 0.03 for the best of 6, 0.16 for the threshold.
    assert 0.02 < gaps["n=6"] < gaps["c=0.5"]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != TopK(3, 3)], ids=str)
def test_accepted_samples_have_the_law(rule, draws):
    """Measured: p from 0.17 to 0.91; distances at most 1.1 times those by chance."""
    row = check_rule(rule, REWARD, GRID, draws, np.random.default_rng(1))
    assert row["chi_square_p"] > 0.01
    assert row["total_variation"] < 1.4 * row["total_variation_by_chance"]
    assert abs(row["kl_samples"] - row["kl_closed"]) < 4 * row["kl_samples_stderr"]
    assert abs(row["reward_samples"] - row["expected_reward"]) < 4 * row["reward_samples_stderr"]


def with_law_of(rule, other):
    """A rule that accepts as it does, and says that its law is another's."""

    class Wrong(type(rule)):
        def reshaped_reward(self, *arguments):
            return other.reshaped_reward(*arguments)

    return Wrong(**asdict(rule))


@pytest.mark.parametrize(
    ("rule", "other"),
    [(TopK(2, 8), TopK(3, 8)), (TopK(1, 4), TopK(1, 5)), (BestOf(6), BestOf(7)), (Exponential(0.5), Exponential(0.6))],
    ids=str,
)
def test_samples_do_not_have_a_neighbours_law(rule, other, draws):
    """Measured p: 6e-5 for the two exponentials (1,190 samples), 1e-42 at most for the others."""
    row = check_rule(with_law_of(rule, other), REWARD, GRID, draws, np.random.default_rng(1))
    assert row["chi_square_p"] < 1e-3


def test_one_sample_of_a_group_is_compared(draws):
    row = check_rule(TopK(2, 8), REWARD, GRID, draws, np.random.default_rng(1))
    assert row["samples"] == len(draws) // 8


def test_deduplicated_samples_have_their_law(draws):
    """Measured: p 0.28, total variation 0.018, 0.023 by chance."""
    row = check_deduplication(Threshold(-0.5), REWARD, GRID, draws, 100, np.random.default_rng(2))
    assert row["parameter"] == "c=-0.5, draws=100"
    assert row["chi_square_p"] > 0.01
    assert row["total_variation"] < 1.4 * row["total_variation_by_chance"]
    assert abs(row["kl_samples"] - row["kl_law"]) < 4 * row["kl_samples_stderr"]


@pytest.mark.parametrize("altered", [lambda q, draws: q, lambda q, draws: 1 - (1 - q) ** (draws / 2)])
def test_deduplicated_samples_do_not_have_an_altered_law(altered, draws, monkeypatch):
    """Not de-duplicated, or of half as many draws; measured: total variations of 0.27 and 0.09, 0.02 by chance; p 0."""
    monkeypatch.setattr(rejection_law, "kept_probability", altered)
    row = check_deduplication(Threshold(-0.5), REWARD, GRID, draws, 100, np.random.default_rng(2))
    assert row["total_variation"] > 2 * row["total_variation_by_chance"]
    assert row["chi_square_p"] < 1e-6


def test_chi_square_of_a_die():
    """(2² + 2²) / 10 = 0.8 with 5 degrees of freedom; rare cells count as one, with a
    further one if they are still rare together."""
    fair = np.full(6, 1 / 6)
    assert chi_square_p(np.array([12, 8, 10, 10, 10, 10]), fair) == pytest.approx(chi2.sf(0.8, 5))
    counts = np.array([50, 42, 2, 6])
    pooled = chi2.sf(2**2 / 48 + 4**2 / 46 + 2**2 / 6, 2)
    assert chi_square_p(counts, np.array([0.48, 0.46, 0.03, 0.03])) == pytest.approx(pooled)
    joined = chi2.sf(2**2 / 48 + 2**2 / 52, 1)
    assert chi_square_p(counts, np.array([0.48, 0.48, 0.03, 0.01])) == pytest.approx(joined)


def test_p_values_of_occupancies_are_uniform():
    """1,000 data sets: measured mean 0.501 and 0.054 below 0.05; with one draw more, p = 6e-5."""
    q, draws, repetitions, rng = np.array([0.3, 0.2, 0.1, 0.05]), 5, 400, np.random.default_rng(3)
    kept = [(rng.multinomial(draws, [*q, 0.35], size=repetitions)[:, :-1] > 0).sum(axis=0) for _ in range(1000)]
    values = np.array([occupancy_p(counts, q, draws, repetitions) for counts in kept])
    assert values.mean() == pytest.approx(0.5, abs=0.03)
    assert (values < 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert occupancy_p(kept[0], q, draws + 1, repetitions) < 1e-3

"""What branches say of cuts, against closed forms: rewards of a Gaussian chain, synthetic curves, known shares.

In the Gaussian chain the reward is r ~ N(0, 1) and a snapshot of correlation c with it knows r ~ N(c z, 1 - c^2). Seeds
are fixed; measured values stand beside the bounds.
"""

import numpy as np
import pytest
from scipy.special import xlogy
from scipy.stats import norm

from graft.branching import (
    conditional_variances,
    divergences,
    elbow,
    estimate,
    fixed_share,
    is_non_decreasing,
    pgraft_gain,
    plug_in_divergences,
    relative_acceptance,
    tilts,
)
from graft.rejection import Exponential, Threshold, TopK

CORRELATIONS = np.array([1.0, 0.8, 0.5, 0.0])
SNAPSHOTS, BRANCHES = 6000, 8


def gaussian_chain(branches=BRANCHES, correlations=CORRELATIONS):
    rng = np.random.default_rng(0)
    known = correlations[:, None, None] * rng.normal(size=(SNAPSHOTS, 1))
    spread = np.sqrt(1 - correlations**2)[:, None, None]
    return known + spread * rng.normal(size=(len(correlations), SNAPSHOTS, branches))


ONE_GROUP = np.zeros(SNAPSHOTS, dtype=np.int64)


def deviations(contributions, truth):
    """By how many standard errors each level's estimate misses the truth."""
    found = np.array([estimate(level, ONE_GROUP) for level in contributions])
    return (found[:, 0] - truth) / found[:, 1]


def test_the_conditional_variance_of_a_gaussian_chain():
    """1 - c^2; missed by at most 1.4 standard errors."""
    variances = conditional_variances(gaussian_chain())
    assert (variances[0] == 0).all()
    assert np.abs(deviations(variances[1:], 1 - CORRELATIONS[1:] ** 2)).max() < 2.5


ALPHA = 1.5


def test_the_divergence_under_exponential_acceptance_is_c2_over_2_alpha2():
    """Corrected, missed by at most 1.4 standard errors; the plug-in is 13 and 49 too large at the two last levels."""
    acceptance, truth = relative_acceptance(gaussian_chain(), ONE_GROUP, Exponential(ALPHA)), CORRELATIONS**2 / 2
    corrected, plug_in = divergences(acceptance), plug_in_divergences(acceptance)
    np.testing.assert_allclose(corrected[0], plug_in[0], atol=1e-9)
    assert np.abs(deviations(corrected, truth / ALPHA**2)).max() < 3
    assert deviations(plug_in[2:], truth[2:] / ALPHA**2).min() > 8


def best_of_4(correlation):
    """KL and gain of best-of-4, E[A | r] = Phi(r)^3 with mean 1/4, by Gauss-Hermite sums over snapshots z and r."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(100)
    shares = shares / shares.sum()
    rewards = correlation * nodes[:, None] + np.sqrt(1 - correlation**2) * nodes
    u = 4 * norm.cdf(rewards) ** 3 @ shares
    return shares @ xlogy(u, u), shares @ (u * correlation * nodes)


def test_divergence_and_gain_under_best_of_4():
    """At the data log 4 - 3/4. Both missed by at most 2.4 standard errors, the plug-in by 7, 20 and 58."""
    found, truth = tilts(gaussian_chain(), ONE_GROUP, TopK(1, 4)), np.array([best_of_4(c) for c in CORRELATIONS])
    assert truth[0, 0] == pytest.approx(np.log(4) - 3 / 4, abs=1e-5)
    assert np.abs(deviations(found["kl"], truth[:, 0])).max() < 3
    assert deviations(found["kl_plug_in"][1:], truth[1:, 0]).min() > 5
    assert np.abs(deviations(found["pgraft_gain"], truth[:, 1])).max() < 3


def test_groups_of_four_chains_are_biased_by_as_much_as_is_said():
    """`relative_acceptance` quotes it: (0.58, 0.86) instead of (0.64, 1.03) at the data, (0.03, 0.06) at the noise."""
    rewards = gaussian_chain(correlations=np.linspace(1, 0, 7))
    for size, data, noise in [(4, (0.58, 0.86), (0.03, 0.06)), (SNAPSHOTS, best_of_4(1.0), (0.0, 0.0))]:
        groups = np.arange(SNAPSHOTS) // size
        found = tilts(rewards, groups, TopK(1, 4))
        means = [[estimate(found[name][level], groups)[0] for name in ("kl", "pgraft_gain")] for level in (0, -1)]
        np.testing.assert_allclose(means, [data, noise], atol=0.015)


def test_two_branches_show_no_gain_where_snapshots_know_nothing():
    """The same branches for acceptance and reward would: their products have a mean of 1.03, as at the data."""
    rewards = gaussian_chain(branches=2)[-1:]
    acceptance = relative_acceptance(rewards, ONE_GROUP, TopK(1, 4))
    assert np.abs(deviations(pgraft_gain(rewards, acceptance, ONE_GROUP), 0)) < 3
    assert (rewards * acceptance).mean(axis=2).mean() - rewards.mean() > 0.4


def test_acceptance_is_relative_to_the_group_and_its_rewards_at_all_levels():
    """Best of 2 is accepted as often as F says, the average over the jump at ties, divided by 1/2."""
    rewards, groups = np.array([[[1.0, 2.0], [5.0, 5.0]], [[3.0, 4.0], [6.0, np.nan]]]), np.array([0, 1])
    found = relative_acceptance(rewards, groups, TopK(1, 2))
    np.testing.assert_allclose(found[:, 0], [[0.25, 0.75], [1.25, 1.75]])
    np.testing.assert_allclose(found[:, 1], [[2 / 3, 2 / 3], [5 / 3, np.nan]])


def test_a_group_of_which_nothing_is_accepted_counts_for_nothing():
    rewards, groups = np.array([[[0.0, 1.0], [0.0, 0.0]]]), np.array([0, 1])
    found = relative_acceptance(rewards, groups, Threshold(1.0))
    np.testing.assert_array_equal(found, [[[0, 2], [np.nan, np.nan]]])
    assert estimate(plug_in_divergences(found)[0], groups)[0] == 0
    large = relative_acceptance(1e6 * rewards, groups, Exponential(1.0))
    np.testing.assert_allclose(large, [[[0, 2], [1, 1]]])


def test_a_missing_reward_is_a_missing_branch():
    """Contributions are those of the other branches alone."""
    rewards = gaussian_chain()[1:2, :50]
    acceptance, groups = np.exp(rewards), ONE_GROUP[:50]
    rewards[:, 0, 2:] = acceptance[:, 0, 2:] = np.nan
    rewards[:, 1, 1:] = acceptance[:, 1, 1:] = np.nan
    for contributions, few in (
        (conditional_variances(rewards), conditional_variances(rewards[:, :1, :2])),
        (divergences(acceptance), divergences(acceptance[:, :1, :2])),
    ):
        assert contributions[0, 0] == pytest.approx(few[0, 0])
        assert np.isnan(contributions[0, 1])
        assert np.isfinite(contributions[0, 2:]).all()
    gains = pgraft_gain(rewards, acceptance, groups)
    r, u = rewards[0, 0, :2] - np.nanmean(rewards), acceptance[0, 0, :2] - 1
    assert gains[0, 0] == pytest.approx((r[0] * u[1] + r[1] * u[0]) / 2)
    assert np.isnan(gains[0, 1])


def test_the_standard_error_is_over_conditions_where_there_are_several():
    values = np.array([0.0, 2.0, 4.0, 6.0, 8.0, np.nan])
    assert estimate(values, np.zeros(6)) == (4.0, pytest.approx(np.std(values[:5], ddof=1) / np.sqrt(5)))
    assert estimate(values, np.array([0, 0, 1, 1, 2, 2])) == (pytest.approx(14 / 3), pytest.approx(2.0275875))


def test_variances_rise_within_the_error_of_paired_differences():
    """What all snapshots share does not hide a small fall; noise does."""
    shared, small = np.random.default_rng(0).normal(size=(2, 1000))
    fall = shared - 0.1 + 0.1 * small
    groups = np.zeros(1000)
    assert is_non_decreasing(np.stack([fall, shared, shared + 0.1]), groups)
    assert not is_non_decreasing(np.stack([shared, fall]), groups)
    assert is_non_decreasing(np.stack([shared, shared - 0.1 + 4 * small]), groups)


def test_the_suggested_cut_is_where_the_movement_falls_below_its_average():
    """8 of 10 nats are moved for 2 of 8 of information; below the elbow little is moved for much."""
    divergence = np.array([10.5, 9.5, 8.5, 4.5, 0.5])
    information = np.array([4.0, 2.0, 1.0, 0.5, 0.0])
    found, errors = elbow(np.repeat(divergence[:, None], 5, axis=1), information, np.zeros(5))
    np.testing.assert_allclose(found, [0, 0.4, 0.55, 0.275, 0])
    np.testing.assert_allclose(errors, 0, atol=1e-12)
    late, _ = elbow(np.array([[10.0], [1.0], [0.5], [0.2], [0.0]]), information, np.zeros(1))
    assert late.argmax() == 0


def test_the_elbows_standard_error_is_that_of_repetitions():
    """Of 200 repetitions, with most noise at the data end, which is in every ratio; the two have a ratio of 1.03."""
    rng, information = np.random.default_rng(0), np.array([4.0, 1.0, 0.0])
    means, scales = np.array([[2.0], [1.2], [0.2]]), np.array([[2.0], [0.3], [0.3]])

    def repetition():
        shared, own = rng.normal(size=(1, 200)), rng.normal(size=(3, 200))
        return elbow(means + shared + scales * own, information, ONE_GROUP[:200])

    found, errors = (np.array(part) for part in zip(*(repetition() for _ in range(200)), strict=True))
    assert found[:, 1].std() / errors[:, 1].mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("branches", [2, 8])
def test_the_share_that_snapshots_fix_is_that_of_known_variances(branches):
    """r = a u + b v, u of the snapshot and v of the continuation: a^2 / (a^2 + b^2)."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(4000, 1)), rng.normal(size=(4000, branches))
    for a, b in ((1.0, 0.0), (2.0, 1.0), (1.0, 2.0), (0.0, 1.0)):
        assert fixed_share(a * u + b * v, np.zeros(len(u))) == pytest.approx(a**2 / (a**2 + b**2), abs=0.04)


def test_equal_rewards_have_no_variance_to_share():
    assert fixed_share(np.ones((5, 3)), np.zeros(5)) is None


def test_groups_of_one_snapshot_have_nothing_to_share():
    assert fixed_share(np.random.default_rng(0).normal(size=(5, 3)), np.arange(5)) is None


def test_what_differs_between_groups_is_no_share_of_the_snapshots():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(1000), 4)
    u, v = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 8))
    prompts = 10 * rng.normal(size=(1000, 1))[groups]
    assert fixed_share(prompts + u + v, groups) == pytest.approx(0.5, abs=0.03)

"""Seeds are fixed. Measured p-values of the continuous laws: right ones above 0.3, wrong exponents below 1e-29."""

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import betainc, comb

from graft.errors import UserError
from graft.rejection import BestOf, Exponential, Threshold, TopK, accept_by_condition, deduplicate, rule_from

LEVEL = 1e-3

# Each rule with the size of the independent groups it is given; Exponential's law holds to O(1 / size).
RULES = [
    (TopK(1, 4), 4),
    (TopK(3, 7), 7),
    (TopK(4, 5), 5),
    (TopK(3, 3), 3),
    (BestOf(2), 2),
    (BestOf(6), 6),
    (Exponential(0.4), 400),
    (Threshold(0.6), 20),
]


def rng(seed=0):
    return np.random.default_rng(seed)


def one_accepted_of_each(rule, groups, generator):
    """The reward of one accepted sample, chosen at random, of each row of groups (number, size)."""
    masks = [rule.accept(rewards, generator) for rewards in groups]
    return np.array([generator.choice(row[mask]) for row, mask in zip(groups, masks, strict=True) if mask.any()])


def number_of_groups(size):
    return 10_000 if size <= 20 else 4_000


@pytest.mark.parametrize(("rule", "size"), RULES, ids=str)
def test_accepted_law_for_continuous_rewards(rule, size):
    """Base density 2 r on [0, 1], F(r) = r²: the accepted have density 2 r exp(reshaped reward), normalised."""
    generator = rng(1)
    rewards = np.sqrt(generator.random((number_of_groups(size), size)))
    accepted = one_accepted_of_each(rule, rewards, generator)
    r = np.linspace(0, 1, 10_001)
    mass = integrate.cumulative_trapezoid(2 * r * np.exp(rule.reshaped_reward(r, r**2)), r, initial=0)
    assert stats.kstest(accepted, lambda x: np.interp(x, r, mass / mass[-1])).pvalue > LEVEL


@pytest.mark.parametrize("base", [(0.7, 0.3), (0.1, 0.9), (0.3, 0.4, 0.3)], ids=str)
@pytest.mark.parametrize(("rule", "size"), RULES, ids=str)
def test_accepted_law_for_rewards_with_atoms(rule, size, base):
    """Rewards 0 and 1, or 0, 0.5 and 1: the accepted ones have probabilities base × exp(reshaped reward)."""
    generator = rng(2)
    values = np.linspace(0, 1, len(base))
    rewards = generator.choice(values, p=base, size=(number_of_groups(size), size))
    accepted = one_accepted_of_each(rule, rewards, generator)
    cdf = np.cumsum(base)
    law = base * np.exp(rule.reshaped_reward(values, cdf, cdf - base))
    observed = (accepted[:, None] == values).sum(axis=0)
    possible = law > 0
    assert observed[~possible].sum() == 0
    if possible.sum() > 1:
        expected = law[possible] / law.sum() * observed.sum()
        assert stats.chisquare(observed[possible], expected).pvalue > LEVEL


@pytest.mark.parametrize(("k", "m"), [(1, 2), (1, 4), (3, 7), (4, 5), (20, 50)])
def test_top_k_reward_is_the_probability_that_fewer_than_k_others_are_better(k, m):
    u = np.linspace(0.01, 1, 100)
    binomial = sum(comb(m - 1, j) * (1 - u) ** j * u ** (m - 1 - j) for j in range(k))
    np.testing.assert_allclose(TopK(k, m).reshaped_reward(u, u), np.log(binomial), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("k", "m"), [(1, 2), (1, 4), (3, 7), (4, 5), (20, 50)])
def test_top_k_reward_of_an_atom_is_the_average_over_its_jump(k, m):
    for low, high in [(0.0, 0.3), (0.3, 1.0), (0.9, 0.901), (0.5, 0.5 + 2e-6), (0.5, 0.5 + 4e-7), (0.5, 0.5)]:
        width = high - low
        mean = integrate.quad(lambda s, low=low, width=width: betainc(m - k, k, low + width * s), 0, 1)[0]
        reshaped = TopK(k, m).reshaped_reward(0.0, high, low)
        np.testing.assert_allclose(reshaped, np.log(mean), rtol=0, atol=1e-8)


def test_exponential_and_threshold_rewards():
    rewards, cdf = np.array([-1.0, 0.5, 2.0]), np.array([0.2, 0.6, 1.0])
    np.testing.assert_allclose(np.diff(Exponential(0.5).reshaped_reward(rewards, cdf)), [3, 3])
    assert Threshold(0.5).reshaped_reward(rewards, cdf).tolist() == [-np.inf, 0, 0]


def test_rewards_at_the_ends_of_the_law_are_finite_or_minus_infinity():
    """Atoms below everything, no jump at F = 0, a tail that underflows, whole groups: never NaN."""
    cdf, left = np.array([0.0, 1e-3, 0.5, 1.0, 1.0]), np.array([0.0, 0.0, 0.499, 0.5, 1.0])
    for rule in [TopK(1, 4), TopK(5, 700), TopK(700, 700), BestOf(4), BestOf(1)]:
        assert not np.isnan(rule.reshaped_reward(0.0, cdf, left)).any()
    tail = np.geomspace(0.01, 0.6, 20_001)
    assert not np.isnan(TopK(5, 700).reshaped_reward(0.0, tail, 0.9 * tail)).any()
    assert (TopK(4, 4).reshaped_reward(0.0, cdf) == 0).all()
    assert (BestOf(1).reshaped_reward(0.0, cdf) == 0).all()
    np.testing.assert_allclose(BestOf(1000).reshaped_reward(0.0, 0.3), 999 * np.log(0.3))


@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_top_one_of_n_equals_best_of_n(n):
    cdf = np.linspace(0.05, 1, 20)
    for left in [None, cdf - 0.05, cdf - 1e-9]:
        best, top = (rule.reshaped_reward(cdf, cdf, left) for rule in (BestOf(n), TopK(1, n)))
        np.testing.assert_allclose(best, top, atol=1e-7)
    rewards = rng().standard_normal(n * 50 + n - 1)
    groups = rewards[: n * 50].reshape(50, n)
    expected = np.append((groups == groups.max(axis=1, keepdims=True)).ravel(), np.zeros(n - 1, dtype=bool))
    for rule in (BestOf(n), TopK(1, n)):
        np.testing.assert_array_equal(rule.accept(rewards, rng(1)), expected)


def test_top_k_accepts_the_best_of_each_consecutive_group_and_no_remainder():
    rewards = np.array([3, 1, 2, 0, -5, -4, -6, -7, 9, 9, 9])
    assert np.flatnonzero(TopK(2, 4).accept(rewards, rng())).tolist() == [0, 2, 4, 5]
    assert np.flatnonzero(TopK(4, 4).accept(rewards, rng())).tolist() == list(range(8))
    assert not TopK(1, 12).accept(rewards, rng()).any()


@pytest.mark.parametrize("rewards", [(0, 0, 0, 0, 0), (0, 1, 0, 1, 1), (1, 0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_are_broken_at_random(rewards, k):
    """Of each group the tied samples at the margin are accepted equally often, whatever their places."""
    groups = 4_000
    mask = TopK(k, 5).accept(np.tile(rewards, groups), rng(3)).reshape(groups, 5)
    assert (mask.sum(axis=1) == k).all()
    for value in {0, 1} & set(rewards):
        tied, better = np.flatnonzero(np.array(rewards) == value), sum(reward > value for reward in rewards)
        share = min(max(k - better, 0) / len(tied), 1)
        # Six standard errors: over all cases a chance of 1e-7, and ties kept in order are off by a hundred.
        bound = 6 * np.sqrt(share * (1 - share) / groups)
        assert (np.abs(mask[:, tied].mean(axis=0) - share) <= bound).all()


def test_exponential_measures_from_the_largest_reward():
    rewards = rng(4).standard_normal(1000)
    mask = Exponential(0.3).accept(rewards, rng(5))
    assert mask[rewards.argmax()]
    np.testing.assert_array_equal(mask, Exponential(0.3).accept(rewards + 512, rng(5)))
    assert Exponential(0.3).accept(np.ones(1000), rng(5)).all()


def test_exponential_accepts_with_its_probability():
    """Rewards -0.3 and 0 at alpha = 0.5: exp(-0.6) of the lower ones; its law alone would not see the scale."""
    rewards = np.append(np.full(20_000, -0.3), 0.0)
    accepted = int(Exponential(0.5).accept(rewards, rng(6))[:-1].sum())
    assert stats.binomtest(accepted, 20_000, np.exp(-0.6)).pvalue > LEVEL


def test_threshold_accepts_from_c_on_and_draws_nothing():
    generator = rng()
    assert Threshold(1).accept([0, 1, 1, 0], generator).tolist() == [False, True, True, False]
    # A reward of 0.7 in single precision lies below 0.7 in double precision.
    assert Threshold(0.7).accept(np.array([0.7, 0.699], dtype=np.float32), generator).tolist() == [True, False]
    assert generator.bit_generator.state == rng().bit_generator.state


@pytest.mark.parametrize("rule", [TopK(1, 2), BestOf(2), Exponential(1.0), Threshold(1.0)], ids=str)
def test_every_rule_takes_no_samples_and_refuses_rewards_that_are_not_finite(rule):
    assert rule.accept(np.array([]), rng()).shape == (0,)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(UserError, match=r"sample 2 has reward -?(nan|inf)") as caught:
            rule.accept(np.array([0.0, 1.0, bad]), rng())
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="one-dimensional"):
        rule.accept(np.zeros((2, 2)), rng())


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        (TopK, (0, 4)),
        (TopK, (5, 4)),
        (TopK, (1.0, 4)),
        (TopK, (True, 4)),
        (BestOf, (0,)),
        (Exponential, (0.0,)),
        (Exponential, (-1.0,)),
        (Exponential, (np.nan,)),
        (Exponential, (np.inf,)),
        (Exponential, ("1e-2",)),
        (Threshold, (np.nan,)),
    ],
)
def test_impossible_parameters_are_refused(rule, parameters):
    with pytest.raises(ValueError, match=" = "):
        rule(*parameters)


def test_rules_come_from_configuration():
    assert rule_from({"type": "TopK", "k": 1, "m": 4}) == TopK(1, 4)
    assert rule_from({"type": "BestOf", "n": 4}) == BestOf(4)
    assert rule_from({"type": "Exponential", "alpha": 0.1}) == Exponential(0.1)
    assert rule_from({"type": "Threshold", "c": 1}) == Threshold(1)


def test_a_null_parameter_is_dropped():
    """Snakemake merges an overlay's rule into the default's, parameter by parameter."""
    assert rule_from({"type": "BestOf", "c": None, "n": 4}) == BestOf(4)
    with pytest.raises(UserError, match="exactly n; found nothing"):
        rule_from({"type": "BestOf", "n": None})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "TopQ", "k": 1}, "'TopQ'; the known ones are TopK, BestOf, Exponential, Threshold"),
        ({"k": 1, "m": 4}, "unknown type None"),
        ({"type": "TopK", "k": 1}, "exactly k, m; found k"),
        (
            {"type": "BestOf", "c": 1, "n": 4},
            "exactly n; found c, n; set c: null to drop the one that the default brings",
        ),
        ({"type": "TopK", "k": 5, "m": 4}, "k = 5 exceeds"),
    ],
)
def test_rules_that_configuration_gets_wrong_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        rule_from(settings)
    assert "\n" not in str(caught.value)


def test_conditions_are_selected_apart_and_in_the_order_of_drawing():
    """Shuffled conditions of 7, 8 and 9 samples: each gets what the rule accepts of it alone."""
    conditions = rng(7).permutation(np.repeat([5, 0, 3], [7, 8, 9]))
    rewards = rng(8).standard_normal(24) + 100 * conditions
    mask = accept_by_condition(TopK(1, 4), rewards, conditions, rng(9))
    for condition in (0, 3, 5):
        members = conditions == condition
        np.testing.assert_array_equal(mask[members], TopK(1, 4).accept(rewards[members], rng()))


@pytest.mark.parametrize("rule", [TopK(1, 4), Exponential(0.5)], ids=str)
def test_a_condition_does_not_depend_on_the_others(rule):
    conditions, rewards = np.tile([2, 0, 11], 400), rng(10).integers(2, size=1200)
    mask = accept_by_condition(rule, rewards, conditions, rng(11))
    for present in ([2], [11, 0], [0]):
        members = np.isin(conditions, present)
        alone = accept_by_condition(rule, rewards[members], conditions[members], rng(11))
        np.testing.assert_array_equal(alone, mask[members])


def test_streams_differ_between_conditions_and_between_calls():
    conditions, generator = np.repeat([0, 1], 400), rng(12)
    first, second = (accept_by_condition(BestOf(4), np.zeros(800), conditions, generator) for _ in range(2))
    for a, b in [(first[:400], first[400:]), (first[:400], second[:400])]:
        # Independent masks share a quarter of their 100 picks.
        assert 5 < (a & b).sum() < 50


def test_conditions_that_are_no_conditions_are_refused():
    assert accept_by_condition(BestOf(2), [], np.array([], dtype=int), rng()).shape == (0,)
    for wrong in ([0.0, 1.0], [0, -1], [0]):
        with pytest.raises(ValueError, match="conditions"):
            accept_by_condition(BestOf(2), [0.0, 1.0], wrong, rng())
    with pytest.raises(UserError, match="sample 3"):
        accept_by_condition(BestOf(2), [0.0, 1.0, 0.0, np.nan], [0, 0, 1, 1], rng())


def test_deduplication_keeps_a_key_with_its_probability():
    """30 draws in each of 4,000 rounds; a key is accepted with q = its probability × that of its acceptance."""
    draws, rounds = 30, 4_000
    probability, acceptance = np.array([0.6, 0.2, 0.15, 0.05]), np.array([0.1, 0.3, 0.05, 0.5])
    q = probability * acceptance
    generator = rng(13)
    kept = np.zeros(4)
    for _ in range(rounds):
        key = generator.choice(4, p=probability, size=draws)
        accepted = Threshold(1).accept(generator.random(draws) < acceptance[key], generator)
        mask, _ = deduplicate(key.astype(str), accepted, generator)
        assert np.bincount(key[mask], minlength=4).max() <= 1
        kept[key[mask]] += 1
    for count, chance in zip(kept, 1 - (1 - q) ** draws, strict=True):
        assert stats.binomtest(int(count), rounds, chance).pvalue > LEVEL


def test_deduplication_counts_the_accepted_copies():
    keys = ["CO", "C", "CO", "CC", "CO", "C", "N"]
    accepted = np.array([True, True, True, False, False, False, True])
    mask, copies = deduplicate(keys, accepted, rng())
    assert copies[mask].sum() == accepted.sum()
    assert not copies[~mask].any()
    assert not mask[~accepted].any()
    assert {keys[i]: int(copies[i]) for i in np.flatnonzero(mask)} == {"CO": 2, "C": 1, "N": 1}
    assert not deduplicate(keys, np.zeros(7, dtype=bool), rng())[0].any()
    with pytest.raises(ValueError, match="keys"):
        deduplicate(keys, accepted[:-1], rng())


def test_deduplication_chooses_among_copies_at_random():
    generator, kept = rng(14), np.zeros(5)
    for _ in range(2_000):
        kept += deduplicate(["O", "C", "O", "O", "O"], [True, True, False, True, True], generator)[0]
    assert kept[1:3].tolist() == [2_000, 0]
    assert stats.chisquare(kept[[0, 3, 4]]).pvalue > LEVEL

"""Two-sample tests: chance for equal laws, more for others."""

import pytest
import torch

from graft.errors import UserError
from graft.metrics.two_sample import FOLDS, Pairs, classifier_accuracy, matched_normal, removed_share, tell_apart

COUNT = 600


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def accuracy(samples, others):
    return classifier_accuracy(samples, others, seed=0)


def test_equal_laws_cannot_be_told_apart():
    """Measured 0.487, with a standard error of 0.014."""
    found, stderr = accuracy(normal(0, COUNT, 8), normal(1, COUNT, 8))
    assert stderr == pytest.approx((found * (1 - found) / (2 * COUNT)) ** 0.5)
    assert abs(found - 0.5) < 3 * stderr


@pytest.mark.parametrize(
    "change", [lambda x: x + 0.5, lambda x: 1.5 * x, lambda x: torch.cat([x[:, :1], x[:, :1] + 0.5 * x[:, 1:]], dim=1)]
)
def test_shifted_scaled_and_dependent_coordinates_are_told_apart(change):
    """Measured 0.74, 0.74 and 0.91; all but the first have equal means."""
    found, _ = accuracy(normal(0, COUNT, 8), change(normal(1, COUNT, 8)))
    assert found > 0.65


def test_the_accuracy_of_a_shift_stays_under_its_bound():
    """N(0, 1) and N(1, 1): at most Phi(1/2) = 0.691; measured 0.652."""
    found, stderr = accuracy(normal(0, COUNT, 1), normal(1, COUNT, 1) + 1)
    assert 0.62 < found < 0.691 + 2 * stderr


def test_too_few_samples_are_named():
    with pytest.raises(UserError, match=r"at least 6 samples of a kind, got 5 and 9; raise theory\.noises\.samples"):
        accuracy(normal(0, 2 * FOLDS - 1, 2), normal(1, 9, 2))


def test_pairs_are_told_apart_in_both_spaces():
    """Data that hide the noises' shift: only the noises give it away."""
    noise, other = normal(0, COUNT, 3), normal(1, COUNT, 3) + 1
    found = tell_apart(Pairs(noise, normal(2, COUNT, 3)), Pairs(other, normal(3, COUNT, 3)), seed=0)
    assert found["noise_accuracy"] > 0.7
    assert found["data_accuracy"] == pytest.approx(0.5, abs=0.06)


def test_the_matched_normal_has_the_targets_moments():
    target = normal(0, 500, 3) ** 2 @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.3, 2.0]])
    drawn = matched_normal(target, 200_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(dim=0), target.mean(dim=0), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.T.cov(), target.T.cov(), rtol=0.02, atol=0.05)


def test_too_few_samples_for_a_covariance_are_named():
    with pytest.raises(UserError, match=r"8 noises say too little of the covariance of 8 coordinates; raise"):
        matched_normal(normal(0, 8, 8), 10, torch.Generator())


def test_removed_share():
    assert removed_share(before=5.0, after=2.0, floor=1.0) == pytest.approx(0.75)
    assert removed_share(before=5.0, after=1.0, floor=1.0) == 1
    assert removed_share(before=5.0, after=6.0, floor=1.0) == pytest.approx(-0.25)
    assert removed_share(before=1.0, after=1.0, floor=1.0) is None

"""The exact laws of a tilted mixture: against the tilt of an exponential rule, which is known, and one another."""

import numpy as np
import pytest
import torch

from graft.branching import conditional_variances, estimate, tilts
from graft.grids import Grid
from graft.mixture import GaussianMixture
from graft.paths import PATHS
from graft.rejection import Exponential, TopK
from graft.rejection_law import LinearReward
from graft.tilting import TiltedMixture

MIXTURE = GaussianMixture(
    weights=torch.tensor([0.6, 0.4], dtype=torch.double),
    centres=torch.tensor([[-1.0, 0.5], [1.2, -0.4]], dtype=torch.double),
    variances=torch.tensor([0.3, 0.5], dtype=torch.double),
)
DIRECTION = torch.tensor([0.6, 0.8], dtype=torch.double)
ALPHA = 1.5


def tilted(rule, path="straight"):
    return TiltedMixture(LinearReward(MIXTURE, DIRECTION), rule, PATHS[path], Grid(extent=5.0, cells=56, points=1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("time", [0.3, 0.7])
def test_the_noise_shifts_as_between_the_denoisers_of_mixture_and_tilt(path, time):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    t, law = torch.full((20,), time, dtype=torch.double), MIXTURE.tilted(DIRECTION / ALPHA)
    *_, shift = tilted(Exponential(ALPHA), path).given(x, time)
    difference = law.denoise(PATHS[path], x, t) - MIXTURE.denoise(PATHS[path], x, t)
    expected = -(PATHS[path].alpha(t) / PATHS[path].sigma(t))[:, None] * difference
    torch.testing.assert_close(shift, expected, rtol=0, atol=1e-6)


def test_at_the_data_divergence_and_gain_are_those_of_the_tilt():
    law, found = MIXTURE.tilted(DIRECTION / ALPHA), tilted(Exponential(ALPHA)).at(0.0)
    reward = (law.mean() @ DIRECTION).item()
    assert found.divergence == pytest.approx(reward / ALPHA - MIXTURE.log_moment(DIRECTION / ALPHA).item(), abs=1e-5)
    assert found.gain == pytest.approx(reward - (MIXTURE.mean() @ DIRECTION).item(), abs=1e-5)
    assert (found.conditional_variance, found.score_shift) == (pytest.approx(0, abs=1e-9), 0)


def test_at_the_noise_nothing_is_known():
    found, line = tilted(TopK(1, 4)).at(1.0), MIXTURE.projected(DIRECTION)
    second = (line.weights * (line.variances + line.centres.squeeze(1).square())).sum()
    assert found.conditional_variance == pytest.approx((second - line.mean().square()).item(), abs=1e-6)
    assert (found.divergence, found.gain, found.score_shift) == (pytest.approx(0, abs=1e-9),) * 3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", [TopK(1, 4), Exponential(ALPHA)])
def test_the_divergence_falls_by_half_the_scores_movement(path, rule):
    """Between two levels, over log alpha^2 / sigma^2; 2e-7 of 0.03 to 0.2 nats are missed."""
    law = tilted(rule, path)
    fall = law.at(0.4).divergence - law.at(0.6).divergence
    assert fall > 0.03
    assert law.moved(0.4, 0.6) == pytest.approx(fall, abs=1e-5)


def test_branches_estimate_what_is_known():
    """Missed by at most 1.1 standard errors."""
    law, levels, groups = tilted(TopK(1, 4)), [0.0, 0.4, 0.7], np.zeros(2000)
    rewards = law.branches(levels, 2000, 8, torch.Generator().manual_seed(0)).numpy()
    found = {"conditional_variance": conditional_variances(rewards), **tilts(rewards, groups, law.rule)}
    for place, cut in enumerate(law.at(level) for level in levels):
        for quantity, truth in (
            ("conditional_variance", cut.conditional_variance),
            ("kl", cut.divergence),
            ("pgraft_gain", cut.gain),
        ):
            mean, stderr = estimate(found[quantity][place], groups)
            assert mean == pytest.approx(truth, abs=3 * stderr + 1e-9), (quantity, levels[place])

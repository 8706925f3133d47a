"""DDPO's pieces against closed forms: Gaussian policies have analytic gradients of the expected reward."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from graft.paths import PATHS
from graft.policy_gradient import advantages, clipped_objective, draw_trajectory, log_density, step_weights
from graft.sampling import Ddim, Stage, sample, uniform_times


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def draws(*shape, seed=1, dtype=torch.float64):
    rng = generator(seed)
    return lambda: torch.randn(*shape, generator=rng, dtype=dtype)


def model(x, t):
    """Any denoiser, of images."""
    return torch.tanh(1.3 * x) + t.reshape(-1, 1, 1, 1) * x.flip(1) / 3


def log_densities(trajectory, update):
    """Of the trajectory's steps under a policy, (K, B): as training recomputes them."""
    densities = []
    for before, after, t, s in zip(trajectory.before, trajectory.after, trajectory.t, trajectory.s, strict=True):
        mean, tau = update.transition(before, t.item(), s.item())
        densities.append(log_density(after, mean, tau))
    return torch.stack(densities)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_trajectory_is_what_the_sampler_draws(path, eta):
    """Bit for bit, without the last step, which draws nothing."""
    update, times, noise = Ddim(model, path, eta), uniform_times(10), normal(8, 3, 4, 4, dtype=torch.float32)
    trajectory = draw_trajectory(update, noise, times, draws(8, 3, 4, 4, dtype=torch.float32))
    sampled = sample(noise, [Stage(update, times)], draws(8, 3, 4, 4, dtype=torch.float32))
    assert torch.equal(trajectory.x_0, sampled)
    assert torch.equal(trajectory.before[0], noise)
    assert torch.equal(trajectory.before[1:], trajectory.after[:-1])
    assert trajectory.t.tolist() == times[:9]
    assert trajectory.s.tolist() == times[1:10]
    torch.testing.assert_close(update.transition(trajectory.after[-1], *times[-2:])[0], sampled, rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_densities_recomputed_under_the_same_policy_are_the_same(path):
    """Bit for bit: the first ratios of DDPO are exactly 1, also where steps are short and dimensions many."""
    update, noise = Ddim(model, path, 1.0), normal(4, 3, 16, 16, dtype=torch.float32)
    trajectory = draw_trajectory(update, noise, uniform_times(50), draws(4, 3, 16, 16, dtype=torch.float32))
    assert trajectory.log_density.shape == (49, 4)
    assert torch.equal(log_densities(trajectory, update), trajectory.log_density)


@pytest.mark.parametrize("tau", [0.01, 0.5, 3.0])
def test_log_density_is_the_normal_one_up_to_its_constant(tau):
    mean = normal(6, 3, 2, 2)
    x = mean + tau * normal(6, 3, 2, 2, seed=1)
    exact = torch.distributions.Normal(mean, tau).log_prob(x).flatten(1).sum(dim=1)
    constant = -12 * math.log(tau * math.sqrt(2 * math.pi))
    torch.testing.assert_close(log_density(x, mean, tau).double(), exact - constant, rtol=1e-5, atol=1e-5)


def test_rows_have_a_standard_deviation_of_their_own():
    mean, x = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    apart = [log_density(x[[row]], mean[[row]], tau) for row, tau in enumerate([0.1, 2.0])]
    torch.testing.assert_close(log_density(x, mean, torch.tensor([0.1, 2.0]).double()), torch.cat(apart))


def test_advantages_are_normalised_within_each_condition():
    rng = np.random.default_rng(0)
    conditions = rng.permutation(np.repeat([7, 2, 40], [50, 20, 30]))
    rewards = rng.normal(size=100) * conditions + 3 * conditions
    expected = np.empty(100)
    for condition in (2, 7, 40):
        own = rewards[conditions == condition]
        expected[conditions == condition] = (own - own.mean()) / own.std()
    found = advantages(torch.tensor(rewards, dtype=torch.float32), torch.tensor(conditions))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reward", [0.0, 0.7, 1.0, 100.1, -3.3e4])
@pytest.mark.parametrize("count", [1, 7, 50])
def test_equal_rewards_have_no_advantage(reward, count):
    """Exactly none, for any value: in float32 the mean of equal numbers need not be their value."""
    other = torch.tensor([1.0, 2.0, 4.0])
    rewards = torch.cat([torch.full((count,), reward), other])
    conditions = torch.cat([torch.zeros(count, dtype=torch.long), torch.ones(3, dtype=torch.long)])
    found = advantages(rewards, conditions)
    assert torch.equal(found[:count], torch.zeros(count))
    assert found[count:].std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_binary_rewards_have_advantages():
    found = advantages(torch.tensor([True, False, False, False]), torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(found, torch.tensor([3.0, -1.0, -1.0, -1.0]) / math.sqrt(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.1, 1.5])
def test_clipping_stops_the_gradient_where_the_policy_has_moved_far_enough(ratio, advantage):
    """A good step is not made likelier than 1 + clip, a bad one not less likely than 1 - clip; the way back is open."""
    log_ratio = torch.tensor([math.log(ratio), 0.0], dtype=torch.float64, requires_grad=True)
    loss = clipped_objective(log_ratio, torch.tensor([advantage, 1.0], dtype=torch.float64), clip=0.2)
    stopped = ratio > 1.2 if advantage > 0 else ratio < 0.8
    value = {1.5: 1.2, 0.5: 0.8}[ratio] if stopped else ratio
    assert loss.item() == pytest.approx(-(value * advantage + 1) / 2, rel=1e-12)
    (slope,) = torch.autograd.grad(loss, log_ratio)
    expected = 0.0 if stopped else -ratio * advantage / 2
    assert slope.tolist() == pytest.approx([expected, -0.5], rel=1e-12, abs=0)


def test_ratios_beyond_float32_leave_the_gradient_finite():
    """Of what the clip leaves out (A > 0) and of what is cut off (A < 0) it is zero."""
    log_ratio = torch.tensor([100.0, 100.0, -200.0, 0.0], requires_grad=True)
    loss = clipped_objective(log_ratio, torch.tensor([1.0, -1.0, 1.0, 1.0]), clip=0.2)
    assert loss.isfinite()
    (slope,) = torch.autograd.grad(loss, log_ratio)
    assert slope.tolist() == [0, 0, 0, -0.25]


COUNT, THETA = 100_000, torch.tensor([0.6, -0.3], dtype=torch.float64)


def policy_gradient(update, times, reward, conditions, parameter):
    """DDPO's gradient of the expected reward, with the parameter (2,) as update() makes a policy of it."""
    noise = normal(COUNT, 2)
    trajectory = draw_trajectory(update(parameter), noise, times, draws(COUNT, 2))
    advantage = advantages(reward(trajectory), conditions)
    free = parameter.clone().requires_grad_()
    log_ratio = log_densities(trajectory, update(free)) - trajectory.log_density
    steps = len(trajectory.t)
    loss = clipped_objective(log_ratio.flatten(), advantage.repeat(steps), clip=0.2)
    return -steps * torch.autograd.grad(loss, free)[0]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_gradient_of_a_one_step_gaussian(path, eta):
    """One random step from t = 1, where tau = eta sigma_s, then one that keeps x.

    x_0 ~ N(alpha_s theta, sigma_s^2 I) for any eta (what tau lacks is the start's noise) and r = -||x_0 - m||^2 with
    a target m for each of two conditions, so that E r has gradient -2 alpha_s d, d = alpha_s theta - m, and r the
    variance 4 sigma_s^4 + 4 sigma_s^2 ||d||^2, by whose root its advantage divides.
    """
    s = 0.4
    targets = torch.tensor([[1.0, 0.5], [-0.4, 0.9]], dtype=torch.float64)
    conditions = (torch.arange(COUNT) % 3 == 0).long()

    def update(theta):
        return Ddim(lambda x, t: theta.expand_as(x) if t[0] == 1 else x, path, eta)

    def reward(trajectory):
        return -(trajectory.x_0 - targets[conditions]).square().sum(dim=1)

    found = policy_gradient(update, [1.0, s, 0.0], reward, conditions, THETA)
    time = torch.tensor(s, dtype=torch.float64)
    alpha, sigma = path.alpha(time), path.sigma(time)
    distance = alpha * THETA - targets
    deviation = (4 * sigma**4 + 4 * sigma**2 * distance.square().sum(dim=1)).sqrt()
    slopes = -2 * alpha * distance / deviation[:, None]
    expected = (slopes[0] * 2 + slopes[1]) / 3
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert expected.norm() > 0.3


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_steps_are_weighted_by_their_noise(path):
    t = torch.tensor([1.0, 0.6, 0.05], dtype=torch.float64)
    weights = step_weights(path, t)
    assert weights.dtype == torch.float32
    assert weights.mean().item() == pytest.approx(1)
    torch.testing.assert_close(weights / weights[0], (path.sigma(t) / path.sigma(t[0])).square().float())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_gradient_of_a_chain_of_gaussian_steps(path):
    """Six random steps with x_0 = theta + x / 2 predicted, a linear reward of the last random state.

    The states' means follow the steps' affine means, through which autograd gives the exact gradient; the reward's
    variance follows likewise.
    """
    times, direction = uniform_times(7), torch.tensor([0.8, 0.6], dtype=torch.float64)

    def update(theta):
        return Ddim(lambda x, t: theta + x / 2, path, 1.0)

    found = policy_gradient(
        update, times, lambda trajectory: trajectory.after[-1] @ direction, torch.zeros(COUNT).long(), THETA
    )
    free = THETA.clone().requires_grad_()
    mean, variance = torch.zeros(1, 2, dtype=torch.float64), 1.0
    for t, s in pairwise(times[:-1]):
        following, tau = update(free).transition(mean, t, s)
        slope = (update(free).transition(mean + 1, t, s)[0] - following)[0, 0].item()
        mean, variance = following, slope**2 * variance + tau**2
    (expected,) = torch.autograd.grad(mean[0] @ direction, free)
    torch.testing.assert_close(found, expected / variance**0.5, rtol=0, atol=0.04)
    assert expected.norm() > 0.5


def test_ratios_turn_one_policy_into_another():
    """E r under a policy is E (ratio r) under the one that drew: 1 for r = 1, the shifted mean for a linear r."""
    path, s = PATHS["straight"], 0.5
    old, new = THETA, THETA + 0.2

    def update(theta):
        return Ddim(lambda x, t: theta.expand_as(x), path, 1.0)

    trajectory = draw_trajectory(update(old), normal(COUNT, 2), [1.0, s], draws(COUNT, 2))
    ratio = (log_densities(trajectory, update(new)) - trajectory.log_density).exp().flatten()
    assert ratio.mean().item() == pytest.approx(1, abs=0.006)
    shifted = (ratio[:, None] * trajectory.x_0).mean(dim=0)
    torch.testing.assert_close(shifted, 0.5 * new, rtol=0, atol=0.01)
    torch.testing.assert_close(trajectory.x_0.mean(dim=0), 0.5 * old, rtol=0, atol=0.01)

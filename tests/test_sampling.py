import math

import pytest
import torch
from torch import nn

from graft.objectives import flow_matching
from graft.paths import PATHS
from graft.sampling import Stage, sample


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def still(x, t):
    return torch.zeros_like(x)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_zero_velocity_returns_the_input_bit_for_bit(steps):
    noise = normal(4, 3, 2, 2)
    assert torch.equal(sample(noise, [Stage(still, steps)]), noise)


def test_chain_equals_its_stages_one_after_the_other():
    def first(x, t):
        return torch.sin(x) * t[:, None]

    def second(x, t):
        return x.square() - t[:, None]

    noise = normal(5, 2)
    chain = sample(noise, [Stage(first, 3), Stage(second, 4)])
    assert torch.equal(chain, sample(sample(noise, [Stage(first, 3)]), [Stage(second, 4)]))
    assert not torch.allclose(chain, sample(noise, [Stage(second, 4), Stage(first, 3)]), atol=1e-2)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("rate", [-2.0, 0.5, 3.0])
def test_linear_velocity(rate, steps):
    noise = normal(6, dtype=torch.float64)
    found = sample(noise, [Stage(lambda x, t: rate * x, steps)])
    torch.testing.assert_close(found, (1 - rate / steps) ** steps * noise, rtol=1e-13, atol=1e-15)


def test_times_at_which_the_velocity_is_evaluated():
    seen = []

    def velocity(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    sample(normal(2, 3, dtype=torch.float64), [Stage(velocity, 4)])
    expected = torch.tensor([[1.0, 1.0], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25]], dtype=torch.float64)
    assert torch.equal(torch.stack(seen), expected)


def test_state_stays_in_the_precision_of_the_noise():
    noise = normal(100)
    found = sample(noise, [Stage(lambda x, t: x.bfloat16(), 2)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, noise / 4, rtol=0.02, atol=1e-3)
    assert not torch.equal(found, found.bfloat16().float())


def ddim(noise, velocity, path, steps):
    """DDIM's update, which keeps the predicted x_0 and noise over a step, not dx/dt."""
    x = noise
    for i in range(steps):
        t, s = (torch.tensor(1 - j / steps, dtype=x.dtype) for j in (i, i + 1))
        v = velocity(x, t.expand(len(x)))
        determinant = path.alpha(t) * path.sigma_derivative(t) - path.sigma(t) * path.alpha_derivative(t)
        x_0 = (path.sigma_derivative(t) * x - path.sigma(t) * v) / determinant
        eps = (path.alpha(t) * v - path.alpha_derivative(t) * x) / determinant
        x = path.alpha(s) * x_0 + path.sigma(s) * eps
    return x


def test_update_is_euler_and_not_ddim():
    """The two agree on the straight path; on the trigonometric one DDIM shrinks N(0, I), whose velocity is zero."""

    def velocity(x, t):
        return torch.cos(x) + t[:, None]

    noise = normal(50, 2, dtype=torch.float64)
    on_straight = ddim(noise, velocity, PATHS["straight"], 8)
    torch.testing.assert_close(sample(noise, [Stage(velocity, 8)]), on_straight, rtol=0, atol=1e-12)
    shrunk = ddim(noise, still, PATHS["trigonometric"], 8)
    torch.testing.assert_close(shrunk, math.cos(math.pi / 16) ** 8 * noise, rtol=1e-12, atol=0)
    assert torch.equal(sample(noise, [Stage(still, 8)]), noise)
    assert (shrunk.norm() / noise.norm()).item() < 0.86


class TinyFlow(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t):
        angle = t[:, None] * math.pi
        return self.layers(torch.cat([x, t[:, None], angle.sin(), angle.cos()], dim=1))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_trained_flow_samples_the_mean_and_covariance_of_a_gaussian(path):
    """Standard errors of the sampled mean and covariance are below 0.02; the bounds leave room for the training."""
    mean, covariance = torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]])
    factor, rng = torch.linalg.cholesky(covariance), torch.Generator().manual_seed(1)
    flow, steps = TinyFlow(), 600
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x_0 = mean + torch.randn(512, 2, generator=rng) @ factor.T
        loss = flow_matching(flow, path, x_0, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    samples = sample(torch.randn(10_000, 2, generator=rng), [Stage(flow, 50)])
    torch.testing.assert_close(samples.mean(dim=0), mean, rtol=0, atol=0.08)
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0, atol=0.1)


@pytest.mark.parametrize(("name", "expected"), [("straight", 2.0), ("trigonometric", math.pi**2 / 4)])
def test_flow_matching_loss_of_the_zero_velocity(name, expected):
    """E ||dx_t||^2 a dimension for N(0, I): alpha'^2 + sigma'^2."""
    loss = flow_matching(still, PATHS[name], normal(20_000, 2), torch.Generator().manual_seed(1))
    assert loss.item() == pytest.approx(expected, rel=0.03)


def test_flow_matching_draws_only_from_its_generator_and_covers_all_times():
    times = []

    def velocity(x, t):
        times.append(t)
        return torch.zeros_like(x)

    before = torch.get_rng_state()
    losses = [
        flow_matching(velocity, PATHS["straight"], normal(64, 2), torch.Generator().manual_seed(seed)).item()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]
    for t in times:
        assert t.min() >= 0
        assert t.max() <= 1
        assert sorted((t * 64).floor().long().clamp(max=63).tolist()) == list(range(64))

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from graft.objectives import flow_matching
from graft.paths import PATHS, StableDiffusionPath, conditional_sigma
from graft.sampling import Ddim, Euler, Stage, flow_stage, sample, snapshots, uniform_times


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def still(x, t):
    return torch.zeros_like(x)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_zero_velocity_returns_the_input_bit_for_bit(steps):
    noise = normal(4, 3, 2, 2)
    assert torch.equal(sample(noise, [flow_stage(still, steps)]), noise)


def test_chain_equals_its_stages_one_after_the_other():
    def first(x, t):
        return torch.sin(x) * t[:, None]

    def second(x, t):
        return x.square() - t[:, None]

    noise = normal(5, 2)
    chain = sample(noise, [flow_stage(first, 3), flow_stage(second, 4)])
    assert torch.equal(chain, sample(sample(noise, [flow_stage(first, 3)]), [flow_stage(second, 4)]))
    assert not torch.allclose(chain, sample(noise, [flow_stage(second, 4), flow_stage(first, 3)]), atol=1e-2)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("rate", [-2.0, 0.5, 3.0])
def test_linear_velocity(rate, steps):
    noise = normal(6, dtype=torch.float64)
    found = sample(noise, [flow_stage(lambda x, t: rate * x, steps)])
    torch.testing.assert_close(found, (1 - rate / steps) ** steps * noise, rtol=1e-13, atol=1e-15)


def test_times_at_which_the_velocity_is_evaluated():
    seen = []

    def velocity(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    sample(normal(2, 3, dtype=torch.float64), [flow_stage(velocity, 4)])
    expected = torch.tensor([[1.0, 1.0], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25]], dtype=torch.float64)
    assert torch.equal(torch.stack(seen), expected)


def test_state_stays_in_the_precision_of_the_noise():
    noise = normal(100)
    found = sample(noise, [flow_stage(lambda x, t: x.bfloat16(), 2)])
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
    torch.testing.assert_close(sample(noise, [flow_stage(velocity, 8)]), on_straight, rtol=0, atol=1e-12)
    shrunk = ddim(noise, still, PATHS["trigonometric"], 8)
    torch.testing.assert_close(shrunk, math.cos(math.pi / 16) ** 8 * noise, rtol=1e-12, atol=0)
    assert torch.equal(sample(noise, [flow_stage(still, 8)]), noise)
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
    samples = sample(torch.randn(10_000, 2, generator=rng), [flow_stage(flow, 50)])
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


MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.6, 0.2], [0.2, 0.3]], dtype=torch.float64)


def marginal(path, t):
    """Mean (2,) and covariance (2, 2) of x_t for x_0 ~ N(MEAN, COVARIANCE)."""
    t = torch.tensor(t, dtype=torch.float64)
    return path.alpha(t) * MEAN, path.alpha(t) ** 2 * COVARIANCE + path.sigma(t) ** 2 * torch.eye(2)


def gaussian_denoiser(path):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, COVARIANCE); all samples at one time."""

    def denoise(x, t):
        mean, covariance = marginal(path, t[0].item())
        gain = path.alpha(t[0]) * COVARIANCE.to(x.dtype) @ torch.linalg.inv(covariance).to(x.dtype)
        return MEAN.to(x.dtype) + (x - mean.to(x.dtype)) @ gain.T

    return denoise


def bent(scale):
    """A denoiser that is no Gaussian's, for what must hold for any model."""
    return lambda x, t: torch.tanh(scale * x) + t[:, None] * x.flip(1) / 3


class Draws:
    """The sampler's standard normal numbers for a batch, counted."""

    def __init__(self, *shape, dtype=torch.float64, seed=1):
        self.shape, self.dtype, self.count = shape, dtype, 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self):
        self.count += 1
        return torch.randn(self.shape, generator=self.generator, dtype=self.dtype)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_step_on_the_straight_path_in_numbers(eta):
    """t = 0.8, s = 0.5: sigma(t|s)^2 = 0.64 - (0.2 / 0.5)^2 0.25 = 0.6."""
    tau = eta * 0.5 / 0.8 * math.sqrt(0.6)
    x, x_0 = normal(2, 4, 3, dtype=torch.float64)
    mean, found = Ddim(lambda x, t: x_0, PATHS["straight"], eta).transition(x, 0.8, 0.5)
    assert found == pytest.approx(tau, rel=1e-12)
    expected = 0.5 * x_0 + math.sqrt(0.25 - tau**2) * (x - 0.2 * x_0) / 0.8
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.95), (0.7, 0.2), (0.1, 0.09)])
def test_ancestral_step_is_the_posterior_of_the_path(path, t, s):
    """At eta = 1, by Bayes: N(alpha_s x_0, sigma_s^2) times the likelihood N(x_t; kept x_s, sigma(t|s)^2) of x_s."""
    x_t, x_0 = normal(2, 4, 3, dtype=torch.float64)
    times = torch.tensor([t, s], dtype=torch.float64)
    (alpha_t, alpha_s), (_, sigma_s) = path.alpha(times), path.sigma(times)
    kept, variance = alpha_t / alpha_s, conditional_sigma(path, *times) ** 2
    precision = 1 / sigma_s**2 + kept**2 / variance
    mean, tau = Ddim(lambda x, t: x_0, path, 1.0).transition(x_t, t, s)
    assert tau == pytest.approx(precision.item() ** -0.5, rel=1e-10)
    posterior = (alpha_s * x_0 / sigma_s**2 + kept * x_t / variance) / precision
    torch.testing.assert_close(mean, posterior, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", [*PATHS.values(), StableDiffusionPath()], ids=[*PATHS, "stable_diffusion"])
def test_rows_step_from_their_own_times(path):
    """In one call as in one call for each of them."""
    update, x = Ddim(bent(0.7), path, 0.8), normal(3, 2, dtype=torch.float64)
    t, s = torch.tensor([[0.9, 0.4, 0.05], [0.85, 0.2, 0.0]], dtype=torch.float64)
    mean, tau = update.transition(x, t, s)
    apart = [update.transition(x[[row]], t[row].item(), s[row].item()) for row in range(3)]
    torch.testing.assert_close(mean, torch.cat([each for each, _ in apart]), rtol=1e-12, atol=1e-12)
    assert tau.tolist() == pytest.approx([each for _, each in apart], rel=1e-12)
    assert tau[0] > 0
    assert tau[2] == 0


def test_ddim_without_noise_is_euler_on_the_straight_path():
    denoise = bent(1.5)
    deterministic = Ddim(denoise, PATHS["straight"], 0.0)
    euler = Euler(lambda x, t: (x - denoise(x, t)) / t[:, None])
    noise = normal(50, 2, dtype=torch.float64)
    found = [sample(noise, [Stage(update, uniform_times(9))]) for update in (deterministic, euler)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    assert (found[0] - noise).abs().max() > 1


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_last_step_draws_nothing_and_returns_the_denoised(path):
    draws, update = Draws(5, 2), Ddim(bent(0.7), path, 1.0)
    noise = normal(5, 2, dtype=torch.float64)
    before, after = snapshots(
        noise, [Stage(update, uniform_times(6)[:-1]), Stage(update, uniform_times(6)[-2:])], draws
    )
    assert draws.count == 5
    expected = update.denoise(before, torch.full((5,), uniform_times(6)[-2], dtype=torch.float64))
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)
    assert torch.isfinite(sample(noise, [Stage(Ddim(bent(0.7), path, 0.0), uniform_times(6))])).all()


def largest_error_of_the_law(path, eta, steps):
    """Of the sampler's mean and covariance at any of its times; its steps are affine maps of x for a Gaussian."""
    update = Ddim(gaussian_denoiser(path), path, eta)
    mean, covariance, errors = torch.zeros(2).double(), torch.eye(2).double(), []
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for t, s in pairwise(uniform_times(steps)):
        (shift, *columns), tau = update.transition(points, t, s)
        slope = torch.stack([column - shift for column in columns], dim=1)
        mean = shift + slope @ mean
        covariance = slope @ covariance @ slope.T + tau**2 * torch.eye(2)
        exact_mean, exact_covariance = marginal(path, s)
        errors += [(mean - exact_mean).abs().max(), (covariance - exact_covariance).abs().max()]
    return torch.stack(errors).max().item()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_marginals_of_a_gaussian_are_right_at_every_time(path, eta):
    """Computed, not sampled: the error falls as 1 / steps, as for any first-order sampler."""
    coarse, fine = (largest_error_of_the_law(path, eta, steps) for steps in (100, 400))
    assert fine < 0.01
    assert fine < 0.35 * coarse


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_ancestral_chain_has_the_joint_law_of_the_path(path):
    """At eta = 1, Cov(x_t, x_s) = (alpha_t / alpha_s) Var(x_s), at all times.

    300 steps and these samples are off by at most 0.007; eta = 0.9 is by 0.038, eta = 0.8 by 0.078.
    """
    count, times = 20_000, uniform_times(300)
    thirds = [times[: 120 + 1], times[120 : 240 + 1], times[240:]]
    update = Ddim(gaussian_denoiser(path), path, 1.0)
    noise = normal(count, 2)
    states = snapshots(noise, [Stage(update, part) for part in thirds], Draws(count, 2, dtype=torch.float32))
    found = torch.cat(states, dim=1).double().T.cov()
    ends = [part[-1] for part in thirds]
    for i, t in enumerate(ends):
        for j, s in enumerate(ends[i:], start=i):
            alphas = path.alpha(torch.tensor([t, s], dtype=torch.float64))
            expected = alphas[0] / alphas[1] * marginal(path, s)[1]
            block = found[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            torch.testing.assert_close(block, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "update",
    [Euler(bent(0.9)), Ddim(bent(0.9), PATHS["trigonometric"], 0.5), Ddim(bent(0.9), PATHS["straight"], 1.0)],
    ids=["euler", "ddim, eta 0.5", "ddim, eta 1"],
)
def test_cutting_a_chain_into_stages_changes_no_bit(update):
    times, noise = uniform_times(12), normal(7, 2)
    whole = sample(noise, [Stage(update, times)], Draws(7, 2, dtype=torch.float32))
    one_by_one = snapshots(
        noise, [Stage(update, times[i : i + 2]) for i in range(12)], Draws(7, 2, dtype=torch.float32)
    )
    assert torch.equal(one_by_one[-1], whole)
    for cut in range(13):
        stages = [Stage(update, times[: cut + 1]), Stage(update, times[cut:])]
        states = snapshots(noise, stages, Draws(7, 2, dtype=torch.float32))
        assert torch.equal(states[0], one_by_one[cut - 1] if cut else noise)
        assert torch.equal(states[1], whole)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_tuned_model_alone_at_cut_0_and_base_alone_at_cut_1(eta):
    """Bit for bit, and the other model is not even called; in between both are, each on its own side of the cut."""
    steps, noise = 8, normal(6, 2)
    times = uniform_times(steps)
    called = {"tuned": [], "base": []}

    def model(name, scale):
        def denoise(x, t):
            called[name].append(t[0].item())
            return bent(scale)(x, t)

        return Ddim(denoise, PATHS["trigonometric"], eta)

    tuned, base = model("tuned", 1.3), model("base", 0.8)

    def drawn(*stages):
        called["tuned"].clear()
        called["base"].clear()
        return sample(noise, stages, Draws(6, 2, dtype=torch.float32))

    def with_cut(index):
        return drawn(Stage(tuned, times[: steps - index + 1]), Stage(base, times[steps - index :]))

    only_tuned, only_base = drawn(Stage(tuned, times)), drawn(Stage(base, times))
    assert not torch.allclose(only_tuned, only_base, atol=1e-2)
    assert torch.equal(with_cut(0), only_tuned)
    assert called == {"tuned": times[:-1], "base": []}
    assert torch.equal(with_cut(steps), only_base)
    assert called == {"tuned": [], "base": times[:-1]}
    between = with_cut(2)
    assert called == {"tuned": times[:6], "base": times[6:8]}
    assert not torch.equal(between, only_tuned)
    assert not torch.equal(between, only_base)


def test_sampling_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    states = snapshots(normal(3, 2), [flow_stage(lambda x, t: weight * x, 2), flow_stage(still, 1)])
    assert not any(state.requires_grad for state in states)

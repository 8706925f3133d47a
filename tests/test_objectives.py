"""Denoising above a cut.

Gradients at an exact score are zero to within 4.5 standard errors (measured: 2.8). Those of wrong formulas are off, at
their worst cut: with rho inverted 7, squared 15 to 40, left out 12 to 50; with the other sign in the target 112, with
alpha_c for alpha_c^2 55, with sigma(t|c) for sigma_t 23.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from graft.objectives import (
    Anchor,
    FocusedTimes,
    denoising,
    noise_prediction,
    point_above_cut,
    squared_error,
    stratified_times,
)
from graft.paths import PATHS, sample_path

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
FACTOR = torch.tensor([[0.9, 0.0], [0.4, 0.5]], dtype=torch.float64)
COUNT = 50_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def gaussian_denoiser(path, x, t, mean, factor):
    """E[x_0 | x_t = x] for x_0 ~ N(mean, factor factor^T): x and mean (B, 2), factor (B, 2, 2), t (B,)."""
    alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
    covariance = factor @ factor.mT
    noisy = alpha**2 * covariance + sigma**2 * torch.eye(2)
    whitened = torch.linalg.solve(noisy, x[..., None] - alpha * mean[..., None])
    return mean + (alpha * covariance @ whitened)[..., 0]


def weight(t):
    """Any weight has the same fixed point; this one counts the times very differently."""
    return (0.1 + t[:, None]) ** 2


def gradients(form, path, snapshots, cut_time, declared_cut=None, at=MEAN, start=MEAN, odds=None):
    """Gradient at the score of N(at, FACTOR FACTOR^T), (B, 6), of the loss of each sample: in mean and factor.

    With odds (B,) it is anchored at the model of the mean `start`.
    """
    noise = normal(*snapshots.shape, seed=2)
    t = stratified_times(snapshots, generator(3), cut_time)
    mean = at.expand(len(t), 2).clone().requires_grad_()
    factor = FACTOR.expand(len(t), 2, 2).clone().requires_grad_()

    def model(mean, factor):
        def denoise(x, t):
            return gaussian_denoiser(path, x, t, mean, factor)

        def predict_noise(x, t):
            return (x - path.alpha(t)[:, None] * denoise(x, t)) / path.sigma(t)[:, None]

        return predict_noise if form == "noise" else denoise

    cut = cut_time if declared_cut is None else declared_cut
    anchor = None if odds is None else Anchor(model(start, FACTOR), odds)
    if form == "noise":
        loss = noise_prediction(model(mean, factor), path, snapshots, cut, noise, t, anchor)
    else:
        loss = denoising(model(mean, factor), weight, path, snapshots, cut, noise, t, anchor)
    slopes = torch.autograd.grad(len(t) * loss, (mean, factor))
    return torch.cat([slope.flatten(1) for slope in slopes], dim=1)


def standard_scores(samples):
    """Mean of each column over its standard error."""
    return samples.mean(dim=0) / (samples.std(dim=0) / len(samples) ** 0.5)


def exact_snapshots(path, cut_time, seed=0):
    x_0 = MEAN + normal(COUNT, 2, seed=seed) @ FACTOR.T
    return sample_path(path, x_0, normal(COUNT, 2, seed=1), torch.full((COUNT,), cut_time, dtype=torch.float64)).x_t


@pytest.mark.parametrize("cut_time", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("form", ["noise", "x_0"])
def test_exact_score_is_a_fixed_point_when_everything_is_accepted(form, path, cut_time):
    scores = standard_scores(gradients(form, path, exact_snapshots(path, cut_time), cut_time))
    assert scores.abs().max() < 4.5


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("form", ["noise", "x_0"])
def test_gradient_is_not_zero_where_it_must_not_be(form, path):
    """The test above has the power to fail: half of the snapshots accepted, or snapshots taken for data."""
    snapshots = exact_snapshots(path, 0.5)
    accepted = snapshots[snapshots.sum(dim=1) > snapshots.sum(dim=1).median()]
    assert standard_scores(gradients(form, path, accepted, 0.5)).abs().max() > 20
    assert standard_scores(gradients(form, path, snapshots, 0.5, declared_cut=0.0)).abs().max() > 20


TILT = torch.tensor([0.4, -0.3], dtype=torch.float64)


def tilted_snapshots(path, cut_time):
    """Snapshots of N(MEAN, FACTOR FACTOR^T), and odds exp(TILT x_0) / E exp(TILT x_0) of their data."""
    x_0 = MEAN + normal(COUNT, 2, seed=0) @ FACTOR.T
    scale = (TILT @ FACTOR).square().sum() / 2
    t = torch.full((COUNT,), cut_time, dtype=torch.float64)
    return sample_path(path, x_0, normal(COUNT, 2, seed=1), t).x_t, ((x_0 - MEAN) @ TILT - scale).exp()


@pytest.mark.parametrize("cut_time", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("form", ["noise", "x_0"])
def test_anchored_at_an_exact_score_the_gradient_is_that_of_the_accepted(form, path, cut_time):
    """On the way from N(m, S) to what is accepted with odds exp(b x), N(m + S b, S); and it is not zero."""
    snapshots, odds = tilted_snapshots(path, cut_time)
    found = gradients(form, path, snapshots, cut_time, odds=odds)
    accepted = odds[:, None] * gradients(form, path, snapshots, cut_time)
    assert standard_scores(found - accepted).abs().max() < 4.5
    assert standard_scores(found).abs().max() > 20


@pytest.mark.parametrize("cut_time", [0.0, 0.5])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("form", ["noise", "x_0"])
def test_anchored_a_model_stays_what_it_is_when_everything_is_accepted(form, path, cut_time):
    """Exactly, whatever its own samples are: here those of another mean, which plain denoising would go to."""
    snapshots, odds, other = exact_snapshots(path, cut_time), torch.ones(COUNT), MEAN + 1
    anchored = gradients(form, path, snapshots, cut_time, at=other, start=other, odds=odds)
    plain = gradients(form, path, snapshots, cut_time, at=other)
    assert anchored.abs().max() < 1e-12 * plain.abs().max()
    assert standard_scores(plain).abs().max() > 20


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_what_an_anchored_loss_is_the_least_of(path):
    """b + r (E[y | A] - m) + (r - 1) (m - b), over predictions that are free at each x_t; from samples of y at one."""
    y, odds = normal(9, 1, seed=4), normal(9, seed=5).square()
    r, b = 0.7, 0.3
    odds = odds / odds.mean() * r
    x_c, t = y * 0 + 1, torch.full((9,), 0.6, dtype=torch.float64)
    point = point_above_cut(path, x_c, 0.0, y, t)
    prediction = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    anchor = Anchor(lambda x, t: torch.full_like(x, b), odds)
    loss = squared_error(lambda x, t: prediction.expand_as(x), point, y, t, anchor).mean()
    (slope,) = torch.autograd.grad(loss, prediction, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, prediction)
    least = -slope / curvature
    accepted, m = (odds @ y[:, 0]) / odds.sum(), y.mean()
    assert least.item() == pytest.approx((b + r * (accepted - m) + (r - 1) * (m - b)).item(), rel=1e-6)


@pytest.mark.parametrize("cut_time", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_what_is_regressed_above_a_cut(path, cut_time):
    """Exact, for x_0 ~ N(0, v): x_t and both targets are linear in x_c and eps', so E[target | x_t] is a slope.

    The slopes have to be rho times those of x_0 and of the total noise given x_t.
    """
    v = 0.7
    t = cut_time + (1 - cut_time) * torch.linspace(0.01, 1, 50, dtype=torch.float64)
    c = torch.tensor(cut_time, dtype=torch.float64)
    one, zero = torch.ones(50, 1, dtype=torch.float64), torch.zeros(50, 1, dtype=torch.float64)
    of_snapshot = point_above_cut(path, one, cut_time, zero, t)
    of_noise = point_above_cut(path, zero, cut_time, one, t)
    variance_c = path.alpha(c) ** 2 * v + path.sigma(c) ** 2
    variance_t = of_snapshot.x_t**2 * variance_c + of_noise.x_t**2
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    torch.testing.assert_close(variance_t, alpha**2 * v + sigma**2, rtol=1e-12, atol=0)
    covariance = of_snapshot.target * of_snapshot.x_t * variance_c + of_noise.target * of_noise.x_t
    torch.testing.assert_close(covariance, of_snapshot.ratio * alpha * v, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of_noise.x_t, of_snapshot.ratio * sigma, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_cut_0_is_plain_denoising(path):
    """Bit for bit."""
    x_0, noise = torch.randn(2, 64, 3, 4, generator=generator())
    t = stratified_times(x_0, generator(1))
    point = sample_path(path, x_0, noise, t)

    def model(x, t):
        return torch.sin(x) * t[:, None, None]

    plain = (weight(t)[..., None] * (model(point.x_t, t) - x_0).square()).mean()
    found = denoising(model, lambda t: weight(t)[..., None], path, x_0, 0.0, noise, t)
    assert torch.equal(found, plain)
    assert torch.equal(noise_prediction(model, path, x_0, 0.0, noise, t), (noise - model(point.x_t, t)).square().mean())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("cut_time", [0.2, 0.6])
def test_points_above_a_cut_have_the_law_of_the_path(path, cut_time):
    """For images with times of their own: x_t given x_0 is N(alpha_t x_0, sigma_t^2)."""
    count = 50_000
    t = torch.tensor([cut_time + 0.05, 0.8, 1.0], dtype=torch.float64)
    eps, noise = normal(2, 3 * count, 1, 2)
    every_t = t.repeat_interleave(count)
    x_0 = torch.full_like(noise, 1.5)
    x_c = sample_path(path, x_0, eps, torch.full_like(every_t, cut_time)).x_t
    x_t = point_above_cut(path, x_c, cut_time, noise, every_t).x_t.reshape(3, -1)
    torch.testing.assert_close(x_t.mean(dim=1), 1.5 * path.alpha(t), rtol=0, atol=0.015)
    torch.testing.assert_close(x_t.std(dim=1), path.sigma(t), rtol=0.012, atol=0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("cut_time", [0.0, 0.25, 0.9])
def test_losses_are_finite_where_an_exact_zero_is_drawn(path, cut_time, monkeypatch):
    """In float32 that is once in about 2^24 / B batches."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape))
    x_c, noise = normal(2, 64, 2).float()
    t = stratified_times(x_c, generator(), cut_time)
    assert torch.isfinite(noise_prediction(lambda x, t: x, path, x_c, cut_time, noise, t))
    assert torch.isfinite(denoising(lambda x, t: x, weight, path, x_c, cut_time, noise, t))


@pytest.mark.parametrize("lowest", [0.0, 0.3])
def test_stratified_times_are_uniform_above_the_lowest(lowest):
    """One in each of B equal intervals of (lowest, 1], and each of them uniform over the draws."""
    x, rng = torch.zeros(16, 3, dtype=torch.float64), generator()
    draws = torch.stack([stratified_times(x, rng, lowest) for _ in range(4000)])
    intervals = ((draws - lowest) / (1 - lowest) * 16 - 1e-9).floor().long()
    assert torch.equal(intervals.sort(dim=1).values, torch.arange(16).expand(4000, 16))
    uniform = (draws.flatten() - lowest) / (1 - lowest)
    assert uniform.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert uniform.square().mean().item() == pytest.approx(1 / 3, abs=1e-3)
    first = draws[:, 0]
    assert first.mean().item() == pytest.approx(lowest + (1 - lowest) / 2, abs=0.02)


@pytest.mark.parametrize("lowest", [0.0, 0.2])
def test_focused_times_have_their_law_above_the_lowest(lowest):
    """Against SciPy's distributions of the two parts, cut off below; one in each interval of equal probability."""
    x, rng, law = torch.zeros(16, 3, dtype=torch.float64), generator(), FocusedTimes(0.3, 0.8, uniform=0.4)
    draws = torch.stack([stratified_times(x, rng, lowest, law) for _ in range(2000)])
    logits = stats.norm(math.log(0.3 / 0.7), 0.8)

    def share_below(times):
        with np.errstate(divide="ignore"):
            return 0.4 * times + 0.6 * logits.cdf(np.log(times / (1 - times)))

    least = share_below(np.float64(lowest))
    shares = (share_below(draws.numpy()) - least) / (1 - least)
    assert draws.min() >= lowest
    assert stats.kstest(shares.flatten()[::7], "uniform").pvalue > 0.01
    assert shares.mean(axis=1).std() < 0.05  # of 16 independent times it would be 0.07


def test_focused_times_may_be_one_and_are_finite():
    law, ends = FocusedTimes(0.3, 1.0, uniform=0.1), torch.tensor([1e-8, 0.1, 1.0])
    times = law.above(0.0, ends)
    assert times[0] > 0
    torch.testing.assert_close(times[1:], torch.ones(2))
    for lowest in torch.linspace(0.01, 0.9, 200).tolist():  # rounding must not take a quantile's argument above 1
        assert law.above(lowest, ends).isfinite().all()

import math

import pytest
import torch

from graft.paths import PATHS, conditional_sigma, sample_path, unit_information

TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)


def test_both_paths_are_offered():
    assert set(PATHS) == {"straight", "trigonometric"}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("schedule", ["alpha", "sigma"])
def test_derivatives_agree_with_autograd(path, schedule):
    t = TIMES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(getattr(path, schedule)(t).sum(), t)
    torch.testing.assert_close(getattr(path, f"{schedule}_derivative")(TIMES), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_time_zero_is_data_and_time_one_is_noise(path):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.alpha(ends), torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(path.sigma(ends), torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-15)


def test_values_between_the_ends():
    t = torch.tensor(1 / 3, dtype=torch.float64)
    values = {name: (path.alpha(t).item(), path.sigma(t).item()) for name, path in PATHS.items()}
    assert values["straight"] == pytest.approx((2 / 3, 1 / 3), abs=1e-15)
    assert values["trigonometric"] == pytest.approx((math.sqrt(3) / 2, 1 / 2), abs=1e-15)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_points_of_a_path_and_their_velocity(path):
    """Images, each with a time of its own; the velocity against forward-mode differentiation of the point."""
    rng = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 5, 3, 4, 4, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    point = sample_path(path, x_0, noise, t)
    x_t, dx_t = torch.func.jvp(lambda t: sample_path(path, x_0, noise, t).x_t, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(point.dx_t, dx_t, rtol=0, atol=1e-14)
    torch.testing.assert_close(point.x_t, x_t, rtol=0, atol=0)
    torch.testing.assert_close(point.x_t[[0, 4]], torch.stack([x_0[0], noise[4]]), rtol=0, atol=1e-15)
    for i in range(5):
        expected = path.alpha(t[i]) * x_0[i] + path.sigma(t[i]) * noise[i]
        torch.testing.assert_close(point.x_t[i], expected, rtol=0, atol=1e-15)


def normal_slope(path, t):
    """The exact velocity for the target N(0, I) is this multiple of x: Cov(dx_t, x_t) / Var(x_t)."""
    covariance = path.alpha(t) * path.alpha_derivative(t) + path.sigma(t) * path.sigma_derivative(t)
    return covariance / (path.alpha(t) ** 2 + path.sigma(t) ** 2)


def test_exact_velocity_for_normal_noise_is_zero_on_the_trigonometric_path_only():
    assert normal_slope(PATHS["trigonometric"], TIMES).abs().max() < 1e-15
    assert normal_slope(PATHS["straight"], TIMES).abs().max() == 1


@pytest.mark.parametrize("time", [0.1, 0.3, 0.8])
def test_velocity_for_normal_noise_regressed_on_the_point(time):
    """Monte Carlo E[dx_t | x_t] = slope x_t, from samples alone."""
    count = 200_000
    x_0, noise = torch.randn(2, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slopes, errors = {}, {}
    for name, path in PATHS.items():
        point = sample_path(path, x_0, noise, torch.full((count,), time, dtype=torch.float64))
        slopes[name] = (point.x_t @ point.dx_t / (point.x_t @ point.x_t)).item()
        rest = point.dx_t - slopes[name] * point.x_t
        errors[name] = (rest.square().mean() / (point.x_t @ point.x_t)).sqrt().item()
    assert abs(slopes["trigonometric"]) < 4 * errors["trigonometric"] < 0.02
    straight = normal_slope(PATHS["straight"], torch.tensor(time, dtype=torch.float64)).item()
    assert abs(slopes["straight"] - straight) < 4 * errors["straight"]
    assert abs(slopes["straight"]) > 100 * errors["straight"]


@pytest.mark.parametrize(
    ("name", "t", "s", "expected"),
    [("straight", 0.8, 0.5, math.sqrt(0.64 - 0.04)), ("trigonometric", 2 / 3, 1 / 3, math.sqrt(2 / 3))],
)
def test_noise_between_two_times(name, t, s, expected):
    times = torch.tensor([t, s], dtype=torch.float64)
    assert conditional_sigma(PATHS[name], *times).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_noises_of_consecutive_intervals_add_up(path):
    """x_t = (alpha_t / alpha_s) x_s + sigma(t|s) eps' from x_s made likewise of x_u: sigma(t|u) in one go."""
    u, s, t = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(dim=0).values
    kept = path.alpha(t) / path.alpha(s)
    found = conditional_sigma(path, t, s) ** 2 + (kept * conditional_sigma(path, s, u)) ** 2
    torch.testing.assert_close(found.sqrt(), conditional_sigma(path, t, u), rtol=0, atol=1e-12)
    everything = conditional_sigma(path, t, torch.zeros_like(t))
    torch.testing.assert_close(everything, path.sigma(t), rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_noise_over_an_interval_of_rounding_errors(path):
    """Where sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 is rounding alone, in float32."""
    s = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) * 0.99
    assert conditional_sigma(path, s, s).max() < 0.01
    assert conditional_sigma(path, torch.nextafter(s, torch.ones(())), s).max() < 0.01


@pytest.mark.parametrize(("name", "t"), [("straight", 0.25), ("trigonometric", 2 / math.pi * math.atan(1 / 3))])
def test_information_of_a_standard_normal_coordinate(name, t):
    """At alpha / sigma = 3 it is log(10) / 2; at the noise there is none."""
    found = unit_information(PATHS[name], torch.tensor([t, 1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([math.log(10) / 2, 0], abs=1e-12)

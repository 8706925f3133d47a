from pathlib import Path

import pytest
import torch

from graft.image_formats import read_digits
from graft.inversion import invert, largest_error, solve_step
from graft.sampling import flow_stage, sample, uniform_times

TOLERANCE = 1e-6
ITERATIONS = 60
DEQUANTISATION = 0.1


@pytest.fixture(scope="module")
def digits():
    """A hundred digits as points, (100, 1, 8, 8)."""
    return torch.from_numpy(read_digits(Path(), 8, 1).images[:100]).float() / 127.5 - 1


@pytest.fixture(scope="module")
def velocity(digits):
    """Exact velocity of the straight path for the digits dequantised: a mixture of as many Gaussians."""
    means = digits.flatten(1).double()

    def exact(x, t):
        t, flat = t[:, None].double(), x.flatten(1).double()
        alpha = 1 - t
        variance = (alpha * DEQUANTISATION) ** 2 + t**2
        distances = (flat[:, None] - alpha[:, None] * means).square().sum(dim=2)
        centre = torch.softmax(-distances / (2 * variance), dim=1) @ means
        deviation = flat - alpha * centre
        x_0 = centre + alpha * DEQUANTISATION**2 / variance * deviation
        eps = t / variance * deviation
        return (eps - x_0).reshape(x.shape).float()

    return exact


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(x, truth):
    return (x - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def backward_ode(x, velocity, steps):
    """What the exact inverse must not be: Euler steps of the flow in backward time."""
    for time in reversed(uniform_times(steps)[1:]):
        x = x + velocity(x, torch.full((len(x),), time)) / steps
    return x


@pytest.mark.parametrize("steps", [8, 16, 32])
def test_known_noise_comes_back(velocity, steps):
    """Measured: 4e-6 at most. A backward-time ODE misses the bound by a factor of 200 on every sample."""
    noise = normal(100, 1, 8, 8)
    images = sample(noise, [flow_stage(velocity, steps)])
    inversion = invert(images, velocity, steps, TOLERANCE, ITERATIONS)
    converged = inversion.converged(TOLERANCE)
    assert converged.double().mean() >= (0.9 if steps > 8 else 0.5)
    assert relative_error(inversion.noise, noise)[converged].max() < 1e-3
    assert relative_error(backward_ode(images, velocity, steps), noise).min() > 0.2


@pytest.mark.parametrize("steps", [8, 16, 32])
def test_data_come_back_from_their_noise(digits, velocity, steps):
    data = digits + DEQUANTISATION * normal(*digits.shape, seed=1)
    inversion = invert(data, velocity, steps, TOLERANCE, ITERATIONS)
    converged = inversion.converged(TOLERANCE)
    assert converged.double().mean() >= (0.9 if steps > 8 else 0.5)
    again = sample(inversion.noise, [flow_stage(velocity, steps)])
    assert relative_error(again, data)[converged].max() < 1e-4
    from_ode = sample(backward_ode(data, velocity, steps), [flow_stage(velocity, steps)])
    assert relative_error(from_ode, data).median() > 1e-2


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-5])
def test_estimated_error_is_honest_with_the_exact_velocity(velocity, tolerance):
    """Every step of eight from known points: the true error of a solved one is at most twice the tolerance."""
    x = normal(100, 1, 8, 8)
    for time in uniform_times(8)[:-1]:
        after = x - velocity(x, torch.full((len(x),), time)) / 8
        found, error, _ = solve_step(after, velocity, time, 1 / 8, tolerance, ITERATIONS)
        solved = error <= tolerance
        assert solved.any()
        assert relative_error(found, x)[solved].max() < 2 * tolerance
        x = after


def test_estimated_error_is_honest_where_residuals_are_not():
    """h J has eigenvalues up to 0.95: the error is up to 20 times the residual. Measured: 4 times the estimate."""
    rates, tolerance = torch.linspace(-0.9, 0.95, 64), 1e-4
    x = normal(50, 64)
    found, error, _ = solve_step(x - rates * x, lambda x, t: rates * x, 1.0, 1.0, tolerance, 100)
    assert (error <= tolerance).all()
    assert relative_error(found, x).max() < 8 * tolerance
    residual = (x - rates * x + rates * found - found).norm(dim=1) / found.norm(dim=1)
    assert (residual < tolerance / 3).all()


def test_one_step_is_the_solution_of_its_equation_and_not_a_backward_step():
    x = normal(10, 3)
    inversion = invert(x, lambda x, t: 0.5 * x, 1, TOLERANCE, ITERATIONS)
    torch.testing.assert_close(inversion.noise, 2 * x, rtol=1e-5, atol=0)


def test_zero_velocity_inverts_to_the_input():
    x = normal(4, 3)
    inversion = invert(x, lambda x, t: torch.zeros_like(x), 3, TOLERANCE, ITERATIONS)
    assert torch.equal(inversion.noise, x)
    assert inversion.converged(TOLERANCE).all()


def test_too_few_iterations_do_not_count_as_converged(digits, velocity):
    inversion = invert(digits, velocity, 8, TOLERANCE, 1)
    assert not inversion.converged(TOLERANCE).any()
    assert not (inversion.error <= TOLERANCE).any()


def test_best_iterate_is_kept(digits, velocity):
    """The last of two steps, which is too hard: more iterations never leave a larger error."""
    errors = [solve_step(digits, velocity, 0.5, 0.5, TOLERANCE, count)[1] for count in range(2, 12)]
    assert not (errors[-1] <= TOLERANCE).all()
    assert (torch.stack(errors).diff(dim=0) <= 0).all()


def exponential(x, t):
    """One step of h = 1 sends x to exp(x): what is negative has no inverse."""
    return x - x.exp()


def test_samples_without_a_solution_are_marked_and_the_others_solved():
    known = torch.tensor([[-0.5], [0.3], [-0.1]])
    x = torch.cat([known.exp(), torch.tensor([[-0.5], [-2.0]])])
    inversion = invert(x, exponential, 1, TOLERANCE, ITERATIONS)
    assert inversion.converged(TOLERANCE).tolist() == [True, True, True, False, False]
    torch.testing.assert_close(inversion.noise[:3], known, rtol=1e-5, atol=0)


def test_iterates_that_run_away_do_not_count_as_solved():
    """From exp(0.5) an iterate of -1e15 is reached, where the residual is lost to rounding."""
    known = torch.tensor([[0.5]])
    inversion = invert(known.exp(), exponential, 1, TOLERANCE, ITERATIONS)
    right = torch.isclose(inversion.noise, known, rtol=1e-5, atol=0).all(dim=1)
    assert torch.equal(inversion.converged(TOLERANCE), right)


def test_velocity_that_is_not_finite_marks_only_its_samples(velocity):
    images = sample(normal(6, 1, 8, 8), [flow_stage(velocity, 16)])

    def broken(x, t):
        v = velocity(x, t)
        v[x[:, 0, 0, 0] > 50] = torch.nan
        v[x[:, 0, 0, 0] < -50] = torch.inf
        return v

    images[1, 0, 0, 0], images[4, 0, 0, 0] = 100.0, -100.0
    inversion = invert(images, broken, 16, TOLERANCE, ITERATIONS)
    assert inversion.converged(TOLERANCE).tolist() == [True, False, True, True, False, True]
    whole = invert(images[[0, 2, 3, 5]], velocity, 16, TOLERANCE, ITERATIONS)
    assert relative_error(inversion.noise[[0, 2, 3, 5]], whole.noise).max() < 1e-4


def test_largest_error_is_that_of_the_worst_sample_and_unknown_for_none():
    truth = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    x = truth + torch.tensor([[0.0, 1.0], [0.0, 0.5]])
    assert largest_error(x, truth) == pytest.approx(0.5)
    assert largest_error(x[:0], truth[:0]) is None


def test_all_nan_velocity_marks_every_sample_and_returns():
    x = normal(3, 2)
    inversion = invert(x, lambda x, t: torch.full_like(x, torch.nan), 4, TOLERANCE, ITERATIONS)
    assert inversion.error.shape == (3, 4)
    assert not inversion.converged(TOLERANCE).any()
    assert inversion.evaluations <= 2 * 3 * 4, "there is nothing to iterate on"


def test_errors_stand_in_sampling_order():
    """Only the step from t = 1, the first of sampling, has no solution."""

    def velocity(x, t):
        return torch.where(t[:, None] == 1, x * torch.nan, 0.1 * x + 1)

    inversion = invert(normal(3, 2), velocity, 4, TOLERANCE, ITERATIONS)
    assert (inversion.error <= TOLERANCE).tolist() == [[False, True, True, True]] * 3
    assert not inversion.converged(TOLERANCE).any(), "one step missed is enough"


def test_evaluations_are_counted(velocity):
    images = sample(normal(20, 1, 8, 8), [flow_stage(velocity, 8)])
    evaluated = []

    def counted(x, t):
        evaluated.append(len(x))
        return velocity(x, t)

    inversion = invert(images, counted, 8, TOLERANCE, ITERATIONS)
    assert inversion.evaluations == sum(evaluated)
    assert min(evaluated) < 20, "converged samples leave the iteration"


def test_a_sample_does_not_depend_on_its_company(velocity):
    images = sample(normal(20, 1, 8, 8), [flow_stage(velocity, 16)])
    together = invert(images, velocity, 16, TOLERANCE, ITERATIONS)
    alone = invert(images[:5], velocity, 16, TOLERANCE, ITERATIONS)
    both = together.converged(TOLERANCE)[:5] & alone.converged(TOLERANCE)
    assert both.sum() >= 4
    assert relative_error(alone.noise, together.noise[:5])[both].max() < 1e-4

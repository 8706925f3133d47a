"""A Gaussian mixture's laws against one another and against integrals on a grid, in the plane and on both paths."""

import pytest
import torch

from graft.mixture import GaussianMixture
from graft.paths import PATHS

MIXTURE = GaussianMixture(
    weights=torch.tensor([0.6, 0.4], dtype=torch.double),
    centres=torch.tensor([[-1.0, 0.5], [1.2, -0.4]], dtype=torch.double),
    variances=torch.tensor([0.3, 0.7], dtype=torch.double),
)
SLOPE = torch.tensor([0.7, -0.4], dtype=torch.double)
TIME = 0.4
GRID = torch.cartesian_prod(*[torch.linspace(-7, 7, 281, dtype=torch.double)] * 2)
CELL = (14 / 280) ** 2


@pytest.fixture(params=PATHS)
def path(request):
    return PATHS[request.param]


@pytest.fixture
def x():
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def times(x, time=TIME):
    return torch.full((len(x),), time, dtype=x.dtype)


def integral(values):
    return CELL * values.sum(dim=0)


@pytest.mark.parametrize("law", [MIXTURE, MIXTURE.noised(PATHS["straight"], TIME), MIXTURE.tilted(SLOPE)])
def test_density_integrates_to_one_and_to_its_mean(law):
    density = law.log_density(GRID).exp()
    assert integral(density).item() == pytest.approx(1, abs=1e-6)
    assert integral(density[:, None] * GRID).numpy() == pytest.approx(law.mean().numpy(), abs=1e-6)


def test_posterior_is_bayes_rule(path, x):
    """E[x_0 | x_t] and E[x_0² | x_t] as integrals over x_0 of prior times likelihood, at one x_t."""
    t = torch.tensor(TIME, dtype=torch.double)
    likelihood = (-(x[0] - path.alpha(t) * GRID).square().sum(dim=1) / (2 * path.sigma(t) ** 2)).exp()
    weight = MIXTURE.log_density(GRID).exp() * likelihood
    posterior = MIXTURE.posterior(path, x[:1], times(x[:1]))
    squares = posterior.weights[..., None] * (posterior.means.square() + posterior.variances[..., None])
    expected = [integral(weight[:, None] * moment) / integral(weight) for moment in (GRID, GRID.square())]
    assert posterior.mean()[0].numpy() == pytest.approx(expected[0].numpy(), abs=1e-6)
    assert squares.sum(dim=1)[0].numpy() == pytest.approx(expected[1].numpy(), abs=1e-6)


def test_denoiser_is_tweedies(path, x):
    """E[x_0 | x_t] = (x_t + sigma² grad log p_t) / alpha."""
    x.requires_grad_(True)
    t = times(x)[:, None]
    (score,) = torch.autograd.grad(MIXTURE.noised(path, TIME).log_density(x).sum(), x)
    tweedie = (x + path.sigma(t) ** 2 * score) / path.alpha(t)
    assert torch.allclose(MIXTURE.denoise(path, x, times(x)), tweedie, atol=1e-10)


def test_velocity_carries_the_density(path, x):
    """The continuity equation d log p_t/dt + div v + v . grad log p_t = 0, the time's derivative by differences."""
    x.requires_grad_(True)
    v = MIXTURE.velocity(path, x, times(x))
    divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    (score,) = torch.autograd.grad(MIXTURE.noised(path, TIME).log_density(x).sum(), x)
    later, earlier = (MIXTURE.noised(path, TIME + step).log_density(x) for step in (1e-5, -1e-5))
    assert torch.allclose((later - earlier) / 2e-5, -divergence - (v * score).sum(dim=1), atol=1e-6)


def test_tilting_multiplies_the_density(x):
    tilted = MIXTURE.tilted(SLOPE).log_density(x) - MIXTURE.log_density(x)
    assert torch.allclose(tilted, x @ SLOPE - MIXTURE.log_moment(SLOPE), atol=1e-12)


def test_draws_have_the_law_and_projections_its_cdf():
    """100,000 draws; measured at most 0.0015 off a share and 0.0034 off the mean (one standard error each)."""
    draws = MIXTURE.sample(100_000, torch.Generator().manual_seed(1))
    line = MIXTURE.projected(SLOPE)
    values = (draws @ SLOPE)[:, None]
    for level in (-1.0, 0.0, 0.5):
        share = (values <= level).double().mean().item()
        assert line.cdf(torch.tensor([[level]], dtype=torch.double)).item() == pytest.approx(share, abs=0.005)
    assert draws.mean(dim=0).numpy() == pytest.approx(MIXTURE.mean().numpy(), abs=0.012)


def test_points_choose_the_precision(path, x):
    assert MIXTURE.denoise(path, x.float(), times(x.float())).dtype == torch.float32

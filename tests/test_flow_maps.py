"""Laws carried through a sampler and its inverse: Jacobians, and one total variation in both spaces."""

import math
from functools import partial

import pytest
import torch

from graft.flow_maps import FlowMap, distances, pulled, pushed, standard_normal
from graft.grids import Grid
from graft.mixture import PLANE
from graft.paths import PATHS

BASE = FlowMap(partial(PLANE.velocity, PATHS["straight"]), steps=4)
GRIDS = {"noise_grid": Grid(extent=7.0, cells=80, points=1), "data_grid": Grid(extent=5.0, cells=70, points=1)}


def scaling(factor, steps=5):
    """The flow x = factor z: each step multiplies by 1 - h a."""
    rate = (1 - factor ** (1 / steps)) * steps
    return FlowMap(lambda x, t: rate * x, steps)


def normal(deviation):
    """log density of N(0, deviation² I) in the plane."""
    return lambda x: standard_normal(x / deviation) - 2 * math.log(deviation)


@pytest.fixture
def z():
    return torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def test_jacobian_of_a_scaling(z):
    flow = scaling(1.7)
    assert torch.allclose(flow(z), 1.7 * z)
    assert torch.allclose(flow.log_det(z), torch.full((100,), 2 * math.log(1.7), dtype=torch.double))


def test_jacobian_of_the_sampler_is_that_of_differences(z):
    step = 1e-5
    columns = [(BASE(z + step * e) - BASE(z - step * e)) / (2 * step) for e in torch.eye(2, dtype=torch.double)]
    expected = torch.linalg.det(torch.stack(columns, dim=2)).abs().log()
    assert torch.allclose(BASE.log_det(z), expected, atol=1e-6)


def test_there_and_back_again(z):
    """The inverse is solved in float32, to 1e-5."""
    back, found = BASE.inverse(BASE(z))
    assert found.all()
    assert torch.allclose(back, z, atol=1e-3)
    there_and_back = pulled(BASE, partial(pushed, BASE, standard_normal), z)
    assert torch.allclose(there_and_back, standard_normal(z), atol=1e-2)


def test_what_has_no_inverse_has_no_density(z):
    flow = FlowMap(lambda x, t: torch.full_like(x, torch.nan), steps=1)
    assert (pushed(flow, standard_normal, z) == -torch.inf).all()


def test_total_variation_of_two_normals():
    """N(0, I) scaled by 1.2 against N(0, 2² I), by radii: exp(-a / 8) - exp(-a / (2 1.2²)) where densities cross."""
    squared = 2 * math.log(4 / 1.44) / (1 / 1.44 - 1 / 4)
    expected = math.exp(-squared / 8) - math.exp(-squared / 2.88)
    found = distances(scaling(1.2), standard_normal, normal(2.0), Grid(9.0, 100, 1), Grid(11.0, 100, 1))
    assert found["noise_total_variation"] == pytest.approx(expected, abs=2e-3)
    assert found["data_total_variation"] == pytest.approx(expected, abs=2e-3)
    assert found["integral_error"] < 1e-3


def test_correcting_the_noise_corrects_the_data():
    """Inverted noises of N(0, 2² I) under a scaling by 1.2 are N(0, (2 / 1.2)² I), which another scaling makes."""
    corrected = partial(pushed, scaling(2 / 1.2), standard_normal)
    found = distances(scaling(1.2), corrected, normal(2.0), Grid(9.0, 60, 1), Grid(11.0, 60, 1))
    assert found["noise_total_variation"] == pytest.approx(0, abs=1e-5)
    assert found["data_total_variation"] == pytest.approx(0, abs=1e-5)


def test_distance_is_the_same_in_both_spaces():
    """Of the plane's sampler in 4 steps; measured 0.2967 and 0.2965, and integrals right to 4e-5."""
    found = distances(BASE, standard_normal, PLANE.log_density, **GRIDS)
    assert found["noise_total_variation"] == pytest.approx(0.2967, abs=1e-3)
    assert found["data_total_variation"] == pytest.approx(found["noise_total_variation"], abs=1e-3)
    assert found["integral_error"] < 1e-3


@pytest.mark.parametrize(
    "altered", [lambda log_det: 0 * log_det, lambda log_det: -log_det, lambda log_det: log_det / 2]
)
def test_identity_fails_with_a_wrong_jacobian(altered, monkeypatch):
    """Measured: integrals off by 1.0 at least, and the two distances apart by 0.3 at least."""
    log_det = FlowMap.log_det
    monkeypatch.setattr(FlowMap, "log_det", lambda self, z: altered(log_det(self, z)))
    found = distances(BASE, standard_normal, PLANE.log_density, **GRIDS)
    assert found["integral_error"] > 0.5
    assert abs(found["noise_total_variation"] - found["data_total_variation"]) > 0.2

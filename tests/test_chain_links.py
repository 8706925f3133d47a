"""The links of noise correction's chains: what a shift and scale learns, and what a chain of links makes of noise."""

import pytest
import torch

from graft import chain_links
from graft.chain_links import Flow, ShiftAndScale, load_correctors, write_fitted
from graft.flow_maps import FlowMap
from graft.networks.flows import build_network
from graft.noise_correction import SHIFT_AND_SCALE, Chain, chains
from graft.sampling import flow_stage, sample
from graft.shards import ShardedTensor, write_tensors

SHAPE = (2, 3, 3)
NETWORK = {"type": "ResidualMLP", "width": 8, "depth": 1}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def law():
    """Mean and standard deviation of every dimension, all different."""
    mean = torch.linspace(-1, 2, 18).reshape(SHAPE)
    return mean, torch.linspace(0.3, 1.7, 18).flip(0).reshape(SHAPE)


@pytest.fixture(scope="module")
def noises(law):
    mean, deviation = law
    return mean + deviation * normal(0, 4000, *SHAPE)


def sharded(folder, noises, sizes):
    """The noises over files of these numbers of rows."""
    paths = [folder / f"{len(sizes)}_{number}.safetensors" for number in range(len(sizes))]
    for path, part in zip(paths, noises.split(sizes), strict=True):
        write_tensors(path, {"noise_4": part}, {})
    return ShardedTensor(paths, "noise_4")


def test_mean_and_standard_deviation_are_those_of_the_noises(noises):
    fitted = ShiftAndScale.fit(noises)
    torch.testing.assert_close(fitted.mean, noises.double().mean(dim=0).float())
    torch.testing.assert_close(fitted.deviation, noises.double().std(dim=0, correction=0).float())


def test_small_deviations_about_a_large_mean_are_kept():
    """Float32 would round the mean; of the mean square less the squared mean float64 would keep two digits."""
    noises = 1e6 + 2.0**-4 * torch.tensor([-1.0, 1.0, 1.0]).repeat(500).reshape(-1, 1, 1, 1)
    assert ShiftAndScale.fit(noises).deviation.item() == pytest.approx(2.0**-4 * (8 / 9) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("sizes", [[300, 3700], [1, 1024, 2000, 975]])
def test_moments_do_not_depend_on_how_many_files_hold_the_noises(noises, sizes, tmp_path):
    """Among numbers that cancel, beside which digits of the others are lost, so that another order of sums is seen."""
    assert len(noises) > 2 * chain_links.ROWS
    noises, large = noises.clone(), torch.randperm(len(noises), generator=torch.Generator().manual_seed(2))[:200]
    noises[large] = torch.tensor([2.0**50, -(2.0**50)]).repeat(100).reshape(-1, 1, 1, 1)
    one, several = (ShiftAndScale.fit(sharded(tmp_path, noises, each)) for each in ([len(noises)], sizes))
    assert torch.equal(one.mean, several.mean)


def test_fresh_noise_gets_the_law_that_was_fitted(noises, law):
    mean, deviation = law
    drawn = sample(normal(1, 20_000, *SHAPE), [ShiftAndScale.fit(noises).stage(0)])
    # Means err by chance: those of the fit by 1.6 % of a deviation (one standard error), those of the draws by 0.7 %.
    assert ((drawn.mean(dim=0) - mean) / deviation).abs().max() < 0.06
    assert (drawn.std(dim=0) / deviation - 1).abs().max() < 0.04


def test_where_the_data_are_gaussian_the_control_before_the_base_draws_the_data(law):
    """A base that multiplies noise by a constant, N(0, I) is not what it needs; dimensions are independent."""
    mean, deviation = (each.flatten().double() for each in law)
    base = FlowMap(lambda x, t: 0.8 * x, steps=4)
    data = mean + deviation * normal(0, 4000, 18).double()
    inverted, found = base.inverse(data)
    assert found.all()
    stages = [ShiftAndScale.fit(inverted).stage(0), flow_stage(base.velocity, base.steps)]
    drawn = sample(normal(1, 20_000, 18), stages)
    assert ((drawn.mean(dim=0) - mean) / deviation).abs().max() < 0.06
    assert (drawn.std(dim=0) / deviation - 1).abs().max() < 0.04
    alone = sample(normal(1, 20_000, 18), stages[1:])
    assert (alone.std(dim=0) / deviation - 1).abs().max() > 0.3


def test_correctors_are_loaded_as_they_were_saved_by_name_and_base_steps(noises, cpu, tmp_path):
    fitted = {4: ShiftAndScale.fit(noises), 8: ShiftAndScale.fit(2 * noises)}
    write_fitted(tmp_path / "fitted.safetensors", fitted)
    networks = {steps: build_network(NETWORK, (1, 8, 8), seed=0, run=steps) for steps in fitted}
    for steps, network in networks.items():
        network.save_pretrained(tmp_path / f"straight/base{steps}")
    found = load_correctors({"straight": tmp_path / "straight"}, tmp_path / "fitted.safetensors", [4, 8], cpu)
    assert set(found) == {(name, steps) for name in (SHIFT_AND_SCALE, "straight") for steps in (4, 8)}
    for steps, link in fitted.items():
        assert torch.equal(found[SHIFT_AND_SCALE, steps].mean, link.mean)
        assert torch.equal(found[SHIFT_AND_SCALE, steps].deviation, link.deviation)
        assert torch.equal(found["straight", steps].network.enter.weight, networks[steps].enter.weight)
        assert found["straight", steps].parameters == networks[steps].num_parameters()
    # Every corrector of every chain is among them.
    asked = {(chain.corrector, chain.base_steps) for chain in chains([4, 8], ["straight"], [2, 3]) if chain.corrector}
    assert asked == set(found)


def test_the_control_costs_no_flops_and_two_numbers_a_dimension(noises, cpu, tmp_path):
    build_network(NETWORK, (1, 8, 8), seed=0, run=0).save_pretrained(tmp_path)
    assert Flow.load(tmp_path, cpu).flops > 0
    control = ShiftAndScale.fit(noises)
    assert (control.flops, control.parameters) == (0, 36)


def test_chains_have_a_control_for_each_base_step_count_and_names_of_their_own():
    found = chains([8, 4], ["straight", "trigonometric"], [2, 1])
    rows = [(chain.method, chain.base_steps, chain.corrector_steps) for chain in found]
    assert rows == [
        *(("base", steps, 0) for steps in (4, 8, 16, 32)),
        *((SHIFT_AND_SCALE, steps, 0) for steps in (4, 8)),
        *((f"inc_{path}", n, k) for n in (4, 8) for path in ("straight", "trigonometric") for k in (1, 2)),
    ]
    assert len({chain.name for chain in found}) == len(found)
    assert Chain(8, SHIFT_AND_SCALE).name == "shift_and_scale_8_0"

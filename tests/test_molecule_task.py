"""Molecules as points of a diffusion and back, their rewards, and the network that denoises them."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import QED
from safetensors.torch import load_file, save_file

from graft.compute import Compute
from graft.errors import UserError
from graft.networks.flows import build_network
from graft.networks.set_transformer import SetTransformer
from graft.objectives import Anchor, FocusedTimes, denoising, stratified_times
from graft.seeding import Draw
from graft.shards import write_tensors
from graft.tasks.molecules import ANGSTROM, Cloud, Molecules, random_rotations, turned_at_random

TASK = Molecules(["H", "C", "N", "O"], max_atoms=7, element_scale=0.5)
SIZES = {"width": 16, "depth": 2, "heads": 2}
TIMES = pytest.mark.parametrize("times", [None, FocusedTimes(0.6, 0.5, 0.2)], ids=["uniform", "focused"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def molecules():
    """Methane, water, hydrogen cyanide, methanol, two waters apart and a heap of carbons: positions and numbers."""
    h = 1.09 / math.sqrt(3)
    methane = [(6, 0, 0, 0), (1, h, h, h), (1, h, -h, -h), (1, -h, h, -h), (1, -h, -h, h)]
    water = [(8, 0, 0, 0), (1, 0.76, 0.59, 0), (1, -0.76, 0.59, 0)]
    cyanide = [(6, 0, 0, 0), (1, -1.07, 0, 0), (7, 1.16, 0, 0)]
    methanol = [(6, -0.75, 0.02, 0), (8, 0.66, -0.02, 0), (1, -1.09, 0.98, -0.36), (1, -1.19, 0.09, 1.0)]
    methanol = [*methanol, (1, -1.14, -0.83, -0.54), (1, 0.97, -0.83, -0.53)]
    heap = [(6, 0, 0, 0), (6, 1.4, 0, 0), (6, 0, 1.4, 0), (6, 0, 0, 1.4), (6, -1.4, 0, 0), (6, 0, -1.4, 0)]
    two = water + [(number, x, y, z + 9) for number, x, y, z in water]
    found = [methane, water, cyanide, methanol, two, heap]
    positions, numbers = torch.zeros(len(found), 7, 3), torch.zeros(len(found), 7, dtype=torch.uint8)
    for row, atoms in enumerate(found):
        values = torch.tensor(atoms, dtype=torch.float32)
        positions[row, : len(atoms)], numbers[row, : len(atoms)] = values[:, 1:] + 5, values[:, 0].byte()
    return positions, numbers


def cloud():
    positions, numbers = molecules()
    return Cloud(positions, numbers.long(), numbers > 0)


def condition(*atoms):
    return {"atoms": torch.tensor(atoms)}


SOME = condition(7, 1, 3, 5, 4, 7, 2, 6)


def points(seed=0):
    return TASK.project(normal(8, 7, 7, seed=seed), SOME)


def trained_looking(seed=0, **changes):
    """A network with no layer at zero, so that every input and every part shows in its output."""
    network = TASK.build_network({**SIZES, **changes}, seed=0, run=0)
    rng = generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return network.eval().requires_grad_(False)


def test_encoded_molecules_turned_come_back_turned_and_centred():
    positions, numbers = molecules()
    x_0 = TASK.encode(positions, numbers)
    x_0 = torch.cat([turned_at_random(x_0[..., :3], generator()), x_0[..., 3:]], dim=-1)
    assert x_0.shape == (6, 7, 7)
    back = TASK.decode(x_0, {"atoms": (numbers > 0).sum(dim=1)})
    assert torch.equal(back.atomic_numbers, numbers.long())
    assert torch.equal(back.mask, numbers > 0)
    for row, count in enumerate((numbers > 0).sum(dim=1).tolist()):
        before, after = positions[row, :count].double(), back.positions[row, :count].double()
        torch.testing.assert_close(torch.cdist(after, after), torch.cdist(before, before), rtol=0, atol=1e-5)
        torch.testing.assert_close(after.mean(dim=0), torch.zeros(3).double(), rtol=0, atol=1e-5)
        if count > 4:
            # Turned, not mirrored: signed volumes stay.
            volumes = [torch.linalg.det(place[1:4] - place[0]).item() for place in (before, after)]
            assert volumes[0] == pytest.approx(volumes[1], abs=1e-4)
    assert (back.positions[0, 1] - positions[0, 1]).norm() > 1, "turned"


def test_a_point_holds_positions_in_model_units_and_one_hot_elements():
    positions, numbers = molecules()
    x_0 = TASK.encode(positions, numbers)
    assert (x_0[0, 0, :3] - x_0[0, 1, :3]).norm().item() == pytest.approx(1.09 * ANGSTROM, abs=1e-5)
    one_hot = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert x_0[2, :4, 3:].tolist() == [[TASK.element_scale * value for value in row] for row in one_hot]


def test_each_draw_turns_otherwise_and_only_the_generator_decides():
    positions, _ = molecules()
    torch.manual_seed(0)
    first = turned_at_random(positions, generator(1))
    torch.manual_seed(1)
    assert torch.equal(turned_at_random(positions, generator(1)), first)
    assert not torch.allclose(turned_at_random(positions, generator(2)), first, atol=0.1)


def test_autocast_takes_no_digits_from_positions():
    positions, numbers = molecules()
    exact = turned_at_random(TASK.encode(positions, numbers)[..., :3], generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(turned_at_random(TASK.encode(positions, numbers)[..., :3], generator(1)), exact)


def test_rotations_are_proper_and_uniform():
    """Entries of Haar measure have mean 0, second moment 1/3 and fourth 1/5; the trace has mean 0 and variance 1."""
    count = 20_000
    found = random_rotations(count, generator()).double()
    identity = torch.eye(3, dtype=torch.double).expand(count, 3, 3)
    torch.testing.assert_close(found @ found.mT, identity, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(count).double(), rtol=0, atol=1e-5)
    for power, expected, bound in ((1, 0.0, 0.02), (2, 1 / 3, 0.01), (4, 1 / 5, 0.01)):
        moments = (found**power).mean(dim=0)
        assert (moments - expected).abs().max() < bound, power
    trace = found.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert abs(trace.mean()) < 0.035
    assert abs(trace.var() - 1) < 0.05
    flat = found.flatten(1)
    assert (flat.T @ flat / count - torch.eye(9) / 3).abs().max() < 0.015, "entries are uncorrelated"


def test_projection_centres_clears_padding_and_is_idempotent():
    raw = normal(8, 7, 7) + 3
    x = TASK.project(raw, SOME)
    mask = TASK.mask(SOME)
    assert mask.sum(dim=1).tolist() == SOME["atoms"].tolist()
    assert torch.equal(x[~mask], torch.zeros_like(x[~mask]))
    assert x[..., :3].sum(dim=1).abs().max() < 1e-5
    assert torch.equal(x[..., 3:][mask], raw[..., 3:][mask]), "elements are not centred"
    torch.testing.assert_close(TASK.project(x, SOME), x, rtol=0, atol=1e-6)
    # Orthogonal: what is taken away has no share in the subspace.
    assert abs(((raw - x) * x).sum() / x.square().sum()) < 1e-6


def test_one_atom_stands_at_the_centre():
    assert torch.equal(points()[1, 0, :3], torch.zeros(3))


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9, 1.0])
def test_preconditioning(time):
    """Positions are c_skip x_t + c_out F, elements softmax(F), scaled: F = 0 shows c_skip, F = 1 at an atom c_out.

    For data of unit variance c_skip x_t is the best linear estimate, and its error has the standard deviation c_out.
    """
    x, t, seen = points(), torch.full((8,), time), {}
    alpha, sigma = 1 - time, time

    def network(sample, times, mask, out=0.0):
        seen.update(sample=sample, times=times, mask=mask)
        value = torch.zeros_like(sample)
        value[:, 0, :3] = out
        return value

    found = TASK.denoiser(network, SOME)(x, t)
    torch.testing.assert_close(found[..., :3], alpha / (alpha**2 + sigma**2) * x[..., :3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[..., 3:][TASK.mask(SOME)], torch.full((35, 4), 0.25 * TASK.element_scale))
    torch.testing.assert_close(seen["sample"], x / math.sqrt(alpha**2 + sigma**2), rtol=1e-5, atol=1e-6)
    assert torch.equal(seen["times"], t)
    assert torch.equal(seen["mask"], TASK.mask(SOME))
    moved = TASK.denoiser(lambda *arguments: network(*arguments, out=1.0), SOME)(x, t) - found
    share = (1 - 1 / SOME["atoms"])[:, None]  # the rest is taken off by centring
    expected = (sigma / math.sqrt(alpha**2 + sigma**2) * share).expand(8, 3)
    torch.testing.assert_close(moved[:, 0, :3], expected, rtol=1e-4, atol=1e-5)


def test_estimates_lie_in_the_subspace():
    estimate = TASK.denoiser(trained_looking(), SOME)(points(), torch.linspace(0.05, 1, 8))
    torch.testing.assert_close(TASK.project(estimate, SOME), estimate, rtol=0, atol=1e-5)
    elements = estimate[..., 3:][TASK.mask(SOME)]
    assert (elements >= 0).all()
    torch.testing.assert_close(elements.sum(dim=1), torch.full((35,), TASK.element_scale), rtol=0, atol=1e-5)


def test_weight_makes_the_loss_of_positions_that_of_the_raw_network():
    """The weight is 1 / c_out^2 for the positions, and for elements 1 before they were scaled."""
    t = torch.tensor([0.1, 0.5, 1.0])
    weight = TASK.weight(t)
    assert weight.shape == (3, 1, 7)
    torch.testing.assert_close(weight[:, 0, 2], ((1 - t) ** 2 + t**2) / t**2)
    assert torch.equal(weight[:, 0, 3:] * TASK.element_scale**2, torch.ones(3, 4))


@TIMES
def test_loss_at_cut_0_is_plain_denoising_of_the_turned_molecules(times):
    """Recomputed from the same numbers: rotations first, then noise in the subspace, then stratified times."""
    positions, numbers = molecules()
    network = trained_looking()
    found = TASK.loss(network, positions, numbers, generator(3), times)
    rng, sizes = generator(3), {"atoms": (numbers > 0).sum(dim=1)}
    x_0 = TASK.encode(positions, numbers)
    assert torch.equal(TASK.denoising_loss(network, x_0, 0.0, sizes, rng, times), found)
    rng = generator(3)
    x_0 = torch.cat([turned_at_random(x_0[..., :3], rng), x_0[..., 3:]], dim=-1)
    noise = TASK.project(torch.randn(x_0.shape, generator=rng), sizes)
    t = (torch.rand(1, generator=rng) + torch.arange(6) / 6) % 1
    t = times.above(0.0, t) if times else t
    x_t = (1 - t)[:, None, None] * x_0 + t[:, None, None] * noise
    error = (TASK.denoiser(network, sizes)(x_t, t) - x_0).square()
    weights = ((1 - t) ** 2 + t**2) / t**2
    expected = (error[..., :3] * weights[:, None, None]).sum() + error[..., 3:].sum() / TASK.element_scale**2
    assert found.item() == pytest.approx(expected.item() / x_0.numel(), rel=1e-5)


def test_training_data_are_all_molecules_by_size_without_common_padding(tmp_path):
    """Sizes 5, 3, 3 and 6, three quarters of which are at most 5."""
    positions, numbers = (array[:4] for array in molecules())
    write_tensors(tmp_path / "shard0.safetensors", {"positions": positions, "atomic_numbers": numbers}, {})
    (tmp_path / "data.json").write_text(json.dumps({"shards": 1}))
    (near, few), (far, many) = TASK.training_data(tmp_path)
    assert torch.equal(near, positions[:3, :5])
    assert torch.equal(few, numbers[:3, :5])
    assert torch.equal(far, positions[3:, :6])
    assert torch.equal(many, numbers[3:, :6])


def test_sets_without_their_padding_weigh_as_much_as_with_it():
    """In the mean over many draws of noise, which are others where the shape is another."""
    positions, numbers = (array[[1] * 4000] for array in molecules())
    network = trained_looking()
    with torch.no_grad():
        whole = TASK.loss(network, positions, numbers, generator(1))
        cropped = TASK.loss(network, positions[:, :3], numbers[:, :3], generator(2))
    assert cropped.item() == pytest.approx(whole.item(), rel=0.05), "and not 7 / 3 of it"


@TIMES
def test_loss_above_a_cut_regresses_what_is_left_of_the_snapshot(times):
    """rho x_0(x_t, t) on rho x_c / alpha_c - alpha_t sigma_c^2 / (alpha_c^2 sigma_t) eps', with the base's weight."""
    network, c, rng = trained_looking(), 0.4, generator(4)
    found = TASK.denoising_loss(network, points(), c, SOME, generator(4), times)
    x_c = torch.cat([turned_at_random(points()[..., :3], rng), points()[..., 3:]], dim=-1)
    noise = TASK.project(torch.randn(x_c.shape, generator=rng), SOME)
    t = (torch.rand(1, generator=rng) + torch.arange(8) / 8) % 1
    t = times.above(c, t) if times else c + (1 - c) * t
    a, s = (1 - t)[:, None, None], t[:, None, None]
    s_tc = (s**2 - (a / (1 - c)) ** 2 * c**2).sqrt()
    x_t = a / (1 - c) * x_c + s_tc * noise
    target = s_tc / s * x_c / (1 - c) - a * c**2 / ((1 - c) ** 2 * s) * noise
    error = (s_tc / s * TASK.denoiser(network, SOME)(x_t, t) - target).square()
    weights = ((1 - t) ** 2 + t**2) / t**2
    expected = (error[..., :3] * weights[:, None, None]).sum() + error[..., 3:].sum() / TASK.element_scale**2
    assert found.item() == pytest.approx(expected.item() / x_c.numel(), rel=1e-4)
    # Atoms that are not there and the centre of mass neither get noise nor are asked for.
    assert (x_t * ~TASK.mask(SOME)[..., None]).abs().max() == 0
    assert x_t[..., :3].sum(dim=1).abs().max() < 1e-5


def test_an_anchored_loss_tells_relearning_by_the_model_that_is_given():
    """Both models see the same turned and noised molecules."""
    network, start, odds = trained_looking(), trained_looking(seed=1), torch.arange(8.0) / 3.5
    found = TASK.denoising_loss(network, points(), 0.4, SOME, generator(4), anchor=Anchor(start, odds))
    rng = generator(4)
    x_c = torch.cat([turned_at_random(points()[..., :3], rng), points()[..., 3:]], dim=-1)
    noise = TASK.project(torch.randn(x_c.shape, generator=rng), SOME)
    t = stratified_times(x_c, rng, 0.4)
    anchor = Anchor(TASK.denoiser(start, SOME), odds)
    expected = denoising(TASK.denoiser(network, SOME), TASK.weight, TASK.path, x_c, 0.4, noise, t, anchor)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_network_is_invariant_to_padding_and_to_what_stands_there():
    network, x, t, mask = trained_looking(), points(), torch.linspace(0.05, 1, 8), TASK.mask(SOME)
    expected = network(x, t, mask)
    assert expected.abs().max() > 0.1
    assert torch.equal(expected[~mask], torch.zeros_like(expected[~mask]))
    torch.testing.assert_close(network(x.where(mask[..., None], 37.0), t, mask), expected, rtol=1e-4, atol=1e-4)
    four = SOME["atoms"] <= 4
    shorter = network(x[four, :4], t[four], mask[four, :4])
    torch.testing.assert_close(shorter, expected[four, :4], rtol=1e-4, atol=1e-4)


def test_network_does_not_look_at_other_samples():
    network, x, t, mask = trained_looking(), points(), torch.linspace(0.05, 1, 8), TASK.mask(SOME)
    few = network(x[2:4], t[2:4], mask[2:4])
    torch.testing.assert_close(few, network(x, t, mask)[2:4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["position", "element", "time"])
def test_network_sees_positions_elements_and_time(change):
    """What moves at one atom is felt by another one."""
    network, x, t, mask = trained_looking(), points(), torch.full((8,), 0.5), TASK.mask(SOME)
    expected = network(x, t, mask)[0, 1]
    if change == "position":
        x[0, 0, 0] += 0.3
    elif change == "element":
        x[0, 0, 4] += 0.5
    else:
        t[0] = 0.6
    assert (network(x, t, mask)[0, 1] - expected).abs().max() > 1e-3


def test_the_number_of_atoms_is_a_condition():
    """An atom that has nothing to do with the others still depends on how many there are."""
    network, x, t, mask = trained_looking(), points(), torch.full((8,), 0.5), TASK.mask(SOME)
    network.forces.weigh.weight.zero_()
    for block in network.blocks:
        block.project.weight.zero_()
    expected = network(x, t, mask)[0, 1]
    mask[0, 6] = False
    assert (network(x, t, mask)[0, 1] - expected).abs().max() > 1e-3


def test_forces_between_atoms_are_along_the_lines_that_join_them():
    """With all else at zero the positions' output is a sum of forces, which turns as the molecule turns."""
    network = TASK.build_network({"width": 16, "depth": 1, "heads": 2}, seed=0, run=0).eval().requires_grad_(False)
    network.forces.weigh.weight.copy_(normal(*network.forces.weigh.weight.shape))
    network.enter.weight[:, :3] = 0
    for block in network.blocks:
        block.project.weight.zero_()
    x, t, mask = points(), torch.full((8,), 0.5), TASK.mask(SOME)
    turn = random_rotations(1, generator())[0]
    turned = torch.cat([x[..., :3] @ turn, x[..., 3:]], dim=-1)
    out, after = network(x, t, mask)[..., :3], network(turned, t, mask)[..., :3]
    assert out.abs().max() > 0.01
    torch.testing.assert_close(after, out @ turn, rtol=0, atol=1e-4)
    pair = condition(2)
    force = network(x[6:7], t[6:7], TASK.mask(pair))[0, :2, :3]
    line = x[6, 1, :3] - x[6, 0, :3]
    assert torch.linalg.cross(force, line.expand(2, 3)).abs().max() < 1e-5
    assert force.norm(dim=1).min() > 1e-3


def test_networks_are_drawn_from_seed_and_run():
    def weights(seed, run):
        return TASK.build_network(SIZES, seed=seed, run=run).enter.weight

    assert torch.equal(weights(0, 0), weights(0, 0))
    assert not torch.equal(weights(0, 0), weights(1, 0))
    assert not torch.equal(weights(0, 0), weights(0, 1))


@pytest.fixture
def saved(tmp_path):
    trained_looking().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_network_comes_back_bit_for_bit_and_frozen(saved):
    network, x, t = TASK.load_network(saved), points(), torch.full((8,), 0.5)
    assert torch.equal(network(x, t, TASK.mask(SOME)), trained_looking()(x, t, TASK.mask(SOME)))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def without_a_weight(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["enter.weight"]
    save_file(weights, file)


def cut_short(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def configured(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def another(**arguments):
    def change(folder):
        sizes = {"in_channels": 7, "out_channels": 7, "max_elements": 7, "spatial": True, **SIZES}
        SetTransformer(**{**sizes, **arguments}).save_pretrained(folder)

    return change


def perceptron(folder):
    build_network({"type": "ResidualMLP", "width": 8, "depth": 1}, (1, 8, 8), seed=0, run=0).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (shutil.rmtree, []),
        (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["JSON"]),
        (cut_short, ["diffusion_pytorch_model.safetensors"]),
        (without_a_weight, ["enter.weight", "missing"]),
        (configured(depth=3), ["expected shape"]),
        (perceptron, ["no SetTransformer"]),
        (another(max_elements=9), ["(9, 7, 7)", "(7, 7, 7)"]),
        (another(in_channels=8), ["(7, 8, 7)", "(7, 7, 7)"]),
        (another(out_channels=8), ["(7, 7, 8)", "(7, 7, 7)"]),
        (another(spatial=False), ["spatial"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_no_network_for_these_points_is_refused_in_one_line(saved, damage, messages):
    damage(saved)
    with pytest.raises(UserError) as error:
        TASK.load_network(saved)
    assert all(message in str(error.value) for message in [str(saved), *messages]), error.value
    assert "\n" not in str(error.value)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match=r"3 heads .* width 16"):
        TASK.build_network({**SIZES, "heads": 3}, seed=0, run=0)


def rewards(molecules, function):
    return TASK.rewards(molecules, {"function": function}, Compute(torch.device("cpu"), "fp32", compiled=False))


def test_rewards():
    np.testing.assert_array_equal(rewards(cloud(), "stability"), [1, 1, 1, 1, 1, 0])
    found = rewards(cloud(), "qed")
    assert found.dtype == np.float64
    expected = [QED.qed(Chem.MolFromSmiles(smiles)) for smiles in ("C", "O", "C#N", "CO")]
    np.testing.assert_allclose(found[:4], expected, rtol=1e-6)
    assert found[4] == found[1], "two waters are worth what one is"
    lacking = cloud()
    lacking.positions[0, 4] += 20
    assert rewards(lacking, "qed")[0] == 0, "RDKit would fill in the hydrogen that methane lost"
    assert found[5] == 0, "what is no molecule is no drug"


def test_a_users_reward_gets_each_molecule_without_padding(tmp_path, monkeypatch):
    (tmp_path / "reward_of_a_user.py").write_text(
        "import numpy as np\n"
        "def weight(positions, atomic_numbers):\n"
        "    assert isinstance(positions, np.ndarray) and positions.shape == (len(atomic_numbers), 3)\n"
        "    assert (atomic_numbers > 0).all()\n"
        "    return atomic_numbers.sum() + 1000 * np.abs(positions).max()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = rewards(cloud(), "reward_of_a_user:weight")
    positions, numbers = molecules()
    expected = numbers.sum(dim=1) + 1000 * positions.abs().amax(dim=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_keys_are_the_same_for_the_same_molecule_however_it_lies():
    positions, numbers = molecules()
    x_0 = TASK.encode(positions, numbers)
    x_0 = torch.cat([turned_at_random(x_0[..., :3], generator(5)), x_0[..., 3:]], dim=-1)
    turned = TASK.decode(x_0, {"atoms": (numbers > 0).sum(dim=1)})
    keys = TASK.sample_keys(cloud())
    assert TASK.sample_keys(turned) == keys
    assert len(set(keys[:4])) == 4
    assert [key and Chem.CanonSmiles(key) for key in keys[:4]] == ["C", "O", "C#N", "CO"]
    assert keys[5] is None


def prepared(folder):
    """A prepared data folder of the molecules in two shards."""
    positions, numbers = molecules()
    folder.mkdir()
    for shard, rows in enumerate((slice(0, 4), slice(4, 6))):
        tensors = {"positions": positions[rows], "atomic_numbers": numbers[rows]}
        write_tensors(folder / f"shard{shard}.safetensors", tensors, {})
    (folder / "data.json").write_text(json.dumps({"shards": 2}))
    return folder


def test_conditions_have_the_datas_histogram_of_sizes(tmp_path):
    folder = prepared(tmp_path / "data")
    atoms = TASK.conditions(folder, 0, Draw.CONDITION, 1, start=0, stop=6400)["atoms"]
    counts = torch.bincount(atoms, minlength=8)
    # Sizes 5, 3, 3, 6, 6, 6 in the data.
    expected = torch.tensor([0, 0, 0, 2, 0, 1, 3, 0]) * 6400 / 6
    assert (counts - expected).abs().max() < 4.5 * math.sqrt(6400 / 4)
    assert torch.equal(TASK.conditions(folder, 0, Draw.CONDITION, 1, start=64, stop=150)["atoms"], atoms[64:150])
    assert TASK.describe({"atoms": atoms})["mean_atoms"] == pytest.approx(atoms.double().mean().item())
    assert TASK.group({"atoms": atoms}).unique().tolist() == [0]


def test_known_keys_are_those_of_the_data(tmp_path, cpu):
    assert TASK.reference(prepared(tmp_path / "data"), None, cpu) == set(TASK.sample_keys(cloud())) - {None}


def test_a_picture_shows_molecules_side_by_side_broken_ones_too():
    assert TASK.picture(cloud(), 4).size == (600, 150)
    assert TASK.picture(cloud(), 10).size[1] == 150

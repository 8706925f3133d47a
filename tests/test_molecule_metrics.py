import math
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem
from scipy.spatial.transform import Rotation

import graft.metrics.molecules
from graft.errors import UserError
from graft.metrics.bond_table import ATOMIC_NUMBER, LENGTH, MARGIN, VALENCY
from graft.metrics.molecules import bond_orders, canonical_smiles, one_piece, stability, summary, to_rdkit

SYMBOL = {number: element for element, number in ATOMIC_NUMBER.items()}

SMILES = ["CCO", "CC(=O)O", "C#CCN", "OCC(F)CO", "C1CCCCC1", "NCC=O", "CC#N", "C1CC1C(O)C=C", "COC(N)C", "C=CC=CF"]

LIMITS_PM = {
    1: "HH84 HC119 HN111 HO106 HF102 CC164 CN157 CO153 CF145 NN155 NO150 NF146 OO158 OF152 FF152",
    2: "CC139 CN134 CO125 NN130 NO126 OO126",
    3: "CC123 CN119 CO116 NN113",
}
"""Length plus margin of each order and pair, written out a second time."""


def table_limit(order, a, b):
    """In pm; None where the pair has no such bond."""
    length = LENGTH[order].get((a, b), LENGTH[order].get((b, a)))
    return None if length is None else length + MARGIN[order]


def nested_order(a, b, distance):
    """EDM's: of the single bonds the double, of the double the triple; the distance in pm."""
    order = 0
    while order < 3 and (limit := table_limit(order + 1, a, b)) is not None and distance < limit:
        order += 1
    return order


def highest_order(a, b, distance):
    fitting = [order for order in LENGTH if (limit := table_limit(order, a, b)) is not None and distance < limit]
    return max(fitting, default=0)


def stability_by_loop(molecules, distance=math.dist):
    """(stable atoms, stable) of each (positions (n, 3), atomic numbers (n,)), lists or arrays, by two Python loops."""
    results = []
    for positions, numbers in molecules:
        valence = [0] * len(numbers)
        for i in range(len(numbers)):
            for j in range(i):
                pm = 100 * distance(positions[i], positions[j])
                order = nested_order(SYMBOL[numbers[i]], SYMBOL[numbers[j]], pm)
                valence[i] += order
                valence[j] += order
        stable = sum(v == VALENCY[SYMBOL[number]] for v, number in zip(valence, numbers, strict=True))
        results.append((stable, 0 < stable == len(numbers)))
    return results


def pad(molecules, extra=0):
    """Batch (positions, atomic_numbers, mask) of molecules (positions (n, 3), atomic numbers (n,))."""
    size = max(len(numbers) for _, numbers in molecules) + extra
    positions = torch.zeros(len(molecules), size, 3, dtype=torch.float64)
    atomic_numbers = torch.zeros(len(molecules), size, dtype=torch.int64)
    for i, (x, numbers) in enumerate(molecules):
        positions[i, : len(x)] = torch.as_tensor(np.asarray(x)).reshape(-1, 3)
        atomic_numbers[i, : len(x)] = torch.as_tensor(np.asarray(numbers, dtype=np.int64))
    return positions, atomic_numbers, atomic_numbers > 0


def embed(smiles):
    """Positions (n, 3) in Angstrom and atomic numbers of a molecule as ETKDG and MMFF shape it."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(molecule, maxIters=1000)
    return molecule.GetConformer().GetPositions(), [atom.GetAtomicNum() for atom in molecule.GetAtoms()]


def methane(length=1.09):
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * length / math.sqrt(3)
    return np.vstack([np.zeros(3), corners]), [6, 1, 1, 1, 1]


def water():
    angle = math.radians(104.5)
    return 0.96 * np.array([[0, 0, 0], [1, 0, 0], [math.cos(angle), math.sin(angle), 0]]), [8, 1, 1]


def benzene(shift):
    """Carbons on a circle of radius 1.395 Angstrom, in pairs brought nearer by `shift` degrees each."""
    angles = np.radians([60 * i + (-1) ** i * shift for i in range(6)])
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    return np.vstack([1.395 * ring, 2.485 * ring]), [6] * 6 + [1] * 6


def line(places, numbers):
    """Atoms on a line, at places in Angstrom."""
    return np.array([[place, 0, 0] for place in places]), numbers


def moved(molecule, rng):
    """The same molecule, rotated, translated, its atoms in another order."""
    positions, numbers = molecule
    order = rng.permutation(len(numbers))
    rotation = Rotation.random(rng=rng)
    return rotation.apply(positions[order]) + rng.normal(size=3), np.asarray(numbers)[order].tolist()


def together(*molecules):
    """One sample of several molecules, 20 Angstrom apart."""
    positions = [x + np.array([20 * i, 0, 0]) for i, (x, _) in enumerate(molecules)]
    return np.vstack(positions), [number for _, numbers in molecules for number in numbers]


CROWDED = (
    np.array([[0, 0, 0], [1, 0, 0], [-0.5, 0.87, 0], [-0.5, -0.87, 0], [0, 0, 1], [0, 0, -1]]) * 1.09,
    [6] + [1] * 5,
)
"""A carbon with five hydrogens."""


@pytest.fixture(scope="module")
def embedded():
    return [embed(smiles) for smiles in SMILES]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def clouds(rng):
    """Random atoms, dense enough to have bonds of all orders."""
    sizes = rng.integers(1, 14, size=200)
    return [(rng.uniform(0, 2.6, size=(n, 3)), rng.choice(list(SYMBOL), size=n).tolist()) for n in sizes]


def check_against_loop(molecules):
    atoms, stable = stability(*pad(molecules))
    assert (atoms.dtype, stable.dtype) == (torch.int64, torch.bool)
    assert list(zip(atoms.tolist(), stable.tolist(), strict=True)) == stability_by_loop(molecules)
    return atoms, stable


def test_stability_of_random_clouds_is_that_of_two_loops(clouds):
    atoms, _ = check_against_loop(clouds)
    assert atoms.sum() > 50
    assert bond_orders(*pad(clouds)).unique().tolist() == [0, 1, 2, 3]


def test_stability_of_molecules_is_that_of_two_loops(embedded, rng):
    shaken = [(x + rng.normal(scale=0.05, size=x.shape), numbers) for x, numbers in embedded * 10]
    _, stable = check_against_loop(embedded + shaken)
    assert stable[: len(embedded)].all()
    assert 0 < stable[len(embedded) :].sum() < len(shaken)


@pytest.mark.parametrize(
    ("molecule", "stable_atoms", "stable"),
    [
        pytest.param(methane(), 5, True, id="methane"),
        pytest.param(water(), 3, True, id="water"),
        pytest.param(line([0, 1.17, -1.17], [6, 8, 8]), 3, True, id="carbon dioxide"),
        pytest.param(line([0, 1.15, -1.07], [6, 7, 1]), 3, True, id="hydrogen cyanide"),
        pytest.param(line([0, 1.10], [7, 7]), 2, True, id="nitrogen"),
        pytest.param(benzene(1), 12, True, id="benzene of alternating bonds"),
        pytest.param(benzene(0), 6, False, id="benzene of equal bonds, each too long for a double one"),
        pytest.param(methane(1.2), 0, False, id="stretched methane"),
        pytest.param(line([0, 1.16, -1.15], [6, 8, 8]), 1, False, id="carbon dioxide with a triple bond"),
        pytest.param(CROWDED, 5, False, id="five hydrogens on a carbon"),
        pytest.param(line([0], [6]), 0, False, id="a lone atom"),
    ],
)
def test_known_answers(molecule, stable_atoms, stable):
    assert [x.tolist() for x in stability(*pad([molecule], extra=2))] == [[stable_atoms], [stable]]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_limit_of_each_bond(order):
    """A pair has the order below its limit, and no longer at the limit, in either order of the atoms."""
    limits = [(ATOMIC_NUMBER[x[0]], ATOMIC_NUMBER[x[1]], int(x[2:])) for x in LIMITS_PM[order].split()]
    pairs = [line([0, pm / 100 + shift], [a, b]) for a, b, pm in limits for shift in (-1e-6, 0, 1e-6)]
    swapped = [(x, numbers[::-1]) for x, numbers in pairs]
    orders = bond_orders(*pad(pairs + swapped))
    assert orders[:, 0, 1].tolist() == [order, order - 1, order - 1] * len(limits) * 2
    assert torch.equal(orders, orders.mT)
    assert not orders.diagonal(dim1=1, dim2=2).any()


def test_no_other_bonds():
    """Where the table has no double or triple bond, atoms that touch are single."""
    pairs = [(a, b) for a in SYMBOL for b in SYMBOL]
    orders = bond_orders(*pad([line([0, 0.5], pair) for pair in pairs]))[:, 0, 1]
    assert orders.tolist() == [highest_order(SYMBOL[a], SYMBOL[b], 50) for a, b in pairs]
    assert (orders == 1).sum() == 9 + 2 * 3 + 1


def test_nested_and_highest_order_agree_on_the_table():
    for a, b in LENGTH[1]:
        for distance in np.arange(50, 200, 0.5):
            assert nested_order(a, b, distance) == highest_order(a, b, distance)


def test_padding_never_matters(embedded, rng):
    """Neither where it stands in the row, nor its coordinates, nor its atomic numbers."""
    positions, numbers, mask = pad(embedded, extra=3)
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(mask.shape[1]), (len(mask), 1)), axis=1))
    mixed = positions.gather(1, order[:, :, None].expand(-1, -1, 3)), numbers.gather(1, order), mask.gather(1, order)
    for place, number in [(math.nan, 16), (math.inf, -1), (1e9, 255), (mixed[0][0, 0, 0], 6)]:
        batch = (
            mixed[0].masked_fill(~mixed[2][..., None], place),
            mixed[1].masked_fill(~mixed[2], number),
            mixed[2],
        )
        assert torch.equal(stability(*batch)[0], mask.sum(dim=1))
        assert stability(*batch)[1].all()
        assert one_piece(*batch).all()
        assert not bond_orders(*batch)[~batch[2]].any()
        assert canonical_smiles(*batch) == canonical_smiles(positions, numbers, mask)


def test_rotation_translation_and_order_of_atoms_never_matter(embedded, clouds, rng):
    molecules = [*embedded, *clouds, together(methane(), water(), water(), methane()), together(water(), water())]
    others = [moved(molecule, rng) for molecule in molecules]
    for measure in (lambda *batch: torch.stack(stability(*batch)), one_piece, canonical_smiles):
        found, expected = measure(*pad(others)), measure(*pad(molecules))
        assert found == expected if isinstance(found, list) else torch.equal(found, expected)


def test_blocks_kinds_of_numbers_and_arrays_never_matter(embedded, clouds, monkeypatch):
    positions, numbers, mask = pad(embedded + clouds)
    expected = stability(positions, numbers, mask)
    orders = bond_orders(positions, numbers, mask)
    variants = [(positions.numpy(), numbers.numpy(), mask.numpy()), (positions, numbers.byte(), mask.byte())]
    for variant in variants:
        assert all(map(torch.equal, stability(*variant), expected))
    assert all(map(torch.equal, stability(positions.float(), numbers.int(), mask), expected))
    coarse = positions.half()
    assert torch.equal(bond_orders(coarse, numbers, mask), bond_orders(coarse.double(), numbers, mask))
    for pairs in (1, 1000):
        monkeypatch.setattr(graft.metrics.molecules, "PAIRS_PER_BLOCK", pairs)
        assert all(map(torch.equal, stability(positions, numbers, mask), expected))
        assert torch.equal(bond_orders(positions, numbers, mask), orders)


def test_smiles_are_those_of_the_molecules(embedded):
    molecules = [*embedded, benzene(1), methane()]
    expected = [Chem.MolToSmiles(Chem.AddHs(Chem.MolFromSmiles(s))) for s in [*SMILES, "c1ccccc1", "C"]]
    assert canonical_smiles(*pad(molecules)) == expected


def test_many_molecules_are_shared_out_among_processes(embedded, monkeypatch):
    """With the answers in order, those of invalid molecules too."""
    positions, numbers, mask = (torch.cat([torch.as_tensor(part)] * 3) for part in pad(embedded))
    positions = positions.clone()
    positions[4, 0] = torch.nan
    alone, processes = canonical_smiles(positions, numbers, mask), []

    def counted(workers, **settings):
        processes.append(workers)
        return ProcessPoolExecutor(workers, **settings)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(graft.metrics.molecules, "MANY_MOLECULES", 8)
    monkeypatch.setattr(graft.metrics.molecules, "ProcessPoolExecutor", counted)
    assert canonical_smiles(positions, numbers, mask) == alone
    assert processes == [2]
    assert [row for row, smiles in enumerate(alone) if smiles is None] == [4]


def test_molecule_for_rdkit_has_the_bonds():
    positions, numbers, mask = pad([line([0, 1.15, -1.07], [6, 7, 1])])
    molecule = to_rdkit(numbers[0], bond_orders(positions, numbers, mask)[0])
    bonds = {(b.GetBeginAtomIdx(), b.GetEndAtomIdx()): b.GetBondTypeAsDouble() for b in molecule.GetBonds()}
    assert bonds == {(0, 1): 3, (0, 2): 1}
    assert Chem.MolToSmiles(molecule) == "[H]C#N"


def test_invalid_molecule_has_no_smiles_and_makes_no_noise(capfd):
    assert canonical_smiles(*pad([CROWDED])) == [None]
    assert capfd.readouterr() == ("", "")


def test_atoms_lost_in_infinity_have_no_bonds():
    positions, numbers, mask = pad([methane()])
    positions[0, 1] = math.nan
    positions[0, 2:4] = math.inf
    assert stability(positions, numbers, mask)[0].tolist() == [1]
    assert not one_piece(positions, numbers, mask).any()
    assert canonical_smiles(positions, numbers, mask) == [None], "RDKit is not to fill the bonds that are lost"


def test_shares_of_a_known_set(rng):
    """As EDM counts them: a missing hydrogen is filled in by RDKit, but written differently."""
    stretched = methane()
    stretched[0][4] *= 3
    molecules = [methane(), moved(methane(), rng), water(), together(water(), methane()), CROWDED, stretched]
    smiles = canonical_smiles(*pad(molecules))
    assert smiles == ["[H]C([H])([H])[H]"] * 2 + ["[H]O[H]", "[H]C([H])([H])[H]", None, "[H]C([H])[H]"]
    assert one_piece(*pad(molecules)).tolist() == [True, True, True, False, True, False]
    expected = {
        "atom_stability": (5 + 5 + 3 + 8 + 5 + 3) / (5 + 5 + 3 + 8 + 6 + 5),
        "molecule_stability": 4 / 6,
        "validity": 5 / 6,
        "uniqueness": 3 / 5,
        "one_piece": 4 / 6,
    }
    assert summary(*pad(molecules)) == pytest.approx(expected)
    known = {"[H]O[H]", "[H]F"}
    assert summary(*pad(molecules), known) == pytest.approx({**expected, "novelty": 2 / 3})


def test_molecule_of_no_atoms_counts_as_bad():
    batch = pad([([], []), methane()])
    assert [x.tolist() for x in stability(*batch)] == [[0, 5], [False, True]]
    assert one_piece(*batch).tolist() == [False, True]
    assert canonical_smiles(*batch)[0] is None
    nothing = torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool)
    assert not any(summary(*nothing, set()).values())


def test_lone_atom_is_valid_and_in_one_piece():
    batch = pad([line([0], [6])])
    assert summary(*batch) == {
        "atom_stability": 0,
        "molecule_stability": 0,
        "validity": 1,
        "uniqueness": 1,
        "one_piece": 1,
    }


def test_no_molecules():
    batch = torch.zeros(0, 4, 3), torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.bool)
    assert [x.shape for x in stability(*batch)] == [(0,), (0,)]
    assert bond_orders(*batch).shape == (0, 4, 4)
    assert one_piece(*batch).shape == (0,)
    assert canonical_smiles(*batch) == []
    with pytest.raises(UserError, match="at least one"):
        summary(*batch)


@pytest.mark.parametrize("number", [-1, 0, 2, 5, 16, 300])
@pytest.mark.parametrize("measure", [stability, bond_orders, one_piece, canonical_smiles, summary])
def test_unknown_element_is_named(measure, number):
    positions, numbers, mask = pad([methane(), water()])
    numbers[1, 2] = number
    with pytest.raises(UserError, match=rf"atomic number \[{number}\]"):
        measure(positions, numbers, mask)

"""What share of generated molecules is stable, valid, unique, novel and in one piece, as EDM counts it.

EDM (Hoogeboom et al. 2022) reads bonds off the distances: a pair closer than a typical length plus a margin
(`bond_table`) is bonded. An atom is stable if its bond orders sum to its valency, a molecule if all its atoms are. A
molecule is valid if RDKit sanitises the molecule with these bonds.

Every function takes a batch of B molecules, padded to N atoms: positions (B, N, 3) float in Angstrom, atomic_numbers
(B, N) integer, and mask (B, N) bool, True where there is an atom. They are torch tensors on any one device, or NumPy
arrays. What stands where the mask is False never matters. An atom whose position is not finite has no bonds, and its
molecule is not valid. Unknown elements raise UserError. A molecule of no atoms is neither stable nor valid nor in one
piece; a lone atom is in one piece, is not stable, and is valid (RDKit completes it by implicit hydrogens).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from rdkit import Chem, rdBase
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from graft.errors import UserError
from graft.metrics.bond_table import ATOMIC_NUMBER, LENGTH, MARGIN, VALENCY

Array = Tensor | np.ndarray

Graph = tuple[np.ndarray, np.ndarray]
"""A molecule's atomic numbers (n,) and bond orders (n, n)."""

MANY_MOLECULES = 2048
"""From so many on their SMILES are worth several processes, which take a tenth of a second to start."""

PAIRS_PER_BLOCK = 2**17
"""Pairs of atoms whose distances are computed at a time: a few MB, which stay in a processor's cache."""

BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}

ROWS = 2 + max(ATOMIC_NUMBER.values())
"""Of the tables below, which are indexed by atomic number: row 0 is padding, the last row all heavier elements."""


def _limits() -> Tensor:
    """Distances (3, ROWS, ROWS) in Angstrom under which a pair has bond order 1, 2, 3; 0 where it cannot."""
    limits = torch.zeros(len(LENGTH), ROWS, ROWS, dtype=torch.float64)
    for order, lengths in LENGTH.items():
        for pair, length in lengths.items():
            i, j = (ATOMIC_NUMBER[element] for element in pair)
            limits[order - 1, i, j] = limits[order - 1, j, i] = (length + MARGIN[order]) / 100
    return limits


def _valencies() -> Tensor:
    """Valency (ROWS,) of each element; -1, which no sum of bond orders is, where it is not in the table."""
    valencies = torch.full((ROWS,), -1)
    for element, number in ATOMIC_NUMBER.items():
        valencies[number] = VALENCY[element]
    return valencies


LIMITS, VALENCIES = _limits(), _valencies()


class Batch(NamedTuple):
    """Molecules as tensors: positions (B, N, 3) float, atomic_numbers (B, N) int64, 0 in padding, mask (B, N) bool."""

    positions: Tensor
    atomic_numbers: Tensor
    mask: Tensor


class Bonds(NamedTuple):
    """All bonds of a batch, one entry each, int64: molecule in [0, B), atoms first < second < N, order 1, 2 or 3."""

    molecule: Tensor
    first: Tensor
    second: Tensor
    order: Tensor


def stability(positions: Array, atomic_numbers: Array, mask: Array) -> tuple[Tensor, Tensor]:
    """Number of stable atoms (B,) int64 and stable molecules (B,) bool, on the device of the positions.

    An atom is stable if its bond orders sum to its valency, a molecule if it has atoms and all of them are stable.
    Distances are taken in float64, in blocks of `PAIRS_PER_BLOCK` pairs; beyond these, memory grows with the bonds.
    """
    batch = _batch(positions, atomic_numbers, mask)
    bonds = _bonds(batch)
    size, atoms = batch.mask.shape
    valence = torch.zeros(size * atoms, dtype=torch.int64, device=batch.mask.device)
    for atom in (bonds.first, bonds.second):
        valence.index_add_(0, bonds.molecule * atoms + atom, bonds.order)
    stable = valence.view(size, atoms) == VALENCIES.to(valence.device)[batch.atomic_numbers]
    count = (stable & batch.mask).sum(dim=1)
    return count, (count == batch.mask.sum(dim=1)) & batch.mask.any(dim=1)


def bond_orders(positions: Array, atomic_numbers: Array, mask: Array) -> Tensor:
    """Bond order of each pair, (B, N, N) int8 in {0, 1, 2, 3}: symmetric, 0 on the diagonal and in padding.

    A pair at distance d is single if d < single length + margin; of those, double if d is also less than the double
    length + margin; of those, triple likewise. As each limit of `bond_table` lies below that of the order before,
    this is the highest order whose limit exceeds d.
    """
    batch = _batch(positions, atomic_numbers, mask)
    bonds = _bonds(batch)
    size, atoms = batch.mask.shape
    orders = torch.zeros(size, atoms, atoms, dtype=torch.int8, device=batch.mask.device)
    orders[bonds.molecule, bonds.first, bonds.second] = bonds.order.to(torch.int8)
    return orders + orders.mT


def one_piece(positions: Array, atomic_numbers: Array, mask: Array) -> Tensor:
    """Molecules (B,) bool, on the CPU, whose atoms all hang together by bonds."""
    batch = _batch(positions, atomic_numbers, mask)
    bonds = Bonds(*(column.cpu().numpy() for column in _bonds(batch)))
    size, atoms = batch.mask.shape
    edges = bonds.molecule * atoms + bonds.first, bonds.molecule * atoms + bonds.second
    graph = coo_array((bonds.order, edges), shape=(size * atoms, size * atoms))
    _, component = connected_components(graph, directed=False)
    real = batch.mask.flatten().cpu().numpy()
    _, an_atom = np.unique(component[real], return_index=True)
    pieces = np.bincount(np.flatnonzero(real)[an_atom] // max(atoms, 1), minlength=size)
    return torch.from_numpy(pieces == 1)


def to_rdkit(atomic_numbers: Array, orders: Array) -> Chem.RWMol | None:
    """The sanitised molecule of atomic_numbers (n,) and bond orders (n, n) without padding, None if RDKit refuses it.

    Hydrogens are atoms like the others. RDKit fills open valences by implicit hydrogens, so too few bonds leave a
    molecule valid, and too many make it invalid.
    """
    molecule = Chem.RWMol()
    for number in atomic_numbers.tolist():
        molecule.AddAtom(Chem.Atom(number))
    orders = np.triu(orders)
    for i, j in np.argwhere(orders).tolist():
        molecule.AddBond(i, j, BOND_TYPES[int(orders[i, j])])
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(molecule)
        except ValueError:
            return None
    return molecule


def rdkit_molecules(positions: Array, atomic_numbers: Array, mask: Array) -> Iterator[Chem.RWMol | None]:
    """Each molecule of the batch with its table's bonds, see `to_rdkit`; None where it is invalid."""
    return (graph and to_rdkit(*graph) for graph in _graphs(_batch(positions, atomic_numbers, mask)))


def canonical_smiles(positions: Array, atomic_numbers: Array, mask: Array) -> list[str | None]:
    """Canonical SMILES of each molecule's largest fragment, without stereochemistry; None where it is invalid.

    The same for any order, rotation and translation of the atoms: of several largest fragments, where EDM takes the one
    that comes first, it is the one with the least SMILES. As in EDM hydrogens are written out: without them a molecule
    that lacks one could not be told from the complete one, because RDKit would add it. Many molecules are shared out
    among as many processes as torch may use threads.
    """
    graphs, workers = list(_graphs(_batch(positions, atomic_numbers, mask))), torch.get_num_threads()
    if workers == 1 or len(graphs) < MANY_MOLECULES:
        return [_smiles(graph) for graph in graphs]
    # Forked, as a job's script would run again in a process that starts anew; the forks touch neither torch nor a GPU.
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        return list(pool.map(_smiles, graphs, chunksize=MANY_MOLECULES // 8))


def _smiles(graph: Graph | None) -> str | None:
    return graph and largest_fragment(to_rdkit(*graph))


def largest_fragment(molecule: Chem.Mol | None) -> str | None:
    """SMILES of the fragment with the most atoms; None for no molecule, and for one of no atoms."""
    if molecule is None or not molecule.GetNumAtoms():
        return None
    if len(Chem.GetMolFrags(molecule)) == 1:
        return Chem.MolToSmiles(molecule)
    fragments = Chem.GetMolFrags(molecule, asMols=True)
    most = max(fragment.GetNumAtoms() for fragment in fragments)
    return min(Chem.MolToSmiles(fragment) for fragment in fragments if fragment.GetNumAtoms() == most)


def summary(
    positions: Array, atomic_numbers: Array, mask: Array, known_smiles: Set[str] | None = None
) -> dict[str, float]:
    """The shares, each in [0, 1], that a table of molecules reports.

    atom_stability: of all atoms. molecule_stability, validity, one_piece: of all molecules. uniqueness: distinct SMILES
    (`canonical_smiles`) among the valid molecules. novelty: those not in `known_smiles`, among the distinct ones; left
    out if `known_smiles` is None. known_smiles must come from `canonical_smiles` of the training molecules, since other
    SMILES are written differently. A share of nothing is 0. Raises UserError if there is no molecule at all.
    """
    batch = _batch(positions, atomic_numbers, mask)
    if not len(batch.mask):
        raise UserError("evaluation of molecules needs at least one, got none; draw more samples")
    stable_atoms, stable = stability(*batch)
    valid = [smiles for smiles in canonical_smiles(*batch) if smiles is not None]
    unique = set(valid)
    shares = {
        "atom_stability": _share(int(stable_atoms.sum()), int(batch.mask.sum())),
        "molecule_stability": _share(int(stable.sum()), len(stable)),
        "validity": _share(len(valid), len(stable)),
        "uniqueness": _share(len(unique), len(valid)),
        "one_piece": _share(int(one_piece(*batch).sum()), len(stable)),
    }
    if known_smiles is not None:
        shares["novelty"] = _share(len(unique - known_smiles), len(unique))
    return shares


def _batch(positions: Array, atomic_numbers: Array, mask: Array) -> Batch:
    """The molecules as tensors; raises UserError if an atom's element is not in the table."""
    positions, mask = torch.as_tensor(positions), torch.as_tensor(mask).bool()
    atomic_numbers = torch.as_tensor(atomic_numbers).long().masked_fill(~mask, 0)
    unknown = mask & (VALENCIES.to(mask.device)[atomic_numbers.clamp(0, ROWS - 1)] < 0)
    if unknown.any():
        raise UserError(
            f"molecules: no bond lengths for atomic number {sorted(set(atomic_numbers[unknown].tolist()))}, only for "
            f"{sorted(ATOMIC_NUMBER.values())}; leave out molecules with other elements"
        )
    return Batch(positions, atomic_numbers, mask)


def _graphs(batch: Batch) -> Iterator[Graph | None]:
    """Each molecule without padding; None for one with an atom whose position is not finite.

    RDKit would fill the bonds that such an atom lacks.
    """
    placed = (batch.positions.isfinite().all(dim=-1) | ~batch.mask).all(dim=1).tolist()
    orders = bond_orders(*batch).cpu().numpy()
    numbers, mask = batch.atomic_numbers.cpu().numpy(), batch.mask.cpu().numpy()
    for number, order, real, sound in zip(numbers, orders, mask, placed, strict=True):
        yield (number[real], order[real][:, real]) if sound else None


def _bonds(batch: Batch) -> Bonds:
    """All bonds of the batch, found in blocks of molecules that hold at most `PAIRS_PER_BLOCK` pairs."""
    atoms = batch.mask.shape[1]
    size = max(1, PAIRS_PER_BLOCK // max(1, atoms * (atoms - 1) // 2))
    blocks = zip(*(tensor.split(size) for tensor in batch), strict=True)
    bonds = [_bonds_of_block(Batch(*block), size * number) for number, block in enumerate(blocks)]
    return Bonds(*(torch.cat(columns) for columns in zip(*bonds, strict=True)))


def _bonds_of_block(block: Batch, start: int) -> Bonds:
    """Bonds of a few molecules, the first of which is number `start` of the batch.

    Only the few pairs within the largest limit are looked up in the table, and NaN keeps padding from being among
    them. Molecules lie along the last dimension, so that the many distances are computed over contiguous memory.
    """
    numbers, limits = block.atomic_numbers, LIMITS.to(block.mask.device)
    one, other = torch.triu_indices(*[numbers.shape[1]] * 2, offset=1, device=numbers.device)
    coordinates = torch.where(block.mask, block.positions.double().permute(2, 0, 1), torch.nan).mT.contiguous()
    difference = coordinates.index_select(1, one).sub_(coordinates.index_select(1, other))
    squared = difference.square_().sum(dim=0)
    pair, molecule = (squared <= limits.max() ** 2).nonzero(as_tuple=True)
    distance, first, second = squared[pair, molecule].sqrt_(), one[pair], other[pair]
    # The limits fall as the order rises, so the order is the number of limits above the distance.
    order = (distance < limits[:, numbers[molecule, first], numbers[molecule, second]]).sum(dim=0)
    bonded = order > 0
    return Bonds(molecule[bonded] + start, first[bonded], second[bonded], order[bonded])


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0

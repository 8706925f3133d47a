"""Readers of molecule sets: every format that an asset can have, into one padded array of atoms.

A reader takes the asset's folder, the wanted elements (symbols) and the largest number of atoms, and returns a
`MoleculeSet`. It raises UserError, naming the file and the molecule, if something is missing, damaged or too large, or
if no molecule is left.

Molecules with other elements are left out of QM9 and counted in the log: `elements: [H, C, N, O]` is the customary way
to ask for QM9 without fluorine. In a user's own files they are an error, because a molecule that silently disappears
there is more likely a slip in the configuration than a wish.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from graft.errors import UserError
from graft.files import reading, tar_members
from graft.progress import progress

logger = logging.getLogger(__name__)

QM9_ARCHIVE = "dsgdb9nsd.xyz.tar.bz2"
QM9_UNCHARACTERISED = "uncharacterized.txt"
QM9_PACKED = "qm9_hcno.npz"
PACKED_ELEMENTS = {"H", "C", "N", "O"}
QM9_MOLECULES = 133_885

SYMBOLS = [Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(119)]
ATOMIC_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number > 0}


@dataclass(frozen=True)
class MoleculeSet:
    """positions: (n, N, 3) float32 in Angstrom. atomic_numbers: (n, N) uint8. Both are 0 in padding.

    N is the number of atoms of the largest molecule.
    """

    positions: np.ndarray
    atomic_numbers: np.ndarray


class Molecule(NamedTuple):
    """name: where it was read. atomic_numbers: (atoms,) uint8. positions: (atoms, 3) float64 in Angstrom."""

    name: str
    atomic_numbers: np.ndarray
    positions: np.ndarray


def read_qm9(folder: Path, elements: list[str], max_atoms: int) -> MoleculeSet:
    """QM9 as published: `dsgdb9nsd.xyz.tar.bz2`, in the order of its indices, without the uncharacterised molecules.

    Those are the 3,054 of `uncharacterized.txt`, whose geometry and formula disagree. Positions are rounded to 0.001
    Angstrom, so that the published and the packed files give the same molecules.
    Source: Ramakrishnan et al., Scientific Data 1, 140022 (2014).
    """
    path = folder / QM9_ARCHIVE
    uncharacterised = _qm9_uncharacterised(folder / QM9_UNCHARACTERISED)
    members = progress(tar_members(path), "reading QM9", QM9_MOLECULES)
    found = dict(_qm9_molecule(f"{path}:{name}", content) for name, content in members if name.endswith(".xyz"))
    gaps = set(range(1, max(found, default=0))) - found.keys()
    if gaps:
        raise UserError(f"{path}: molecule gdb {min(gaps)} is missing; replace the archive")
    molecules = [found[index] for index in sorted(found.keys() - uncharacterised)]
    logger.info("%s: %d uncharacterised molecules are left out", path, len(found) - len(molecules))
    return _padded(_leaving_out_others(molecules, elements, path), max_atoms, path)


def _qm9_uncharacterised(path: Path) -> set[int]:
    """First column of the list's table: lines of an index, three SMILES and a distance, between rules of '='."""
    with reading(path, "list of uncharacterised molecules"):
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        indices = {int(row[0]) for row in rows if row[0].isdecimal() and len(row) > 1}
        if not indices or set(rows[-1][0]) != {"="}:
            raise ValueError("it does not end with a table and a rule of '='")
    return indices


def _qm9_molecule(name: str, content: bytes) -> tuple[int, Molecule]:
    """Index and molecule of one file: atom count; 'gdb', index, properties; atoms; frequencies; SMILES; InChI.

    Numbers may be written as Mathematica does, 1.2*^-6.
    """
    with reading(name, "QM9 file"):
        lines = content.decode().replace("*^", "e").splitlines()
        count, (tag, index) = int(lines[0]), lines[1].split()[:2]
        if tag != "gdb" or len(lines) != count + 5:
            raise ValueError(f"{len(lines)} lines, the second of {tag}, where {count} atoms take {count + 5} and gdb")
        rows = [line.split() for line in lines[2 : 2 + count]]
        if {len(row) for row in rows} != {5}:
            raise ValueError("an atom's line is not 'element x y z charge'")
        atomic_numbers, positions = _atoms(rows)
        return int(index), Molecule(name, atomic_numbers, np.rint(positions * 1000) / 1000)


def read_qm9_npz(folder: Path, elements: list[str], max_atoms: int) -> MoleculeSet:
    """QM9 in one file, uncharacterised molecules already left out, in the order of its indices.

    `qm9_hcno.npz` holds `id` (the index) and `n_atoms`, (n,), and of the atoms of all molecules, end to end,
    `atomic_number` (atoms,) and `position_milliangstrom` (atoms, 3). Raises UserError if `elements` holds others than
    H, C, N, O, which it was packed without.
    """
    path = folder / QM9_PACKED
    if others := sorted(set(elements) - PACKED_ELEMENTS):
        raise UserError(
            f"{path}: packed without molecules of {', '.join(others)}; leave it out of the elements, or give the "
            "official archive"
        )
    with reading(path, ".npz file"), np.load(path, allow_pickle=False) as arrays:
        index, n_atoms, atomic_number = arrays["id"], arrays["n_atoms"].astype(int), arrays["atomic_number"]
        position = arrays["position_milliangstrom"]
        if index.shape != n_atoms.shape or position.shape != (n_atoms.sum(), 3) or len(atomic_number) != len(position):
            raise ValueError(f"{len(index)} molecules of {n_atoms.sum()} atoms, but {position.shape} positions")
    ends = np.cumsum(n_atoms)
    atoms = [slice(end - count, end) for end, count in zip(ends, n_atoms, strict=True)]
    molecules = [
        Molecule(f"{path}: gdb {index[i]}", atomic_number[atoms[i]], position[atoms[i]] / 1000)
        for i in np.argsort(index)
    ]
    return _padded(_leaving_out_others(molecules, elements, path), max_atoms, path)


def read_sdf(folder: Path, elements: list[str], max_atoms: int) -> MoleculeSet:
    """All records of all .sdf files below a folder, in the order of their paths.

    Raises UserError for a record without 3-D coordinates, or with implicit hydrogens where H is a wanted element.
    """
    records = (molecule for path in _files(folder, ".sdf") for molecule in _sdf_records(path, "H" in elements))
    return _padded(_refusing_others(records, elements), max_atoms, folder)


def _sdf_records(path: Path, hydrogens: bool) -> Iterator[Molecule]:
    with reading(path, "SDF file"):
        supplier = Chem.SDMolSupplier(str(path), removeHs=False, sanitize=False)
    # Iteration stops silently at a last record of less than a header; the length counts it.
    for number, record in zip_longest(range(1, len(supplier) + 1), supplier):
        name = f"{path}: record {number}"
        if record is None:
            raise UserError(f"{name}: not readable by RDKit; mend or remove it")
        if not (record.GetNumConformers() and record.GetConformer().Is3D()):
            raise UserError(f"{name}: has no 3-D coordinates; embed the molecule first")
        record.UpdatePropertyCache(strict=False)
        if hydrogens and any(atom.GetNumImplicitHs() for atom in record.GetAtoms()):
            raise UserError(f"{name}: hydrogens are missing; add them, with coordinates, or take H from the elements")
        atomic_numbers = np.array([atom.GetAtomicNum() for atom in record.GetAtoms()], np.uint8)
        yield Molecule(name, atomic_numbers, record.GetConformer().GetPositions())


def read_xyz(folder: Path, elements: list[str], max_atoms: int) -> MoleculeSet:
    """All frames of all .xyz files below a folder, in the order of their paths.

    A frame is the number of atoms, a comment, and a line 'element x y z' for each atom; further columns are ignored.
    """
    frames = (molecule for path in _files(folder, ".xyz") for molecule in _xyz_frames(path))
    return _padded(_refusing_others(frames, elements), max_atoms, folder)


def _xyz_frames(path: Path) -> Iterator[Molecule]:
    with reading(path, "XYZ file"):
        lines = path.read_text().rstrip().splitlines()
    start = number = 0
    while start < len(lines):
        number += 1
        name = f"{path}: frame {number}"
        with reading(name, "XYZ frame"):
            count = int(lines[start])
            atoms = lines[start + 2 : start + 2 + count]
            if count < 1 or len(atoms) != count:
                raise ValueError(f"{count} atoms promised, {len(atoms)} lines found")
            molecule = Molecule(name, *_atoms([line.split() for line in atoms]))
        yield molecule
        start += 2 + count


def _atoms(rows: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (atoms,) and positions (atoms, 3) of rows 'element', 'x', 'y', 'z', …"""
    positions = [(float(x), float(y), float(z)) for _, x, y, z, *_ in rows]
    unknown = {row[0] for row in rows} - ATOMIC_NUMBERS.keys()
    if unknown:
        raise ValueError(f"{min(unknown)} is no element")
    return np.array([ATOMIC_NUMBERS[row[0]] for row in rows], np.uint8), np.array(positions)


def _files(folder: Path, suffix: str) -> list[Path]:
    # os.walk, because the asset may be a link to the folder and Path.rglob does not follow links.
    found = (Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in found if path.suffix.lower() == suffix)


# The enumeration's geometries: five heavy atoms give 600 molecules of at most 14 atoms, built in ten seconds.
HEAVY_ATOMS = 5
CONFORMERS = 6
ENUMERABLE = {"H", "C", "N", "O", "F"}

HETEROATOM_PAIR = Chem.MolFromSmarts("[!#6]~[!#6]")
UNSTABLE = [
    Chem.MolFromSmarts(smarts)
    for smarts in (
        "O~O",  # oxygen, peroxides
        "N#N",  # nitrogen
        "[N;!H0]=[N,O]",  # diimide and its like, nitroxyl
        "*=*=*",  # cumulenes
        "[R]#*",  # rings that hold a triple bond
        "[r3]=*",  # rings of three with a double bond, inside or outside
        "[r4]=,:[r4]",  # cyclobutenes
        "[CX4]([N,O])[N,O;!H0]",  # hydrates, hemiacetals, aminals
        "[CX4]([N,O])([N,O])[N,O]",  # orthoesters
        "C=C[N,O;!H0]",  # enols and enamines: tautomers of carbonyl compounds and imines
        "N=C[O;!H0]",  # imidic acids: tautomers of amides
        "[N,O]C#[C,N]",  # ynols, ynamines, cyanates, cyanamides
        # Conjugation shortens the single bond so much that the table of bond lengths, by which stability is judged,
        # takes it for a double one.
        "C=CN=O",
        "C=NC#N",
    )
]


def read_enumerated(folder: Path, elements: list[str], max_atoms: int) -> MoleculeSet:
    """Conformers of all molecules of at most five heavy atoms and `max_atoms` atoms; the folder is not looked at.

    Six geometries a molecule, each by distance geometry (ETKDGv3) from a fixed seed and minimised in MMFF94, so that
    every molecule has the same weight; those of a rigid one are alike. Molecules for which that fails are left out.
    Raises UserError if `elements` holds others than H, C, N, O, F.
    """
    if others := sorted(set(elements) - ENUMERABLE):
        raise UserError(
            f"elements {', '.join(others)}: the enumeration has rules for H, C, N, O, F only; leave them out"
        )
    heavy = [element for element in elements if element != "H"]
    conformers: list[Molecule] = []
    with rdBase.BlockLogs():
        for smiles in progress(enumerate_molecules(heavy, HEAVY_ATOMS), "building molecules"):
            molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
            if molecule.GetNumAtoms() <= max_atoms:
                conformers += _conformers(smiles, molecule)
    return _padded(_leaving_out_others(conformers, elements, "enumerated molecules"), max_atoms, "enumerated molecules")


def enumerate_molecules(heavy: list[str], heavy_atoms: int) -> list[str]:
    """Canonical SMILES, sorted, of the molecules of 1 to `heavy_atoms` atoms of the elements `heavy`, hydrogens apart.

    Connected, neutral, every valence filled, single to triple bonds, stereoisomers not told apart. At most one ring and
    one bond between heteroatoms; none of the UNSTABLE groups. Such rules, many more of them, define the databases GDB:
    Fink & Reymond, J. Chem. Inf. Model. 47, 342 (2007); Ruddigkeit et al., J. Chem. Inf. Model. 52, 2864 (2012).
    """
    level = [Chem.MolFromSmiles(element) for element in heavy]
    found = {Chem.MolToSmiles(molecule) for molecule in level}
    for _ in range(heavy_atoms - 1):
        larger = _one_atom_larger(level, heavy)
        found |= larger.keys()
        level = list(larger.values())
    return sorted(smiles for smiles in found if not _has_any(Chem.MolFromSmiles(smiles), UNSTABLE))


def _one_atom_larger(molecules: list[Chem.Mol], heavy: list[str]) -> dict[str, Chem.Mol]:
    """All molecules of one more atom, by canonical SMILES: an atom is attached, then bonds are added in all ways.

    That misses none: each connected graph has a vertex without which it is still connected. It needs `molecules` to
    be complete, so rules may end the growth here only if they hold for all parts of what they hold for.
    """
    larger: dict[str, Chem.Mol] = {}
    pending = [
        _attached(molecule, atom, element) for molecule in molecules for atom in _open(molecule) for element in heavy
    ]
    while pending:
        molecule = pending.pop()
        Chem.SanitizeMol(molecule)
        smiles = Chem.MolToSmiles(molecule)
        rings = molecule.GetNumBonds() - molecule.GetNumAtoms() + 1
        if smiles not in larger and rings <= 1 and len(molecule.GetSubstructMatches(HETEROATOM_PAIR)) <= 1:
            Chem.Kekulize(molecule, clearAromaticFlags=True)
            larger[smiles] = molecule
            pending += [
                _bonded(molecule, a, b) for a, b in combinations(_open(molecule), 2) if _order(molecule, a, b) < 3
            ]
    return larger


def _open(molecule: Chem.Mol) -> list[int]:
    """Atoms that another bond can replace a hydrogen of."""
    return [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()]


def _attached(molecule: Chem.Mol, atom: int, element: str) -> Chem.RWMol:
    larger = Chem.RWMol(molecule)
    larger.AddBond(atom, larger.AddAtom(Chem.Atom(element)), Chem.BondType.SINGLE)
    return larger


def _order(molecule: Chem.Mol, a: int, b: int) -> int:
    bond = molecule.GetBondBetweenAtoms(a, b)
    return 0 if bond is None else int(bond.GetBondType())


def _bonded(molecule: Chem.Mol, a: int, b: int) -> Chem.RWMol:
    bonded = Chem.RWMol(molecule)
    order = _order(molecule, a, b)
    bonded.RemoveBond(a, b)
    bonded.AddBond(a, b, Chem.BondType.values[order + 1])
    return bonded


def _has_any(molecule: Chem.Mol, patterns: list[Chem.Mol]) -> bool:
    return any(molecule.HasSubstructMatch(pattern) for pattern in patterns)


def _conformers(name: str, molecule: Chem.Mol) -> list[Molecule]:
    embedding = rdDistGeom.ETKDGv3()
    embedding.randomSeed = 1  # RDKit multiplies it by the conformer's number: 0 would make them all the same
    rdDistGeom.EmbedMultipleConfs(molecule, CONFORMERS, embedding)
    minimised = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=2000)
    atomic_numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], np.uint8)
    return [
        Molecule(name, atomic_numbers, conformer.GetPositions())
        for conformer, (status, _) in zip(molecule.GetConformers(), minimised, strict=True)
        if status == 0
    ]


def _leaving_out_others(molecules: list[Molecule], elements: list[str], source: Path | str) -> list[Molecule]:
    wanted = _atomic_numbers(elements)
    kept = [molecule for molecule in molecules if wanted.issuperset(molecule.atomic_numbers.tolist())]
    logger.info(
        "%s: %d molecules, %d of them left out for other elements", source, len(molecules), len(molecules) - len(kept)
    )
    return kept


def _refusing_others(molecules: Iterable[Molecule], elements: list[str]) -> Iterator[Molecule]:
    wanted = _atomic_numbers(elements)
    for molecule in molecules:
        if others := set(molecule.atomic_numbers.tolist()) - wanted:
            names = ", ".join(SYMBOLS[number] for number in sorted(others))
            raise UserError(
                f"{molecule.name}: holds {names}; add it to the elements {elements}, or remove the molecule"
            )
        yield molecule


def _atomic_numbers(elements: list[str]) -> set[int]:
    if unknown := sorted(set(elements) - ATOMIC_NUMBERS.keys()):
        raise UserError(f"elements: {', '.join(unknown)} is no chemical element; write symbols such as H, C, N, O")
    return {ATOMIC_NUMBERS[symbol] for symbol in elements}


def _padded(molecules: Iterable[Molecule], max_atoms: int, source: Path | str) -> MoleculeSet:
    molecules = list(molecules)
    if not molecules:
        raise UserError(f"{source}: no molecules found")
    for name, atomic_numbers, positions in molecules:
        if not 0 < len(atomic_numbers) <= max_atoms:
            raise UserError(f"{name}: {len(atomic_numbers)} atoms, not 1 to {max_atoms}; raise max_atoms or remove it")
        if not np.isfinite(positions).all():
            raise UserError(f"{name}: has positions that are no finite numbers; mend or remove it")
    shape = len(molecules), max(len(molecule.atomic_numbers) for molecule in molecules)
    padded = MoleculeSet(np.zeros((*shape, 3), np.float32), np.zeros(shape, np.uint8))
    for row, (_, atomic_numbers, positions) in enumerate(molecules):
        padded.positions[row, : len(positions)] = positions
        padded.atomic_numbers[row, : len(atomic_numbers)] = atomic_numbers
    return padded


READERS: dict[str, Callable[[Path, list[str], int], MoleculeSet]] = {
    "qm9": read_qm9,
    "qm9_npz": read_qm9_npz,
    "sdf": read_sdf,
    "xyz": read_xyz,
    "enumerated": read_enumerated,
}

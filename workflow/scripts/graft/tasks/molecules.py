"""Molecules in 3-D: positions and elements of all atoms, hydrogens included."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from rdkit import Chem, rdBase
from rdkit.Chem import QED, rdDepictor
from torch import Tensor, nn
from torch.nn import functional

from graft import molecule_formats
from graft.compute import Compute
from graft.metrics.bond_table import ATOMIC_NUMBER
from graft.metrics.molecules import canonical_smiles, largest_fragment, rdkit_molecules, stability, summary
from graft.objectives import FocusedTimes
from graft.rewards import load_reward, per_sample
from graft.seeding import Draw, chunked_rows
from graft.shards import ShardedTensor, load_prepared
from graft.tasks.sets import Condition, SetTask

logger = logging.getLogger(__name__)

ANGSTROM = 1 / 1.5
"""Model units of length in an angstrom: centred positions get a standard deviation of about one."""


STRATA = 0.75, 1.0
"""Training takes the smaller three quarters of the molecules apart from the others; each more is compiled anew."""


@dataclass(frozen=True)
class Molecules(SetTask):
    """How molecules become points of a diffusion and back.

    A point (N, 3 + K) holds centred positions in model units and the one-hot element of each of at most N =
    `max_atoms` atoms, out of K `elements` (symbols); rows beyond the molecule are zero. The number of atoms is the
    condition `atoms` (B,) int64: it is drawn before denoising, from the data's histogram.

    element_scale: of the one-hot elements. Small ones drown in noise first and are decided last, when the positions are
    known (EDM, Hoogeboom et al. 2022, takes 0.25).
    """

    elements: list[str]
    max_atoms: int
    element_scale: float

    coordinates, spatial = 3, True

    @property
    def max_elements(self) -> int:
        """N, the most atoms of a molecule."""
        return self.max_atoms

    @property
    def class_scale(self) -> float:
        """See `element_scale`."""
        return self.element_scale

    @property
    def classes(self) -> int:
        """K, how many elements of the periodic table there are."""
        return len(self.elements)

    def read(self, folder: Path, reader: str) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """`positions` (n, N, 3) float32 in angstrom and `atomic_numbers` (n, N) uint8, 0 for no atom."""
        found = molecule_formats.READERS[reader](folder, self.elements, self.max_atoms)
        padding = self.max_atoms - found.atomic_numbers.shape[1]
        positions = np.pad(found.positions, ((0, 0), (0, padding), (0, 0)))
        atomic_numbers = np.pad(found.atomic_numbers, ((0, 0), (0, padding)))
        return {"positions": positions, "atomic_numbers": atomic_numbers}, {}

    def training_data(self, folder: str | Path) -> list[list[Tensor]]:
        """Positions and atomic numbers by size, in each stratum without the rows that are padding in all of it.

        Most molecules have fewer atoms than the largest, and pairs of atoms cost the square.
        """
        positions, numbers = prepared(folder)
        sizes = (numbers > 0).sum(dim=1)
        edges = [0, *sizes.double().quantile(torch.tensor(STRATA, dtype=torch.float64)).long().tolist()]
        parts = ((low, high, (sizes > low) & (sizes <= high)) for low, high in pairwise(edges))
        return [[positions[part, :high], numbers[part, :high]] for _, high, part in parts if part.any()]

    def loss(
        self,
        network: nn.Module,
        positions: Tensor,
        atomic_numbers: Tensor,
        generator: torch.Generator,
        times: FocusedTimes | None = None,
    ) -> Tensor:
        """Denoising at all times; see `encode` and `denoising_loss` for the arguments."""
        x_0, condition = self.encode(positions, atomic_numbers), {"atoms": (atomic_numbers > 0).sum(dim=1)}
        return self.denoising_loss(network, x_0, 0.0, condition, generator, times)

    def augment(self, x_c: Tensor, generator: torch.Generator) -> Tensor:
        """Points turned at random, since base and rewards do not know directions and the network has to learn so."""
        return torch.cat([turned_at_random(x_c[..., :3], generator), x_c[..., 3:]], dim=-1)

    def conditions(self, folder: str | Path, seed: int, draw: Draw, *index: int, start: int, stop: int) -> Condition:
        """Conditions of the samples [start, stop): the atoms of molecules that are drawn from a prepared folder."""
        atoms = (load_prepared(folder, "atomic_numbers")[:] > 0).sum(dim=1)
        return {"atoms": atoms[chunked_rows(len(atoms), seed, draw, *index, start=start, stop=stop)]}

    def group(self, condition: Condition) -> Tensor:
        """(B,) int64: within which samples rewards are compared; all molecules with one another."""
        return torch.zeros(len(condition["atoms"]), dtype=torch.long)

    def describe(self, condition: Condition) -> dict[str, float]:
        """What a table notes of a set of samples that no cut can move: the mean number of atoms."""
        return {"mean_atoms": condition["atoms"].double().mean().item()}

    def mask(self, condition: Condition) -> Tensor:
        """(B, N) bool: which rows are atoms."""
        atoms = condition["atoms"]
        return torch.arange(self.max_atoms, device=atoms.device) < atoms[:, None]

    def project(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, N, 3 + K) centred and with nothing beyond the atoms, the subspace of points; N may be less than all."""
        mask = self.mask(condition)[:, : x.shape[1]]
        x = x * mask[..., None]
        centre = x[..., :3].sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
        return torch.cat([(x[..., :3] - centre) * mask[..., None], x[..., 3:]], dim=-1)

    def encode(self, positions: Tensor, atomic_numbers: Tensor) -> Tensor:
        """Points (B, N, 3 + K) of molecules; positions (B, N, 3) in angstrom, atomic_numbers (B, N), 0 for no atom."""
        numbers = torch.tensor([ATOMIC_NUMBER[symbol] for symbol in self.elements], device=positions.device)
        one_hot = self.element_scale * (atomic_numbers[..., None] == numbers).float()
        condition = {"atoms": (atomic_numbers > 0).sum(dim=1)}
        return self.project(torch.cat([positions.float() * ANGSTROM, one_hot], dim=-1), condition)

    def decode(
        self, x_0: Tensor, condition: Condition, data: str | Path | None = None, network: nn.Module | None = None
    ) -> Cloud:
        """Points (B, N, 3 + K) as molecules; neither the data nor a network have a part in it."""
        numbers = torch.tensor([ATOMIC_NUMBER[symbol] for symbol in self.elements], device=x_0.device)
        mask = self.mask(condition)
        return Cloud(x_0[..., :3] / ANGSTROM, numbers[x_0[..., 3:].argmax(dim=-1)] * mask, mask)

    def load_samples(self, paths: Sequence[str | Path], name: str, data: str | Path) -> Cloud:
        """The samples of a model from shards of rollouts."""
        return self.decode(
            ShardedTensor(paths, f"{name}.step0")[:], {"atoms": ShardedTensor(paths, "condition.atoms")[:]}
        )

    def rewards(self, molecules: Cloud, reward: dict[str, Any], compute: Compute) -> np.ndarray:
        """Reward (B,) float64 of each molecule, NaN where the function fails; see `graft.rewards.per_sample`."""
        function = reward["function"]
        if function == "stability":
            return stability(*molecules)[1].double().cpu().numpy()
        if function == "qed":
            return per_sample(drug_likeness, ((molecule,) for molecule in rdkit_molecules(*molecules)))
        positions, numbers = molecules.positions.cpu().numpy(), molecules.atomic_numbers.cpu().numpy()
        arguments = ((place[number > 0], number[number > 0]) for place, number in zip(positions, numbers, strict=True))
        return per_sample(load_reward(function, known=("stability", "qed")), arguments)

    def sample_keys(self, molecules: Cloud) -> list[str | None]:
        """What makes two samples the same: the canonical SMILES, None where there is none."""
        return canonical_smiles(*molecules)

    def reference(self, data: str | Path, judges: None, compute: Compute) -> set[str]:
        """What `metrics` measures against: the keys of the data of a prepared folder."""
        positions, numbers = prepared(data)
        return set(canonical_smiles(positions, numbers, numbers > 0)) - {None}

    def picture(self, molecules: Cloud, count: int) -> Image:
        """The first molecules as drawn formulas side by side, with what they are; an invalid one is a star."""
        try:
            from rdkit.Chem.Draw import MolsToGridImage
        except ImportError as error:  # RDKit's drawing needs libXrender, which computing nodes often lack
            logger.warning("no pictures of molecules: %s", error)
            return new_image("RGB", (150 * count, 150), "white")
        few = Cloud(*(part[:count] for part in molecules))
        stable = stability(*few)[1].tolist()
        drawn = list(rdkit_molecules(*few))
        captions = [
            "stable" if good else "unstable" if molecule else "invalid"
            for good, molecule in zip(stable, drawn, strict=True)
        ]
        with rdBase.BlockLogs():
            flat = [Chem.RemoveHs(molecule or Chem.MolFromSmiles("*"), sanitize=False) for molecule in drawn]
            for molecule in flat:
                rdDepictor.Compute2DCoords(molecule)
            return MolsToGridImage(flat, molsPerRow=count, subImgSize=(150, 150), legends=captions)

    def metrics(self, molecules: Cloud, known: set[str]) -> dict[str, float]:
        """Metrics of a set of samples, see `graft.metrics.molecules.summary`."""
        return summary(*molecules, known)


def prepared(folder: str | Path) -> tuple[Tensor, Tensor]:
    """Positions (n, N, 3) in angstrom and atomic numbers (n, N) of all molecules of a prepared folder."""
    return load_prepared(folder, "positions")[:], load_prepared(folder, "atomic_numbers")[:]


@dataclass(frozen=True)
class Cloud:
    """Molecules: positions (B, N, 3) in angstrom, atomic_numbers (B, N) with 0 for no atom, mask (B, N)."""

    positions: Tensor
    atomic_numbers: Tensor
    mask: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.positions, self.atomic_numbers, self.mask))


def drug_likeness(molecule: Chem.Mol | None) -> float:
    """RDKit's QED (Bickerton et al. 2012) in [0, 1] of the largest fragment; 0 for None and for lacking hydrogens.

    RDKit would fill in the hydrogens that lack, and a policy soon learns that it need not place them.
    """
    if molecule is None or any(atom.GetNumImplicitHs() for atom in molecule.GetAtoms()):
        return 0.0
    with rdBase.BlockLogs():
        return QED.qed(Chem.MolFromSmiles(largest_fragment(molecule)))


def turned_at_random(positions: Tensor, generator: torch.Generator) -> Tensor:
    """Positions (B, N, 3), each molecule turned by a rotation of its own; in float32 whatever the autocast."""
    with torch.autocast(positions.device.type, enabled=False):
        return positions.float() @ random_rotations(len(positions), generator)


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Uniform rotation matrices (count, 3, 3), from normalised Gaussian quaternions, on the generator's device."""
    quaternions = torch.randn(count, 4, generator=generator, device=generator.device)
    w, x, y, z = functional.normalize(quaternions, dim=1).unbind(dim=1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

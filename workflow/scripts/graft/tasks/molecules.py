"""Molecules in 3-D: positions and elements of all atoms, hydrogens included."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from graft.errors import UserError
from graft.metrics.bond_table import ATOMIC_NUMBER
from graft.metrics.molecules import canonical_smiles, largest_fragment, rdkit_molecules, stability, summary
from graft.networks.saved import load_saved
from graft.networks.set_transformer import SetTransformer
from graft.objectives import denoising, stratified_times
from graft.paths import StraightPath
from graft.rewards import load_reward, per_sample
from graft.sampling import Denoiser
from graft.seeding import Draw, chunked_rows, drawn_weights
from graft.shards import ShardedTensor, load_prepared

logger = logging.getLogger(__name__)

Condition = dict[str, Tensor]
"""What a sample is conditioned on: `atoms` (B,) int64, how many there are."""

ANGSTROM = 1 / 1.5
"""Model units of length in an angstrom: centred positions get a standard deviation of about one."""


@dataclass(frozen=True)
class Molecules:
    """How molecules become points of a diffusion and back.

    A point (N, 3 + K) holds centred positions in model units and the one-hot element of each of at most N =
    `max_atoms` atoms, out of K `elements` (symbols); rows beyond the molecule are zero. The number of atoms is the
    condition: it is drawn before denoising, from the data's histogram.
    """

    elements: list[str]
    max_atoms: int

    path = StraightPath()
    precision = torch.float32

    @property
    def shape(self) -> tuple[int, int]:
        """(N, 3 + K), the shape of a point."""
        return self.max_atoms, 3 + len(self.elements)

    def read(self, folder: Path, reader: str) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """`positions` (n, N, 3) float32 in angstrom and `atomic_numbers` (n, N) uint8, 0 for no atom."""
        found = molecule_formats.READERS[reader](folder, self.elements, self.max_atoms)
        padding = self.max_atoms - found.atomic_numbers.shape[1]
        positions = np.pad(found.positions, ((0, 0), (0, padding), (0, 0)))
        atomic_numbers = np.pad(found.atomic_numbers, ((0, 0), (0, padding)))
        return {"positions": positions, "atomic_numbers": atomic_numbers}, {}

    def training_data(self, folder: str | Path) -> list[ShardedTensor]:
        """Positions and atomic numbers of a prepared folder."""
        return [load_prepared(folder, name) for name in ("positions", "atomic_numbers")]

    def build_network(self, settings: dict[str, Any], seed: int, run: int) -> SetTransformer:
        """A `SetTransformer` of the sizes in settings (width, depth, heads), its weights drawn from (seed, run).

        Raises UserError if the heads do not divide the width.
        """
        count, channels = self.shape
        if settings["width"] % settings["heads"]:
            raise UserError(f"network: {settings['heads']} heads do not divide the width {settings['width']}")
        with drawn_weights(seed, run):
            return SetTransformer(
                in_channels=channels, out_channels=channels, max_elements=count, spatial=True, **settings
            )

    def load_network(
        self, folder: str | Path, data: str | Path | None = None, device: torch.device | str = "cpu"
    ) -> SetTransformer:
        """A `SetTransformer` saved by `save_pretrained`, on a device; it needs nothing of the `data`.

        Raises UserError if there is none, or one of another shape.
        """
        network = load_saved(folder, {"SetTransformer": SetTransformer})
        config, (count, channels) = network.config, self.shape
        if (config.max_elements, config.in_channels, config.out_channels) != (count, channels, channels):
            raise UserError(
                f"{folder}: takes {config.max_elements, config.in_channels} (atoms, channels) and returns "
                f"{config.out_channels} channels, the configured points are {self.shape}"
            )
        if not config.spatial:
            raise UserError(f"{folder}: a SetTransformer that is not spatial; molecules need one that is")
        return network.to(device)

    def load_tuned(self, base: SetTransformer, folder: str | Path) -> SetTransformer:
        """A fine-tuned model, which is a network of its own beside the base."""
        return self.load_network(folder, device=base.device)

    def tunable(
        self, base: SetTransformer, previous: str | Path | None, adapter: None, seed: int, run: int
    ) -> SetTransformer:
        """A model to fine-tune: the base itself, or what was tuned before; all of it, without an adapter."""
        return (base if previous is None else self.load_tuned(base, previous)).requires_grad_(True)

    def loss(self, network: nn.Module, positions: Tensor, atomic_numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Denoising at all times; see `encode` for the arguments."""
        x_0, condition = self.encode(positions, atomic_numbers), {"atoms": (atomic_numbers > 0).sum(dim=1)}
        return self.denoising_loss(network, x_0, 0.0, condition, generator)

    def denoising_loss(
        self, network: nn.Module, x_c: Tensor, cut_time: float, condition: Condition, generator: torch.Generator
    ) -> Tensor:
        """Denoising above a cut (`graft.objectives.denoising`) of snapshots x_c (B, N, 3 + K); a scalar.

        Snapshots are turned at random, since base and rewards do not know directions and the network has to learn so.
        """
        x_c = torch.cat([turned_at_random(x_c[..., :3], generator), x_c[..., 3:]], dim=-1)
        noise = self.project(torch.randn(x_c.shape, generator=generator, device=x_c.device), condition)
        t = stratified_times(x_c, generator, cut_time)
        return denoising(self.denoiser(network, condition), self.weight, self.path, x_c, cut_time, noise, t)

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
        """x (B, N, 3 + K) with centred positions and nothing beyond the atoms: the subspace that points live in."""
        mask = self.mask(condition)
        x = x * mask[..., None]
        centre = x[..., :3].sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
        return torch.cat([(x[..., :3] - centre) * mask[..., None], x[..., 3:]], dim=-1)

    def encode(self, positions: Tensor, atomic_numbers: Tensor) -> Tensor:
        """Points (B, N, 3 + K) of molecules; positions (B, N, 3) in angstrom, atomic_numbers (B, N), 0 for no atom."""
        numbers = torch.tensor([ATOMIC_NUMBER[symbol] for symbol in self.elements], device=positions.device)
        one_hot = (atomic_numbers[..., None] == numbers).float()
        condition = {"atoms": (atomic_numbers > 0).sum(dim=1)}
        return self.project(torch.cat([positions.float() * ANGSTROM, one_hot], dim=-1), condition)

    def decode(
        self, x_0: Tensor, condition: Condition, data: str | Path | None = None, network: nn.Module | None = None
    ) -> Cloud:
        """Points (B, N, 3 + K) as molecules; neither the data nor a network have a part in it."""
        numbers = torch.tensor([ATOMIC_NUMBER[symbol] for symbol in self.elements], device=x_0.device)
        mask = self.mask(condition)
        return Cloud(x_0[..., :3] / ANGSTROM, numbers[x_0[..., 3:].argmax(dim=-1)] * mask, mask)

    def denoiser(self, network: Callable[..., Tensor], condition: Condition) -> Denoiser:
        """E[x_0 | x_t] under a `SetTransformer`.

        Positions are preconditioned as in EDM (Karras et al. 2022), for data of unit variance: c_skip x_t + c_out F
        with c_skip = alpha / (alpha^2 + sigma^2), c_out = sigma / sqrt(alpha^2 + sigma^2), and inputs scaled by
        1 / sqrt(alpha^2 + sigma^2). Elements are softmax probabilities.
        """
        mask = self.mask(condition)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = self.path.alpha(t)[:, None, None], self.path.sigma(t)[:, None, None]
            scale = (alpha**2 + sigma**2).rsqrt()
            out = network(x * scale, t, mask).float()
            positions = alpha * scale**2 * x[..., :3] + sigma * scale * out[..., :3]
            probabilities = functional.softmax(out[..., 3:], dim=-1)
            return self.project(torch.cat([positions, probabilities], dim=-1), condition)

        return denoise

    def weight(self, t: Tensor) -> Tensor:
        """Weight (B, 1, 3 + K) of the squared error in x_0: 1 / c_out^2 for positions, one for elements."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        positions = ((alpha**2 + sigma**2) / sigma**2)[:, None].expand(-1, 3)
        elements = torch.ones(len(t), len(self.elements), device=t.device)
        return torch.cat([positions, elements], dim=1)[:, None]

    def stored(self, molecules: Cloud) -> dict[str, Tensor]:
        """What a shard keeps of samples beside their points: nothing."""
        return {}

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

    def keys(self, molecules: Cloud) -> list[str | None]:
        """What makes two samples the same: the canonical SMILES, None where there is none."""
        return canonical_smiles(*molecules)

    def reference(self, data: str | Path, judges: None, compute: Compute) -> set[str]:
        """What `metrics` measures against: the keys of the data of a prepared folder."""
        positions, numbers = (array[:] for array in self.training_data(data))
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

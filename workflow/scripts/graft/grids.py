"""A grid over the plane, on which laws and samples are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """[-extent, extent]^2 cut into `cells` by `cells` squares, each with `points` by `points` nodes for integrals."""

    extent: float
    cells: int
    points: int = 6

    def nodes(self) -> Tensor:
        """Middles of equal squares, (n, 2) with n = (cells * points)^2, in double precision."""
        side = self.cells * self.points
        axis = self.extent * (2 * (torch.arange(side, dtype=torch.double) + 0.5) / side - 1)
        return torch.cartesian_prod(axis, axis)

    def integral(self, values: Tensor) -> float:
        """The integral over the grid of a function with `values` (n,) at the nodes."""
        return values.mean().item() * (2 * self.extent) ** 2

    def sums(self, values: Tensor) -> Tensor:
        """Sums (cells, cells) over each cell's nodes, of values (n,) at the nodes."""
        return values.reshape(self.cells, self.points, self.cells, self.points).sum(dim=(1, 3))

    def law(self, density: Tensor) -> Tensor:
        """Probabilities (cells, cells) of the cells, from a density (n,) at the nodes that need not be normalised."""
        sums = self.sums(density)
        return sums / sums.sum()

    def counts(self, x: Tensor) -> Tensor:
        """How many of the samples x (B, 2) lie in each cell, (cells, cells); those beyond the grid in none."""
        edges = np.linspace(-self.extent, self.extent, self.cells + 1)
        return torch.from_numpy(np.histogram2d(*x.double().numpy().T, bins=(edges, edges))[0])

    def cell_of(self, x: Tensor) -> Tensor:
        """The number of the cell, in [0, cells^2), that each of x (B, 2) lies in or, beyond the grid, is next to."""
        index = ((x + self.extent) * (self.cells / (2 * self.extent))).long().clamp(0, self.cells - 1)
        return index[:, 0] * self.cells + index[:, 1]


def total_variation(shares: Tensor, law: Tensor) -> float:
    """Between shares of samples and a law (cells, cells), in [0, 1]; what the shares lack of 1 counts in full."""
    return ((shares - law).abs().sum().item() + 1 - shares.sum().item()) / 2

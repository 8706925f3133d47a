"""Links of the chains of inverse noise correction: flows, and as a control a mere shift and scale of the noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from graft.compute import Compute
from graft.networks.flows import FlowNetwork, count_flops, load_network, velocity_of
from graft.noise_correction import SHIFT_AND_SCALE
from graft.sampling import Normal, Stage, Velocity, flow_stage
from graft.shards import ShardedTensor, TensorFile, write_tensors

ROWS = 256
"""Noises in memory at a time when their moments are taken; part of the result, as it orders the sums."""


class Link(Protocol):
    """What takes points (B, C, H, W) through one stage of a chain, from t = 1 to t = 0."""

    @property
    def flops(self) -> int:
        """FLOPs of one image in one step."""

    @property
    def parameters(self) -> int:
        """Numbers that were learnt."""

    def stage(self, steps: int) -> Stage:
        """The link as a stage of the sampler, of so many steps if it goes in steps."""


@dataclass(frozen=True)
class Flow:
    """A flow network, which goes in Euler steps of its velocity."""

    network: FlowNetwork
    velocity: Velocity
    flops: int
    parameters: int

    @classmethod
    def load(cls, folder: str | os.PathLike, compute: Compute) -> Flow:
        """A saved one, ready to sample as `compute` says. Raises UserError if the folder holds none."""
        network = load_network(folder)
        return cls(network, velocity_of(network, compute), count_flops(network), network.num_parameters())

    def stage(self, steps: int) -> Stage:
        return flow_stage(self.velocity, steps)


@dataclass(frozen=True)
class ShiftAndScale:
    """z -> mean + deviation z in every dimension by itself, which takes N(0, I) to N(mean, diag(deviation^2)).

    mean, deviation: (C, H, W), float32.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, noises: ShardedTensor | Tensor) -> ShiftAndScale:
        """The likeliest for noises (n, C, H, W): with their mean, and the root of their mean square deviation from it.

        Summed in float64, over parts that do not depend on how many files the noises lie in.
        """
        parts = [slice(start, start + ROWS) for start in range(0, len(noises), ROWS)]

        def mean_of(function: Callable[[Tensor], Tensor]) -> Tensor:
            return sum(function(noises[rows].double()).sum(dim=0) for rows in parts) / len(noises)

        mean = mean_of(lambda z: z)
        # In a second pass: the mean square less the squared mean would lose digits.
        variance = mean_of(lambda z: (z - mean).square())
        return cls(mean.float(), variance.sqrt().float())

    @classmethod
    def load(cls, path: str | os.PathLike, base_steps: int, device: torch.device) -> ShiftAndScale:
        """That of the noises of so many base steps, from a file that `write_fitted` wrote, on a device."""
        found = TensorFile(path).group(f"base{base_steps}")
        return cls(**{name: tensor.to(device) for name, tensor in found.items()})

    @property
    def flops(self) -> int:
        """0: of networks, too, no such operations are counted."""
        return 0

    @property
    def parameters(self) -> int:
        return self.mean.numel() + self.deviation.numel()

    def stage(self, steps: int) -> Stage:
        """One map from t = 1 to t = 0, whatever `steps`: it does not go in steps."""
        return Stage(self, [1.0, 0.0])

    def __call__(self, x: Tensor, t: float, s: float, normal: Normal | None = None) -> Tensor:
        return self.mean + self.deviation * x


def write_fitted(path: str | os.PathLike, fitted: Mapping[int, ShiftAndScale]) -> None:
    """Write the shift and scale of the noises of each base step count into one safetensors file."""
    tensors = {f"base{n}.{name}": tensor for n, link in fitted.items() for name, tensor in vars(link).items()}
    write_tensors(path, tensors, {})


def load_correctors(
    flows: Mapping[str, str | os.PathLike],
    shift_and_scale: str | os.PathLike,
    step_counts: Sequence[int],
    compute: Compute,
) -> dict[tuple[str, int], Link]:
    """The correctors of every base step count, by (name, base step count), named as chains name them.

    flows: folders of the trained flows, by path; UserError where one is no such folder. shift_and_scale: the file that
    `write_fitted` wrote.
    """
    controls = {(SHIFT_AND_SCALE, n): ShiftAndScale.load(shift_and_scale, n, compute.device) for n in step_counts}
    trained = {
        (path, n): Flow.load(Path(folder) / f"base{n}", compute) for path, folder in flows.items() for n in step_counts
    }
    return {**controls, **trained}

"""Unconditional images: 8-bit pixels, dequantised with Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graft import image_formats
from graft.networks.flows import FlowNetwork, build_network, load_network, velocity_of
from graft.objectives import flow_matching
from graft.paths import PATHS
from graft.seeding import Draw, chunked_normal
from graft.shards import ShardedTensor, load_prepared


@dataclass(frozen=True)
class Images:
    """How images become points of a flow and back.

    Points are (channels, image_size, image_size), with pixels spanning [-1, 1]. dequantisation: standard deviation, in
    these units, of the Gaussian noise that is added to the data before it is modelled or inverted; without it the
    sampler's last steps have no inverse.
    """

    image_size: int
    channels: int
    dequantisation: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.image_size, self.image_size

    def read(self, folder: Path, reader: str) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """`images` (n, C, H, W) uint8, and `labels` (n,) int64 where the asset has them; how many classes there are."""
        found = image_formats.READERS[reader](folder, self.image_size, self.channels)
        if found.labels is None:
            return {"images": found.images}, {"classes": 0}
        return {"images": found.images, "labels": found.labels}, {"classes": int(found.labels.max()) + 1}

    def training_data(self, folder: str | Path) -> list[list[ShardedTensor]]:
        """The images of a prepared folder."""
        return [[load_images(folder)]]

    def build_network(self, settings: dict[str, Any], seed: int, run: int) -> FlowNetwork:
        """See `graft.networks.flows.build_network`."""
        return build_network(settings, self.shape, seed=seed, run=run)

    def load_network(self, folder: str | Path) -> FlowNetwork:
        """See `graft.networks.flows.load_network`."""
        return load_network(folder, self.shape)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Flow matching on the straight path, for the images (B, C, H, W) uint8 dequantised anew; a scalar."""
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return flow_matching(velocity_of(network), PATHS["straight"], self.encode(images, noise), generator)

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) as points x_0 = pixels / 127.5 - 1 + dequantisation * noise, float32."""
        return images.float() / 127.5 - 1 + self.dequantisation * noise

    def decode(self, x_0: Tensor) -> Tensor:
        """Points (B, C, H, W) as uint8 images, rounded and clipped to the pixels' range."""
        return ((x_0.clamp(-1, 1) + 1) * 127.5).round().byte()

    def points(self, images: ShardedTensor, rows: Tensor, seed: int, draw: Draw, start: int, stop: int) -> Tensor:
        """The points [start, stop) of the endless repetition of `images[rows]`, (stop - start, C, H, W).

        Each repetition of an image is dequantised anew, with the noise of (seed, draw).
        """
        noise = chunked_normal(seed, draw, start, stop, images.shape)
        return self.encode(images[repeated(rows, start, stop)], noise)


def repeated(rows: Tensor, start: int, stop: int) -> Tensor:
    """Entries [start, stop) of the endless repetition of `rows`, (stop - start,)."""
    return rows[torch.arange(start, stop) % len(rows)]


def load_images(folder: str | Path, name: str = "images") -> ShardedTensor:
    """One array of a prepared data folder: `images` (n, C, H, W) uint8, or `labels` (n,) where the set has them."""
    return load_prepared(folder, name)

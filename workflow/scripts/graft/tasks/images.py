"""Unconditional images: 8-bit pixels, dequantised with Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from graft.files import read_json
from graft.seeding import Draw, chunked_normal
from graft.shards import ShardedTensor


@dataclass(frozen=True)
class Images:
    """How images become points of a flow and back.

    dequantisation: standard deviation, in units where pixels span [-1, 1], of the Gaussian noise that is added to the
    data before it is modelled or inverted; without it the sampler's last steps have no inverse.
    """

    dequantisation: float

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) as points x_0 = pixels / 127.5 - 1 + dequantisation * noise, float32."""
        return images.float() / 127.5 - 1 + self.dequantisation * noise

    def decode(self, x_0: Tensor) -> Tensor:
        """Points (B, C, H, W) as uint8 images, rounded and clipped to the pixels' range."""
        return ((x_0.clamp(-1, 1) + 1) * 127.5).round().byte()

    def points(self, images: ShardedTensor, count: int, seed: int, draw: Draw, start: int, stop: int) -> Tensor:
        """The points [start, stop) of the endless repetition of the first `count` images, (stop - start, C, H, W).

        Each repetition of an image is dequantised anew, with the noise of (seed, draw).
        """
        noise = chunked_normal(seed, draw, start, stop, images.shape)
        return self.encode(images[torch.arange(start, stop) % count], noise)


def load_images(folder: str | Path, name: str = "images") -> ShardedTensor:
    """One array of a prepared data folder: `images` (n, C, H, W) uint8, or `labels` (n,) where the set has them."""
    shards = read_json(Path(folder) / "data.json")["shards"]
    return ShardedTensor([Path(folder) / f"shard{shard}.safetensors" for shard in range(shards)], name)

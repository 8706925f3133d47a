"""A transformer over the elements of a set: the atoms of a molecule, the boxes of a layout."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

FREQUENCIES = 64
TIMESTEPS = 1000
"""diffusers embeds times as timesteps from 0 to 1000."""

BUMPS, REACH = 16, 6.0
"""Distances enter as Gaussian bumps, as many, between 0 and REACH, in the units of the positions."""

SOFTENING = 0.1
"""Added to distances, so that forces stay finite where positions meet."""


class SetTransformer(ModelMixin, ConfigMixin):
    """Transformer (pre-norm, adaptive layer norm as in DiT) over sets of at most `max_elements`.

    forward(sample (B, N, in_channels), time (B,) in [0, 1], mask (B, N) bool) -> (B, N, out_channels); elements
    outside the mask come out as zero and are not seen by the others. Each element carries a learned embedding of its
    index, and the number of elements conditions every layer with the time. With `spatial`, the first three channels
    are positions: attention is biased by functions of the distances between them, and the first three outputs get
    forces between pairs added, along the lines that join them. That is what a bond length needs.
    """

    @register_to_config
    def __init__(
        self, in_channels: int, out_channels: int, max_elements: int, spatial: bool, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(in_channels, width)
        self.index = nn.Parameter(0.02 * torch.randn(max_elements, width))
        self.count = nn.Embedding(max_elements + 1, width)
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(FREQUENCIES, width)
        self.bias = nn.Sequential(nn.Linear(BUMPS, 32), nn.SiLU(), nn.Linear(32, heads * depth)) if spatial else None
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm_out = AdaptiveNorm(width)
        self.leave = nn.Linear(width, out_channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.forces = Forces(width) if spatial else None

    def forward(self, sample: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        condition = self.time(self.frequencies(time * TIMESTEPS)) + self.count(mask.sum(dim=1))
        # Positions need more digits than bf16 has: what touches them stays in float32 under autocast.
        with torch.autocast(sample.device.type, enabled=False):
            hidden = self.enter(sample.float()) + self.index[: sample.shape[1]]
        # By key, then query. Finite: a query's keys that are all -inf would be NaN, and NaN times a zero mask as well.
        seen = torch.where(mask, 0.0, -1e9).to(sample.dtype)[:, None, :, None]
        if self.bias is None:
            for block in self.blocks:
                hidden = block(hidden, condition, seen)
            with torch.autocast(sample.device.type, enabled=False):
                return self.leave(self.norm_out(hidden.float(), condition.float())) * mask[..., None]
        differences, bumps = pairs(sample[..., :3])
        biases = self.bias(bumps.to(hidden.dtype)).permute(0, 3, 1, 2)
        biases = biases + seen.to(biases.dtype)
        for block, bias in zip(self.blocks, biases.chunk(len(self.blocks), dim=1), strict=True):
            hidden = block(hidden, condition, bias)
        with torch.autocast(sample.device.type, enabled=False):
            hidden = self.norm_out(hidden.float(), condition.float())
            out = self.leave(hidden)
            positions = out[..., :3] + self.forces(hidden, differences, bumps, mask)
            return torch.cat([positions, out[..., 3:]], dim=-1) * mask[..., None]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights between hidden layers, all matrices: what the optimizer Muon is for."""
        return [weight for weight in self.blocks.parameters() if weight.ndim == 2]


def pairs(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Differences x_i - x_j of positions (B, N, 3), (B, N, N, 3), and their lengths as bumps (B, N, N, BUMPS)."""
    differences = positions[:, :, None] - positions[:, None]
    # The root's gradient at a distance of zero is infinite.
    distances = (differences.square().sum(dim=-1, keepdim=True) + 1e-8).sqrt()
    centres = torch.arange(BUMPS, device=positions.device) * (REACH / BUMPS)
    return differences, torch.exp(-(((distances - centres) * (BUMPS / REACH)) ** 2) / 2)


class Forces(nn.Module):
    """Sums over j of w_ij (x_i - x_j) / |x_i - x_j|, with weights w_ij from both elements and their distance."""

    RELATIONS, SIZE, HIDDEN = 8, 8, 32

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_key = nn.Linear(width, 2 * self.RELATIONS * self.SIZE)
        self.distance = nn.Linear(BUMPS, self.HIDDEN)
        self.relation = nn.Linear(self.RELATIONS, self.HIDDEN)
        self.weigh = nn.Linear(self.HIDDEN, 1, bias=False)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, hidden: Tensor, differences: Tensor, bumps: Tensor, mask: Tensor) -> Tensor:
        parts = self.query_key(hidden).unflatten(-1, (2, self.RELATIONS, self.SIZE))
        query, key = parts.permute(2, 0, 3, 1, 4)
        relations = (query @ key.mT).permute(0, 2, 3, 1) / self.SIZE**0.5
        weights = self.weigh(functional.silu(self.distance(bumps.to(hidden.dtype)) + self.relation(relations)))
        directions = differences / (differences.norm(dim=-1, keepdim=True) + SOFTENING)
        return (weights * directions * mask[:, None, :, None]).sum(dim=2)


class AdaptiveNorm(nn.Module):
    """Layer norm whose scale and shift come from the condition (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(functional.silu(condition))[:, None].chunk(2, dim=-1)
        return self.norm(hidden) * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each behind an adaptive norm, both added to the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_perceptron = AdaptiveNorm(width), AdaptiveNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, condition: Tensor, bias: Tensor) -> Tensor:
        hidden = hidden + self._attend(self.norm_attention(hidden, condition), bias)
        return hidden + self.perceptron(self.norm_perceptron(hidden, condition))

    def _attend(self, hidden: Tensor, bias: Tensor) -> Tensor:
        batch, count, width = hidden.shape
        size = width // self.heads
        parts = self.query_key_value(hidden).view(batch, count, 3, self.heads, size)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        # Written out, as sets are so small that torch's fused attention is slower: with it a pass over pages takes a
        # quarter longer on a CPU, and one over 2,048 molecules on an H200 21 ms instead of 12. By key, then query, as a
        # softmax over the last dimension, if short, does not use a CPU's vectors.
        scores = (key @ query.mT) * size**-0.5 + bias
        mixed = torch.softmax(scores, dim=-2).mT @ value
        return self.project(mixed.transpose(1, 2).reshape(batch, count, width))

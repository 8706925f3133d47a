"""A residual multilayer perceptron over all pixels: for images so small that convolutions do not pay."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

FREQUENCIES = 64


class ResidualMLP(ModelMixin, ConfigMixin):
    """Flow network with the call of diffusers' UNet2DModel, (sample, timestep) -> (output,).

    sample (B, in_channels, sample_size, sample_size), timestep (B,) in [0, 1000]. `depth` residual blocks of two
    layers of `width` units; the time's embedding is added once, before the first.
    """

    @register_to_config
    def __init__(self, sample_size: int, in_channels: int, out_channels: int, width: int, depth: int) -> None:
        super().__init__()
        pixels = sample_size * sample_size
        self.time = nn.Sequential(
            Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0),
            TimestepEmbedding(FREQUENCIES, width),
        )
        self.enter = nn.Linear(in_channels * pixels, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width)
        self.conv_out = nn.Linear(width, out_channels * pixels)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        hidden = self.enter(sample.flatten(1)) + self.time(timestep).to(sample.dtype)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return (self.conv_out(self.norm_out(hidden)).unflatten(1, (self.config.out_channels, *sample.shape[2:])),)

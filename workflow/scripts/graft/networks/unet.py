"""Flow networks over diffusers' UNets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from graft.errors import UserError
from graft.sampling import Velocity
from graft.seeding import drawn_weights

TIMESTEPS = 1000
"""diffusers embeds times as timesteps from 0 to 1000."""


def build_unet(settings: dict[str, Any], shape: tuple[int, ...], *, seed: int, run: int) -> UNet2DModel:
    """A `UNet2DModel` for points of `shape` (C, H, W), with weights drawn from (seed, run).

    settings: further arguments of UNet2DModel. The global random state is left as it was.
    """
    channels, size, _ = shape
    with drawn_weights(seed, run):
        network = UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **settings)
    # A zero last layer starts the flow at v = 0.
    nn.init.zeros_(network.conv_out.weight)
    nn.init.zeros_(network.conv_out.bias)
    return network


def load_unet(folder: str | Path) -> UNet2DModel:
    """A UNet saved by `save_pretrained`, ready to be evaluated. Raises UserError if the folder holds none."""
    try:
        network = UNet2DModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no diffusers UNet2DModel with safetensors weights ({error})") from error
    return network.eval().requires_grad_(False)


def unet_velocity(network: nn.Module) -> Velocity:
    """The velocity v(x, t), t in [0, 1], that an unconditional UNet predicts."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t * TIMESTEPS, return_dict=False)[0]

    return velocity


def point_shape(network: UNet2DModel) -> tuple[int, int, int]:
    """(C, H, W) of the points that a UNet takes."""
    return network.config.in_channels, network.config.sample_size, network.config.sample_size


def unet_flops(network: UNet2DModel) -> int:
    """FLOPs of one forward pass of one image, counted by torch on the meta device, 2 a multiply-add."""
    with torch.device("meta"):
        twin = UNet2DModel.from_config(network.config)
        x, t = torch.empty(1, *point_shape(network)), torch.empty(1)
    # Fused attention is not counted; the plain one does the same work in the open.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        twin(x, t)
    return counter.get_total_flops()

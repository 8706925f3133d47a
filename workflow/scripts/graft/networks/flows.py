"""Flow networks: diffusers' UNet2DModel, and a perceptron with the same call for tiny images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from graft.compute import Compute
from graft.errors import UserError
from graft.networks.mlp import ResidualMLP
from graft.networks.saved import load_saved
from graft.sampling import Velocity
from graft.seeding import drawn_weights

FlowNetwork = UNet2DModel | ResidualMLP
CLASSES: dict[str, type[FlowNetwork]] = {"UNet2DModel": UNet2DModel, "ResidualMLP": ResidualMLP}

TIMESTEPS = 1000
"""diffusers embeds times as timesteps from 0 to 1000."""


def build_network(settings: dict[str, Any], shape: tuple[int, ...], *, seed: int, run: int) -> FlowNetwork:
    """A flow network for points of `shape` (C, H, W), with weights drawn from (seed, run).

    settings: `type`, one of `CLASSES`, and further arguments of that class. The last layer starts at zero, so that
    the flow starts at v = 0.
    """
    arguments = {key: value for key, value in settings.items() if key != "type"}
    channels, size, _ = shape
    with drawn_weights(seed, run):
        network = CLASSES[settings["type"]](sample_size=size, in_channels=channels, out_channels=channels, **arguments)
    nn.init.zeros_(network.conv_out.weight)
    nn.init.zeros_(network.conv_out.bias)
    return network


def load_network(folder: str | Path, shape: tuple[int, ...] | None = None) -> FlowNetwork:
    """A flow network saved by `save_pretrained`, ready to be evaluated.

    Raises UserError if the folder holds none (see `graft.networks.saved.load_saved`), or one for points of another
    shape (C, H, W) than the one given.
    """
    network = load_saved(folder, CLASSES)
    if shape is not None and point_shape(network) != shape:
        raise UserError(f"{folder}: takes {point_shape(network)}, the data are {shape}")
    return network


def velocity_of(network: nn.Module, compute: Compute | None = None) -> Velocity:
    """The velocity v(x, t), t in [0, 1], that a flow network predicts.

    With `compute`, for sampling: moved to its device, compiled and in mixed precision as it says.
    """
    if compute is None:
        return lambda x, t: network(x, t * TIMESTEPS, return_dict=False)[0]
    plain = velocity_of(compute.compile(network.to(compute.device)))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        with compute.autocast():
            return plain(x, t)

    return velocity


def point_shape(network: FlowNetwork) -> tuple[int, int, int]:
    """(C, H, W) of the points that a network takes."""
    return network.config.in_channels, network.config.sample_size, network.config.sample_size


def count_flops(network: FlowNetwork) -> int:
    """FLOPs of one forward pass of one image, counted by torch on the meta device, 2 a multiply-add."""
    with torch.device("meta"):
        twin = type(network).from_config(network.config)
        x, t = torch.empty(1, *point_shape(network)), torch.empty(1)
    # Fused attention is not counted; the plain one does the same work in the open.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        twin(x, t)
    return counter.get_total_flops()

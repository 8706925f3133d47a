"""Loading networks that diffusers saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from graft.errors import UserError, one_line
from graft.files import read_json


def load_saved(folder: str | Path, classes: dict[str, type[ModelMixin]], device: torch.device | str = "cpu") -> Any:
    """A network that `save_pretrained` saved, out of `classes` by their names, on a device, ready to be evaluated.

    Nothing is fetched from a hub. Raises UserError if the folder holds none of them, or not all of its weights in
    safetensors.
    """
    known = " or ".join(classes)
    try:
        name = read_json(Path(folder) / "config.json")["_class_name"]
        network, loading = classes[name].from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    # What diffusers raises for no model, another class, other sizes than the weights'.
    except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder}: no {known} with safetensors weights, saved by diffusers ({one_line(error)})"
        ) from error
    if missing := loading["missing_keys"]:
        raise UserError(f"{folder}: the weights of {', '.join(sorted(missing))} are missing; save the model again")
    # diffusers' own `to` and `device` look for offloading first and import PEFT for it: a second of each job.
    return nn.Module.to(network, device).eval().requires_grad_(False)

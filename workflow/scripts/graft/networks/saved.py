"""Loading networks that diffusers saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from graft.errors import UserError, one_line
from graft.files import read_json


def load_saved(folder: str | Path, classes: dict[str, type[ModelMixin]]) -> Any:
    """A network that `save_pretrained` saved, out of `classes` by their names, ready to be evaluated.

    Nothing is fetched from a hub. Raises UserError if the folder holds none of them, or not all of its weights in
    safetensors.
    """
    known = " or ".join(classes)
    try:
        name = read_json(Path(folder) / "config.json")["_class_name"]
        # low_cpu_mem_usage would advise to install accelerate, which small models need not.
        network, loading = classes[name].from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    # What diffusers raises for no model, another class, other sizes than the weights'.
    except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder}: no {known} with safetensors weights, saved by diffusers ({one_line(error)})"
        ) from error
    if missing := loading["missing_keys"]:
        raise UserError(f"{folder}: the weights of {', '.join(sorted(missing))} are missing; save the model again")
    return network.eval().requires_grad_(False)

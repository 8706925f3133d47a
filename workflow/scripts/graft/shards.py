"""Arrays on disk: safetensors files, and one long array spread over several of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graft.errors import UserError
from graft.files import atomic, read_json
from graft.seeding import CHUNK


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able metadata as one safetensors file, whole or not at all."""
    # One metadata entry: safetensors orders several by a hash that differs from process to process.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as scratch:
        save_file(tensors, scratch, {"graft": json.dumps(metadata, sort_keys=True)})


class TensorFile:
    """A safetensors file opened by memory map: pages are read when they are touched.

    Raises UserError if the file is truncated or is no safetensors file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        try:
            self._file = safe_open(os.fspath(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); delete it and run again") from error
        self.metadata: dict[str, Any] = json.loads((self._file.metadata() or {}).get("graft", "{}"))
        self.names = sorted(self._file.keys())

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU. Raises KeyError if there is none of that name."""
        if name not in self.names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors called `prefix.name`, by name, on the CPU."""
        names = (name.removeprefix(f"{prefix}.") for name in self.names if name.startswith(f"{prefix}."))
        return {name: self.tensor(f"{prefix}.{name}") for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, on the CPU."""
        return {name: self.tensor(name) for name in self.names}


class ShardedTensor:
    """The rows of one tensor name over consecutive shard files, as one array on the CPU, (n, ...).

    Raises UserError if there are no rows at all, or if the shards' rows have different shapes.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], name: str) -> None:
        self.parts = [TensorFile(path).tensor(name) for path in paths]
        shapes = {tuple(part.shape[1:]) for part in self.parts}
        if len(shapes) > 1:
            raise UserError(f"{name}: shards {paths[0]} … hold rows of different shapes: {sorted(shapes)}")
        self.ends = np.cumsum([len(part) for part in self.parts])
        if not len(self):
            raise UserError(f"{name}: no rows in {', '.join(map(str, paths))}")
        self.shape = shapes.pop()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        """Rows at `indices` (a CPU long tensor (k,) in [0, n), or a slice), in that order, (k, ...)."""
        if isinstance(indices, slice):
            indices = torch.arange(*indices.indices(len(self)))
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"rows {int(indices.min())} to {int(indices.max())} of an array of {len(self)}")
        if len(self.parts) == 1:
            return self.parts[0][indices]
        part_of = np.searchsorted(self.ends, indices.numpy(), side="right")
        rows = torch.empty(len(indices), *self.shape, dtype=self.parts[0].dtype)
        for number, (part, end) in enumerate(zip(self.parts, self.ends, strict=True)):
            where = torch.from_numpy(np.flatnonzero(part_of == number))
            rows[where] = part[indices[where] - (int(end) - len(part))]
        return rows


def load_prepared(folder: str | os.PathLike, name: str) -> ShardedTensor:
    """One array of a prepared data folder, by its name; `data.json` says how many shards there are."""
    shards = read_json(Path(folder) / "data.json")["shards"]
    return ShardedTensor([Path(folder) / f"shard{shard}.safetensors" for shard in range(shards)], name)


def shard_batches(total: int, batch_size: int, shard: int, shards: int) -> list[tuple[int, int]]:
    """The batches [start, stop) of one shard, out of `total` samples cut into batches of `batch_size`.

    Batches are the same whatever the number of shards, so that a sample is computed in the same company and comes out
    with the same bytes. Raises ValueError if batch_size is no multiple of the chunk (64): a batch holds whole chunks.
    """
    if batch_size % CHUNK:
        raise ValueError(f"batch_size {batch_size} is no multiple of {CHUNK}")
    starts = np.array_split(np.arange(0, total, batch_size), shards)[shard]
    return [(int(start), min(int(start) + batch_size, total)) for start in starts]

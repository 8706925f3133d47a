"""Bring an asset, whatever its format, into the one prepared form: shards of arrays."""

from pathlib import Path

import numpy as np
import torch

from graft.assets import read_description
from graft.errors import UserError
from graft.files import write_json
from graft.jobs import run, task_of
from graft.shards import write_tensors


def main(job):
    asset, folder = Path(job.input[0]), Path(job.output[0])
    description = read_description(asset)
    arrays, counts = task_of(job).read(asset, description["reader"])
    count = len(next(iter(arrays.values())))
    if job.params.shards > count:
        raise UserError(f"data.shards: {job.params.shards} shards of {count} samples leave some empty; lower it")
    for shard, rows in enumerate(np.array_split(np.arange(count), job.params.shards)):
        tensors = {name: torch.from_numpy(array[rows]) for name, array in arrays.items()}
        write_tensors(folder / f"shard{shard}.safetensors", tensors, {"first": int(rows[0])})
    write_json(folder / "data.json", {**description, **counts, "count": count, "shards": job.params.shards})


run(main, snakemake)

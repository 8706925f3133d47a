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
    task, folder = task_of(job), Path(job.output[0])
    assets = [Path(asset) for asset in job.input]
    descriptions = [read_description(asset) for asset in assets]
    found = [task.read(asset, each["reader"]) for asset, each in zip(assets, descriptions, strict=True)]
    arrays, counts = found[0] if len(found) == 1 else (task.join([part for part, _ in found]), {})
    count = len(next(iter(arrays.values())))
    if job.params.shards > count:
        raise UserError(f"data.shards: {job.params.shards} shards of {count} samples leave some empty; lower it")
    for shard, rows in enumerate(np.array_split(np.arange(count), job.params.shards)):
        tensors = {name: torch.from_numpy(array[rows]) for name, array in arrays.items()}
        write_tensors(folder / f"shard{shard}.safetensors", tensors, {"first": int(rows[0])})
    write_json(folder / "data.json", {**as_one(descriptions), **counts, "count": count, "shards": job.params.shards})


def as_one(descriptions):
    """What is recorded of the assets behind a set of data, the first before the others."""
    first, *others = descriptions
    return {**first, "others": others} if others else first


run(main, snakemake)

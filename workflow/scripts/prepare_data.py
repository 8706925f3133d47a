"""Bring an image asset, whatever its format, into the one prepared form: shards of uint8 images."""

from pathlib import Path

import numpy as np
import torch

from graft.assets import read_description
from graft.files import write_json
from graft.image_formats import READERS
from graft.jobs import run
from graft.shards import write_tensors


def main(job):
    asset, folder = Path(job.input[0]), Path(job.output[0])
    description = read_description(asset)
    data = READERS[description["reader"]](asset, job.params.image_size, job.params.channels)
    for shard, rows in enumerate(np.array_split(np.arange(len(data.images)), job.params.shards)):
        tensors = {"images": torch.from_numpy(data.images[rows])}
        if data.labels is not None:
            tensors["labels"] = torch.from_numpy(data.labels[rows])
        write_tensors(folder / f"shard{shard}.safetensors", tensors, {"first": int(rows[0])})
    classes = 0 if data.labels is None else int(data.labels.max()) + 1
    counts = {"images": len(data.images), "classes": classes, "shards": job.params.shards}
    write_json(folder / "data.json", {**description, **counts})


run(main, snakemake)

"""Measure every chain's samples, and as many of the data themselves, against the dequantised data."""

from pathlib import Path

import torch

from graft.files import write_json
from graft.jobs import compute_of, run
from graft.metrics.images import FeatureSpace, distances
from graft.noise_correction import DATA
from graft.progress import progress
from graft.seeding import Draw, random_rows
from graft.shards import ShardedTensor, TensorFile, shard_batches
from graft.tasks.images import Images, load_images


def main(job):
    compute, task, seed = compute_of(job), Images(**job.params.points), int(job.wildcards.seed)
    features = FeatureSpace(job.params.extractor, Path(job.input.features), compute, job.params.batch_size)
    data = load_images(job.input.data)
    samples = TensorFile(job.input.samples[0])

    def dequantised(rows, draw, count):
        """As many images of the model's data, which have noise, through the same decoding as samples."""
        batches = shard_batches(count, job.params.batch_size, shard=0, shards=1)
        return torch.cat([task.decode(task.points(data, rows, seed, draw, *batch)) for batch in batches])

    reference = features(dequantised(torch.arange(len(data)), Draw.REFERENCE, len(data)))

    def measure(images):
        found = distances(features(images), reference, seed=seed, precision_recall_samples=job.params.neighbours_of)
        return {**found, "samples": len(images)}

    # What no model can beat: the data under other noise, in the number of the samples.
    count = len(ShardedTensor(job.input.samples, samples.names[0]))
    rows = random_rows(len(data), count, seed, Draw.SUBSET)
    metrics = {DATA.name: measure(dequantised(rows, Draw.DEQUANTISATION, count))}
    for name in progress(samples.names, "evaluating"):
        metrics[name] = measure(ShardedTensor(job.input.samples, name)[:])
    write_json(job.output[0], {"metrics": metrics, "costs": samples.metadata["costs"]})


run(main, snakemake)

"""Measure every chain's samples, and the clean data themselves, against the dequantised data."""

from pathlib import Path

import torch

from graft.files import write_json
from graft.jobs import compute_of, run
from graft.metrics.images import FeatureSpace, distances
from graft.noise_correction import DATA
from graft.progress import progress
from graft.seeding import Draw
from graft.shards import ShardedTensor, TensorFile, shard_batches
from graft.tasks.images import Images, load_images


def main(job):
    compute, task, seed = compute_of(job), Images(**job.params.points), int(job.wildcards.seed)
    features = FeatureSpace(job.params.extractor, Path(job.input.features), compute, job.params.batch_size)
    data = load_images(job.input.data)
    # The model's data are the dequantised ones, so they are the reference, through the same decoding as samples.
    batches = shard_batches(len(data), job.params.batch_size, shard=0, shards=1)
    points = (task.points(data, torch.arange(len(data)), seed, Draw.REFERENCE, *batch) for batch in batches)
    reference = features(torch.cat([task.decode(x) for x in points]))

    def measure(images):
        found = distances(features(images), reference, seed=seed, precision_recall_samples=job.params.neighbours_of)
        return {**found, "samples": len(images)}

    metrics = {DATA.name: measure(data[:])}
    for name in progress(TensorFile(job.input.samples[0]).names, "evaluating"):
        metrics[name] = measure(ShardedTensor(job.input.samples, name)[:])
    write_json(job.output[0], {"metrics": metrics, "costs": TensorFile(job.input.samples[0]).metadata["costs"]})


run(main, snakemake)

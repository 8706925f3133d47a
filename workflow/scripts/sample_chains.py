"""Draw a shard of samples from every chain: the base alone, and each corrector before it."""

import time

import torch

from graft.chain_links import Flow, load_correctors
from graft.files import write_json
from graft.jobs import compute_of, run
from graft.networks.flows import point_shape
from graft.noise_correction import chains
from graft.progress import progress
from graft.sampling import sample
from graft.seeding import Draw, chunked_normal
from graft.shards import shard_batches, write_tensors
from graft.tasks.images import Images

WARM_UP = 3
"""Calls of a compiled network before it is timed: the first compiles it, the second records a CUDA graph."""


def main(job):
    compute, task, params = compute_of(job), Images(**job.params.points), job.params
    seed, shard = int(job.wildcards.seed), int(job.wildcards.shard)
    base = Flow.load(job.input.base, compute)
    folders = dict(zip(params.paths, job.input.correctors, strict=True))
    correctors = load_correctors(folders, job.input.shift_and_scale, params.step_counts, compute)
    batches = shard_batches(params.samples, params.batch_size, shard, params.shards)
    # Every chain starts from the same noises, so that differences between chains are not differences of noises.
    noises = [chunked_normal(seed, Draw.NOISE, *batch, point_shape(base.network)) for batch in batches]
    # Both happen anew for each size of a batch.
    for noise in {len(noise): noise for noise in noises}.values():
        for link in (base, *correctors.values()):
            sample(noise.to(compute.device), [link.stage(WARM_UP)])

    tensors, timing, costs = {}, {}, {}
    for chain in chains(params.step_counts, params.paths, params.corrector_steps):
        links = [(base, chain.base_steps)]
        if chain.corrector:
            links.insert(0, (correctors[chain.corrector, chain.base_steps], chain.corrector_steps))
        stages = [link.stage(steps) for link, steps in links]
        tensors[chain.name], timing[chain.name] = draw(noises, stages, task, compute, chain.name)
        costs[chain.name] = {
            "flops_per_image": sum(steps * link.flops for link, steps in links),
            "parameters": sum(link.parameters for link, _ in links),
        }
    write_tensors(job.output.samples, tensors, {"shard": shard, "costs": costs})
    write_json(job.output.timing, {"seconds_per_image": timing})


def draw(noises, stages, task, compute, name):
    """uint8 images of a chain (n, C, H, W) and the seconds that one image took."""
    compute.synchronize()
    start = time.monotonic()

    def drawn_in(batch_size):
        parts = [part for noise in noises for part in noise.split(batch_size)]
        return [task.decode(sample(part.to(compute.device), stages)).cpu() for part in progress(parts, name)]

    images = compute.fitting(drawn_in, max(map(len, noises)))
    return torch.cat(images), (time.monotonic() - start) / sum(map(len, noises))


run(main, snakemake)

"""Draw a shard of samples from every chain of flows: the base alone, and each corrector before it."""

import time
from pathlib import Path

import torch

from graft.files import write_json
from graft.jobs import compute_of, run
from graft.networks.flows import count_flops, load_network, point_shape, velocity_of
from graft.noise_correction import chains
from graft.progress import progress
from graft.sampling import flow_stage, sample
from graft.seeding import Draw, chunked_normal
from graft.shards import shard_batches, write_tensors
from graft.tasks.images import Images

WARM_UP = 3
"""Calls of a compiled network before it is timed: the first compiles it, the second records a CUDA graph."""


def main(job):
    compute, task, params = compute_of(job), Images(**job.params.points), job.params
    seed, shard = int(job.wildcards.seed), int(job.wildcards.shard)
    base = load_network(job.input.base)
    correctors = {
        (path, steps): load_network(Path(folder) / f"base{steps}")
        for path, folder in zip(params.paths, job.input.correctors, strict=True)
        for steps in params.step_counts
    }
    flops = {network: count_flops(network) for network in (base, *correctors.values())}
    velocities = {network: velocity_of(network, compute) for network in flops}
    batches = shard_batches(params.samples, params.batch_size, shard, params.shards)
    # Every chain starts from the same noises, so that differences between chains are not differences of noises.
    noises = [chunked_normal(seed, Draw.NOISE, *batch, point_shape(base)) for batch in batches]
    # Both happen anew for each size of a batch.
    for noise in {len(noise): noise for noise in noises}.values():
        for velocity in velocities.values():
            sample(noise.to(compute.device), [flow_stage(velocity, WARM_UP)])

    tensors, timing, costs = {}, {}, {}
    for chain in chains(params.step_counts, params.paths, params.corrector_steps):
        networks = [(base, chain.base_steps)]
        if chain.path:
            networks.insert(0, (correctors[chain.path, chain.base_steps], chain.corrector_steps))
        stages = [flow_stage(velocities[network], steps) for network, steps in networks]
        tensors[chain.name], timing[chain.name] = draw(noises, stages, task, compute, chain.name)
        costs[chain.name] = {
            "flops_per_image": sum(steps * flops[network] for network, steps in networks),
            "parameters": sum(network.num_parameters() for network, _ in networks),
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

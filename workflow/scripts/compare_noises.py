"""Tell inverted noises from those that samplers start from, and data from samples, before and after correction."""

from pathlib import Path

import numpy as np
import torch

from graft.jobs import compute_of, run
from graft.metrics.two_sample import Pairs, removed_share, tell_apart
from graft.networks.flows import load_network, velocity_of
from graft.noise_correction import DATA, Chain
from graft.progress import progress
from graft.sampling import flow_stage, sample
from graft.seeding import Draw, chunked_normal, generator, random_rows
from graft.shards import ShardedTensor, shard_batches
from graft.tables import write_csv

COORDINATES = 256
"""Pixels that are compared, the same ones in both spaces; those of larger images are chosen at random."""


def main(job):
    compute, seed, rows = compute_of(job), int(job.wildcards.seed), []

    def draw(folder, steps, noise):
        """In float32, as the inversion is, so that a noise and its image stay one pair."""
        stage = flow_stage(velocity_of(load_network(folder).to(compute.device)), steps)
        batches = shard_batches(len(noise), job.params.batch_size, shard=0, shards=1)
        return torch.cat([sample(noise[start:stop].to(compute.device), [stage]).cpu() for start, stop in batches])

    for steps in job.params.step_counts:
        real, others = compared_sets(job, steps, seed, draw)
        named = progress(others.items(), f"telling apart {steps} steps")
        found = {chain: tell_apart(real, other, seed) for chain, other in named}
        before, floor = (found[chain]["noise_frechet"] for chain in (Chain(steps), DATA))
        rows += [
            {
                "method": chain.method,
                "base_steps": steps,
                "corrector_steps": chain.corrector_steps,
                "samples": len(real.noise),
                **tests,
                "removed_share": removed_share(before, tests["noise_frechet"], floor),
            }
            for chain, tests in found.items()
        ]
    write_csv(job.output[0], rows)


def compared_sets(job, steps, seed, draw):
    """Inverted noises and, by chain, what they are told apart from: fresh and corrected ones, and other images' (DATA).

    The correctors have learnt from these very noises.
    """
    inverted, images = (ShardedTensor(job.input.noise, f"{name}_{steps}") for name in ("noise", "rows"))
    shuffled = torch.randperm(len(inverted), generator=generator(seed, Draw.SUBSET, steps))
    # One noise of each image, as those of one image lie together.
    first = np.sort(np.unique(images[shuffled].numpy(), return_index=True)[1])
    count = min(job.params.samples, len(first) // 2)
    real, again = shuffled[torch.from_numpy(first[: 2 * count])].split(count)
    fresh = chunked_normal(seed, Draw.NOISE, 0, count, inverted.shape)
    seen = random_rows(fresh[0].numel(), COORDINATES, seed, Draw.SUBSET)

    def pairs(noise):
        return Pairs(*(values.flatten(1)[:, seen] for values in (noise, draw(job.input.base, steps, noise))))

    others = {DATA: pairs(inverted[again]), Chain(steps): pairs(fresh)}
    corrector_steps = job.params.corrector_steps
    for path, folder in zip(job.params.paths, job.input.correctors, strict=True):
        corrected = draw(Path(folder) / f"base{steps}", corrector_steps, fresh)
        others[Chain(steps, path, corrector_steps)] = pairs(corrected)
    return pairs(inverted[real]), others


run(main, snakemake)

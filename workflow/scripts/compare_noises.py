"""Tell inverted noises from those that samplers start from, and data from samples, before and after correction."""

from pathlib import Path

import numpy as np
import torch

from graft.jobs import compute_of, run
from graft.metrics.images import frechet_distance
from graft.metrics.two_sample import Pairs, matched_normal, removed_share, tell_apart
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
        inverted, images = (ShardedTensor(job.input.noise, f"{name}_{steps}") for name in ("noise", "rows"))
        shuffled = torch.randperm(len(inverted), generator=generator(seed, Draw.SUBSET, steps))
        target = inverted[shuffled[: job.params.samples]]
        drawn = drawn_noises(job, steps, chunked_normal(seed, Draw.NOISE, 0, len(target), inverted.shape), draw)
        seen = random_rows(target[0].numel(), COORDINATES, seed, Draw.SUBSET)

        def pairs(noise, steps=steps, seen=seen):
            return Pairs(*(values.flatten(1)[:, seen] for values in (noise, draw(job.input.base, steps, noise))))

        some, again = of_different_images(inverted, images, shuffled, job.params.samples)
        others, real = {DATA: again, **{chain: noise[: len(some)] for chain, noise in drawn.items()}}, pairs(some)
        named = progress(others.items(), f"telling apart {steps} steps")
        tests = {chain: tell_apart(real, pairs(other), seed) for chain, other in named}
        distances = deviations(target.flatten(1)[:, seen], drawn, seen, seed)
        rows += [
            {
                "method": chain.method,
                "base_steps": steps,
                "corrector_steps": chain.corrector_steps,
                "samples": len(some),
                **tests[chain],
                "noise_frechet": distance,
                "removed_share": removed_share(distances[Chain(steps)], distance, distances[DATA]),
            }
            for chain, distance in distances.items()
        ]
    write_csv(job.output[0], rows)


def drawn_noises(job, steps, fresh, draw):
    """What the base starts from alone, fresh noises, and what each path's corrector makes of them, by chain."""
    corrector_steps, drawn = job.params.corrector_steps, {Chain(steps): fresh}
    for path, folder in zip(job.params.paths, job.input.correctors, strict=True):
        drawn[Chain(steps, path, corrector_steps)] = draw(Path(folder) / f"base{steps}", corrector_steps, fresh)
    return drawn


def of_different_images(inverted, images, shuffled, samples):
    """Two sets of inverted noises, at most so many, each noise of another image: those of one image lie together."""
    first = np.sort(np.unique(images[shuffled].numpy(), return_index=True)[1])
    count = min(samples, len(first) // 2)
    return (inverted[rows] for rows in shuffled[torch.from_numpy(first[: 2 * count])].split(count))


def deviations(target, drawn, seen, seed):
    """Frechet distances of drawn noises from inverted ones, target (n, d), by chain; of DATA what chance alone gives.

    That is the distance of as many draws of the Gaussian with the target's own mean and covariance. Correctors have
    learnt from these very noises, so that this is about what they have learnt, not about other images.
    """
    chance = matched_normal(target, len(target), generator(seed, Draw.REFERENCE))
    sets = {DATA: chance, **{chain: noise.flatten(1)[:, seen] for chain, noise in drawn.items()}}
    return {chain: frechet_distance(noise, target) for chain, noise in sets.items()}


run(main, snakemake)

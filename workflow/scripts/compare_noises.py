"""Tell inverted noises from those that samplers start from, and data from samples, before and after correction."""

import numpy as np
import torch

from graft.chain_links import Flow, load_correctors
from graft.jobs import compute_of, run
from graft.metrics.frechet import frechet_distance
from graft.metrics.two_sample import Pairs, matched_normal, removed_share, tell_apart
from graft.noise_correction import DATA, Chain, chains
from graft.progress import progress
from graft.sampling import sample
from graft.seeding import Draw, chunked_normal, generator, random_rows
from graft.shards import ShardedTensor, shard_batches
from graft.tables import write_csv

COORDINATES = 256
"""Pixels that are compared, the same ones in both spaces; those of larger images are chosen at random."""


def main(job):
    compute, rows = compute_of(job), []
    # In float32, as the inversion is, so that a noise and its image stay one pair: the rule asks for nothing else.
    base = Flow.load(job.input.base, compute)
    folders = dict(zip(job.params.paths, job.input.correctors, strict=True))
    correctors = load_correctors(folders, job.input.shift_and_scale, job.params.step_counts, compute)

    def draw(link, steps, noise):
        batches = shard_batches(len(noise), job.params.batch_size, shard=0, shards=1)
        stages = [link.stage(steps)]
        return torch.cat([sample(noise[start:stop].to(compute.device), stages).cpu() for start, stop in batches])

    for steps in job.params.step_counts:
        rows += compared(job, steps, draw, base, correctors)
    write_csv(job.output[0], rows)


def compared(job, steps, draw, base, correctors):
    """A row for each chain of so many base steps; draw(link, steps, noise) is what a link makes of noises."""
    params, seed = job.params, int(job.wildcards.seed)
    inverted, images = (ShardedTensor(job.input.noise, f"{name}_{steps}") for name in ("noise", "rows"))
    shuffled = torch.randperm(len(inverted), generator=generator(seed, Draw.SUBSET, steps))
    target = inverted[shuffled[: params.samples]]
    fresh = chunked_normal(seed, Draw.NOISE, 0, len(target), inverted.shape)
    drawn = {Chain(steps): fresh}  # the base alone starts from fresh noises
    for chain in chains([steps], params.paths, [params.corrector_steps]):
        if chain.corrector:
            drawn[chain] = draw(correctors[chain.corrector, steps], chain.corrector_steps, fresh)
    seen = random_rows(target[0].numel(), COORDINATES, seed, Draw.SUBSET)

    def pairs(noise):
        return Pairs(*(values.flatten(1)[:, seen] for values in (noise, draw(base, steps, noise))))

    some, again = of_different_images(inverted, images, shuffled, params.samples)
    others, real = {DATA: again, **{chain: noise[: len(some)] for chain, noise in drawn.items()}}, pairs(some)
    named = progress(others.items(), f"telling apart {steps} steps")
    tests = {chain: tell_apart(real, pairs(other), seed) for chain, other in named}
    distances = deviations(target.flatten(1)[:, seen], drawn, seen, seed)
    return [
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

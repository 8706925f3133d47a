"""Invert a shard of the data through the base's exact sampler, for every base step count."""

import logging

import torch

from graft.errors import UserError
from graft.files import write_json
from graft.inversion import invert, largest_error
from graft.jobs import compute_of, run
from graft.networks.flows import load_network, velocity_of
from graft.progress import progress
from graft.sampling import flow_stage, sample
from graft.seeding import Draw, chunked_normal, random_rows
from graft.shards import shard_batches, write_tensors
from graft.tasks.images import Images, load_images, repeated

CHECKED = 256
"""At most so many known noises are sampled and inverted, and data sampled again, to check the round trips."""


def main(job):
    compute, task, params = compute_of(job), Images(**job.params.points), job.params
    seed, shard = params.seed, int(job.wildcards.shard)
    images = load_images(job.input.data)
    velocity = velocity_of(load_network(job.input.base).to(compute.device))
    # At random, as a folder of images may be sorted by class.
    rows = random_rows(len(images), params.images or len(images), seed, Draw.SUBSET)
    batches = shard_batches(len(rows) * params.repeats, params.batch_size, shard, params.shards)
    if not batches:
        raise UserError(
            f"inversion.shards: none of the batches of {len(rows)} images is left for shard {shard} of "
            f"{params.shards}; lower it, or inversion.batch_size"
        )

    def inverse(x, steps):
        return invert(x.to(compute.device), velocity, steps, params.tolerance, params.max_iterations)

    def forward(noise, steps):
        return sample(noise.to(compute.device), [flow_stage(velocity, steps)])

    tensors, summary = {}, {}
    for steps in params.step_counts:
        points = [task.points(images, rows, seed, Draw.DEQUANTISATION, *batch) for batch in batches]

        def in_batches_of(size, points=points, steps=steps):
            parts = [part for x in points for part in x.split(size)]
            return [inverse(part, steps) for part in progress(parts, f"inverting {steps} steps")]

        found = compute.fitting(in_batches_of, params.batch_size)
        check_convergence(torch.cat([inversion.error for inversion in found]), steps, params)
        solved = torch.cat([inversion.converged(params.tolerance) for inversion in found]).cpu()
        noise = torch.cat([inversion.noise for inversion in found]).cpu()
        tensors[f"noise_{steps}"] = noise[solved]
        # The image that each noise is of: noises of one image are not independent.
        tensors[f"rows_{steps}"] = torch.cat([repeated(rows, *batch) for batch in batches])[solved]

        checked = min(CHECKED, params.batch_size, len(solved))
        few = solved.nonzero().squeeze(1)[:checked]
        known = chunked_normal(seed, Draw.KNOWN_NOISE, shard * CHECKED, shard * CHECKED + checked, images.shape)
        again = inverse(forward(known, steps), steps)
        recovered = again.converged(params.tolerance).cpu()
        summary[steps] = {
            "inverted": len(solved),
            "unconverged_share": (~solved).double().mean().item(),
            "evaluations_per_step": sum(inversion.evaluations for inversion in found) / (steps * len(solved)),
            "noise_standard_deviation": noise[solved].std().item(),
            "data_round_trip_error": largest_error(forward(noise[few], steps).cpu(), torch.cat(points)[few]),
            "known_noise_unconverged_share": (~recovered).double().mean().item(),
            "known_noise_error": largest_error(again.noise.cpu()[recovered], known[recovered]),
        }
        logging.info("%d steps: %s", steps, summary[steps])
    write_tensors(job.output.noise, tensors, {"shard": shard})
    write_json(job.output.summary, summary)


def check_convergence(error, steps, params):
    """End the job if too many samples of error (n, steps) missed the tolerance, with where they missed it worst."""
    missed = ~(error <= params.tolerance)
    share = missed.any(dim=1).double().mean().item()
    if share > params.max_unconverged or share == 1:
        step = int(missed.double().mean(dim=0).argmax())
        raise UserError(
            f"inversion: {share:.1%} of the samples did not converge at {steps} steps, more than the configured "
            f"{params.max_unconverged:.1%}; worst at step {step} of 0 to {steps - 1} (t = {1 - step / steps:.3g}), "
            f"where their median relative error is {error[missed[:, step], step].median().item():.1e} against a "
            f"tolerance of {params.tolerance:.1e}; raise points.dequantisation, inversion.max_iterations or step_counts"
        )


run(main, snakemake)

"""Train the autoencoder whose latents a text-to-image base models."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from graft.jobs import compute_of, fit, run
from graft.seeding import drawn_weights
from graft.tasks.text_to_image import TextToImage

KL_WEIGHT = 1e-6
"""Of the divergence of a picture's latents from N(0, I), against the mean squared error of a pixel: next to nothing, to
keep them bounded."""

RUN = 2
"""Number of its stream of random numbers."""

MEASURED = 2048
"""Pictures on which the latents' scale is measured."""


def main(job):
    task, compute = TextToImage(**job.params.points), compute_of(job)
    [[images, _]] = task.training_data(job.input.data)
    with drawn_weights(job.params.seed, RUN):
        network = AutoencoderKL(
            latent_channels=job.params.points["latent_channels"],
            sample_size=job.params.points["image_size"],
            **job.params.network,
        )
    where = {"checkpoint": job.params.checkpoint, "folder": Path(job.output[0])}
    fit(job, compute, network, [[images]], loss, job.params.training, run=RUN, **where)
    with torch.no_grad():
        latents = network.encode(compute.to_device(images[:MEASURED]) / 127.5 - 1).latent_dist.mean
    network.register_to_config(scaling_factor=1 / latents.std().item())
    network.save_pretrained(job.output[0])
    Path(job.params.checkpoint).unlink(missing_ok=True)


def loss(network, images, generator):
    """Mean squared error of what comes back of images (B, 3, S, S) uint8 in [-1, 1], and the latents' divergence."""
    x = images / 127.5 - 1
    # Not `sample(generator)`: what diffusers draws there is drawn on the CPU.
    posterior = network.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator, device=x.device)
    decoded = network.decode(posterior.mean + posterior.std * noise).sample
    return (decoded - x).square().mean() + KL_WEIGHT * posterior.kl().mean()


run(main, snakemake)

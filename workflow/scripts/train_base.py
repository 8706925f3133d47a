"""Train the base flow of an image setting, or take over one that diffusers saved."""

from pathlib import Path

import torch

from graft.errors import UserError
from graft.files import write_json
from graft.jobs import compute_of, identity_of, run
from graft.networks.flows import build_network, load_network, point_shape, velocity_of
from graft.objectives import flow_matching
from graft.paths import PATHS
from graft.tables import write_csv
from graft.tasks.images import Images, load_images
from graft.training import TrainingSettings, train


def main(job):
    images, folder = load_images(job.input.data), Path(job.output.model)
    if job.params.pretrained:
        network, seconds = load_network(job.params.pretrained), None
        if point_shape(network) != images.shape:
            raise UserError(f"{job.params.pretrained}: takes {point_shape(network)}, the data are {images.shape}")
    else:
        network, seconds = train_flow(job, images, folder)
    network.save_pretrained(folder)
    write_json(job.output.timing, {"images_per_second": seconds and job.params.training["batch_size"] / seconds})
    Path(job.params.checkpoint).unlink(missing_ok=True)


def train_flow(job, images, folder):
    task, compute = Images(job.params.dequantisation), compute_of(job)

    def loss(network, batch, generator):
        noise = torch.randn(batch.shape, generator=generator, device=batch.device)
        return flow_matching(velocity_of(network), PATHS["straight"], task.encode(batch, noise), generator)

    network = build_network(job.params.network, images.shape, seed=job.params.seed, run=0)
    log = train(
        network,
        [images],
        loss,
        TrainingSettings(**job.params.training),
        seed=job.params.seed,
        run=0,
        compute=compute,
        checkpoint=Path(job.params.checkpoint),
        identity=identity_of(job),
    )
    write_csv(folder / "training.csv", log.curve)
    return network, log.seconds_per_step


run(main, snakemake)

"""Train the classifier whose last hidden layer is the feature space of the Frechet distance."""

from pathlib import Path

import torch

from graft.errors import UserError
from graft.files import read_json, write_json
from graft.jobs import compute_of, fit, run
from graft.networks.classifier import ImageClassifier
from graft.seeding import drawn_weights
from graft.tasks.images import Images, load_images

RUN = 1
"""Number of its stream of random numbers."""

CALIBRATION = 4096
"""Images that set the scale of the features."""


def main(job):
    folder, compute, task = Path(job.output[0]), compute_of(job), Images(**job.params.points)
    if not read_json(Path(job.input.data) / "data.json")["classes"]:
        raise UserError(f"{job.input.data}: no labels to train a classifier on; set features.extractor to inception")
    images, labels = load_images(job.input.data), load_images(job.input.data, "labels")

    def loss(network, batch, targets, rng):
        noise = torch.randn(batch.shape, generator=rng, device=batch.device)
        return torch.nn.functional.cross_entropy(network(task.decode(task.encode(batch, noise))), targets)

    with drawn_weights(job.params.seed, RUN):
        classes = int(labels[:].max()) + 1
        network = ImageClassifier(in_channels=images.shape[0], classes=classes, **job.params.network)
    where = {"checkpoint": job.params.checkpoint, "folder": folder}
    fit(job, compute, network, [[images, labels]], loss, job.params.training, run=RUN, **where)
    network.calibrate(compute.to_device(images[:CALIBRATION]))
    network.save_pretrained(folder)
    batches = torch.arange(len(images)).split(CALIBRATION)
    with torch.no_grad():
        guesses = torch.cat([network(compute.to_device(images[rows])).argmax(dim=1).cpu() for rows in batches])
    accuracy = (guesses == labels[:]).double().mean().item()
    write_json(folder / "accuracy.json", {"accuracy_on_its_training_data": accuracy})
    Path(job.params.checkpoint).unlink(missing_ok=True)


run(main, snakemake)

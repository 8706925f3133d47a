"""Train the network whose features the Frechet distance of layouts is measured on, on the training pages."""

from pathlib import Path

from graft.files import write_json
from graft.jobs import compute_of, fit, run
from graft.layout_formats import CLASSES
from graft.networks.layout_features import LayoutFeatures, layout_features_loss, tells_disturbed
from graft.seeding import Draw, drawn_weights, generator
from graft.tasks.layouts import pages

RUN = 1
"""Number of its stream of random numbers."""


def main(job):
    compute, folder = compute_of(job), Path(job.output[0])
    with drawn_weights(job.params.seed, RUN):
        network = LayoutFeatures(classes=len(CLASSES), **job.params.network)
    data, where = (
        pages(job.input.data, held_out=False),
        {"checkpoint": job.params.checkpoint, "folder": folder / "features"},
    )
    fit(job, compute, network, [data], layout_features_loss, job.params.training, run=RUN, **where)
    network.save_pretrained(folder / "features")
    rng = generator(job.params.seed, Draw.REFERENCE, device=compute.device)
    held_out = (part.to(compute.device) for part in pages(job.input.data, held_out=True))
    write_json(folder / "accuracy.json", tells_disturbed(network, *held_out, rng))
    Path(job.params.checkpoint).unlink(missing_ok=True)


run(main, snakemake)

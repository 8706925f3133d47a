"""Train the base model of a setting, or take over one that diffusers saved."""

from functools import partial
from pathlib import Path

from graft.files import write_json
from graft.jobs import compute_of, fit, run, task_of
from graft.objectives import FocusedTimes


def main(job):
    task, folder = task_of(job), Path(job.output.model)
    if job.params.pretrained:
        network, seconds = task.load_network(job.params.pretrained), None
    else:
        network, seconds = train_network(job, task, folder)
    network.save_pretrained(folder)
    write_json(job.output.timing, {"samples_per_second": seconds and job.params.training["batch_size"] / seconds})
    Path(job.params.checkpoint).unlink(missing_ok=True)


def train_network(job, task, folder):
    parts = {"autoencoder": job.input.autoencoder[0]} if job.input.autoencoder else {}
    network = task.build_network(job.params.network, seed=job.params.seed, run=0, **parts)
    data, where = task.training_data(job.input.data), {"checkpoint": job.params.checkpoint, "folder": folder}
    # A flow has no such times.
    loss = partial(task.loss, times=FocusedTimes(**job.params.times)) if job.params.times else task.loss
    log = fit(job, compute_of(job), network, data, loss, job.params.training, run=0, **where)
    return network, log.seconds_per_step


run(main, snakemake)

"""Train the networks that measure a task's samples, and record how accurate they are on held-out data."""

from pathlib import Path

from graft.files import write_json
from graft.jobs import compute_of, fit, task_of
from graft.jobs import run as run_job


def main(job):
    compute, params, folder = compute_of(job), job.params, Path(job.output[0])

    def fit_judge(name, network, data, loss, training, run):
        where = {"checkpoint": Path(params.checkpoints) / f"{name}.safetensors", "folder": folder / name}
        fit(job, compute, network, [data], loss, training, run=run, **where)
        network.save_pretrained(folder / name)

    accuracy = task_of(job).train_judges(
        job.input.data, params.network, params.training, params.seed, compute, fit_judge
    )
    write_json(folder / "accuracy.json", accuracy)
    for checkpoint in Path(params.checkpoints).glob("*.safetensors"):
        checkpoint.unlink()


run_job(main, snakemake)

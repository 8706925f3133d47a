"""Measure the final samples of every model of a seed."""

from pathlib import Path

import numpy as np

from graft.files import write_json
from graft.jobs import compute_of, run, task_of
from graft.rewards import check_failures

PICTURES = 10
"""Samples drawn of each model, from the same noises."""


def main(job):
    task, compute = task_of(job), compute_of(job)
    reference = task.reference(job.input.data, job.params.judges, compute)
    pictures, measured = Path(job.output.pictures), {}
    pictures.mkdir(parents=True)

    def measure(name, samples):
        rewards = task.rewards(samples, job.params.reward, compute)
        check_failures(rewards, job.params.reward["max_failed"])
        metrics = {**task.metrics(samples, reference), "reward": float(np.nanmean(rewards))}
        task.picture(samples, PICTURES).save(pictures / f"{name}.png")
        return {"metrics": metrics, "samples": len(rewards)}

    for group, members in job.params.groups.items():
        paths = [path for path in job.input.samples if f"/final/{group}/" in path]
        for name in members:
            measured[name] = measure(name, task.load_samples(paths, name, job.input.data))
    others = task.real(job.input.data, measured["base"]["samples"], int(job.wildcards.seed))
    for name in job.params.comparisons:
        paths = [path for path in job.input.comparisons if f"/comparisons/{name}/" in path]
        others[name] = task.load_samples(paths, name, job.input.data)
    found = {
        "models": measured,
        "others": {name: measure(name, samples) for name, samples in others.items()},
        "lower_is_better": task.lower_is_better,
    }
    write_json(job.output.metrics, found)


run(main, snakemake)

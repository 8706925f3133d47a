"""Measure the final samples of every model of a seed, and what share of the reward each cut already fixes."""

from pathlib import Path

import numpy as np

from graft.files import write_json
from graft.jobs import compute_of, run, task_of
from graft.rewards import check_failures, fixed_share
from graft.rollouts import SamplerSettings, continue_from
from graft.seeding import ChunkedNormal, Draw
from graft.shards import ShardedTensor, TensorFile

PICTURES = 10
"""Samples drawn of each model, from the same noises."""


def main(job):
    task, function = task_of(job), job.params.reward["function"]
    known = task.known_keys(job.input.data)
    pictures, measured = Path(job.output.pictures), {}
    pictures.mkdir(parents=True)
    for group, members in job.params.groups.items():
        paths = [path for path in job.input.samples if f"/final/{group}/" in path]
        condition = {
            name: ShardedTensor(paths, f"condition.{name}")[:] for name in TensorFile(paths[0]).group("condition")
        }
        for name in members:
            samples = task.decode(ShardedTensor(paths, f"{name}.step0")[:], condition)
            rewards = task.rewards(samples, function)
            check_failures(rewards, job.params.reward["max_failed"])
            metrics = {**task.metrics(samples, known), "reward": float(np.nanmean(rewards))}
            task.picture(samples, PICTURES).save(pictures / f"{name}.png")
            measured[name] = {"metrics": metrics, "samples": len(rewards)}
    write_json(job.output.metrics, {"models": measured, "fixed_share": fixed_shares(job, task)})


def fixed_shares(job, task):
    """`graft.rewards.fixed_share` of each cut, from snapshots of the base that are continued several times each."""
    compute, params, seed = compute_of(job), job.params, int(job.wildcards.seed)
    settings = SamplerSettings(**params.sampler)
    base = compute.compile(task.load_network(job.input.base).to(compute.device))
    file, count, branches = TensorFile(job.input.rollouts), params.branched, params.branches
    condition = {
        name: compute.to_device(value[:count].repeat_interleave(branches, dim=0))
        for name, value in file.group("condition").items()
    }
    shares = {}
    for index in (settings.index(cut) for cut in params.cuts):
        snapshots = file.tensor(f"base.step{index}")[:count]
        x = compute.to_device(snapshots.repeat_interleave(branches, dim=0))
        normal = ChunkedNormal(seed, Draw.BRANCH, index, start=0, stop=len(x), shape=task.shape, device=compute.device)
        x_0 = continue_from(task, base, x, index, settings, condition, normal, compute).cpu()
        samples = task.decode(x_0, {name: value.cpu() for name, value in condition.items()})
        rewards = task.rewards(samples, params.reward["function"]).reshape(len(snapshots), branches)
        shares[f"{index / settings.steps:g}"] = fixed_share(rewards)
    return shares


run(main, snakemake)

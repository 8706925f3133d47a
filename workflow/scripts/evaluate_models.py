"""Measure the final samples of every model of a seed, and what share of the reward each cut already fixes."""

from pathlib import Path

import numpy as np
import torch

from graft.files import write_json
from graft.jobs import compute_of, run, task_of
from graft.rewards import check_failures, fixed_share
from graft.rollouts import SamplerSettings, continue_from
from graft.seeding import ChunkedNormal, Draw
from graft.shards import TensorFile, shard_batches

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
        "fixed_share": fixed_shares(job, task, compute),
    }
    write_json(job.output.metrics, found)


def fixed_shares(job, task, compute):
    """`graft.rewards.fixed_share` of each cut, from snapshots of the base that are continued several times each."""
    params, seed = job.params, int(job.wildcards.seed)
    settings = SamplerSettings(**params.sampler)
    base = task.load_network(job.input.base, job.input.data, compute.device)
    network = compute.compile(base)
    file, count, branches = TensorFile(job.input.rollouts), params.branched, params.branches
    snapshots_of = {name: value[:count] for name, value in file.group("condition").items()}
    condition = {name: value.repeat_interleave(branches, dim=0) for name, value in snapshots_of.items()}
    shares = {}
    for index in (settings.index(cut) for cut in params.cuts):
        snapshots = file.tensor(f"base.step{index}")[:count].float()
        x, ends = snapshots.repeat_interleave(branches, dim=0), []
        for start, stop in shard_batches(len(x), settings.batch_size, shard=0, shards=1):
            part = {name: compute.to_device(value[start:stop]) for name, value in condition.items()}
            normal = ChunkedNormal(
                seed, Draw.BRANCH, index, start=start, stop=stop, shape=task.shape, device=compute.device
            )
            states = compute.to_device(x[start:stop])
            ends.append(continue_from(task, network, states, index, settings, part, normal, compute).cpu())
        x_0 = torch.cat(ends)
        samples = task.decode(x_0, condition, job.input.data, base)
        rewards = task.rewards(samples, params.reward, compute).reshape(len(snapshots), branches)
        shares[f"{index / settings.steps:g}"] = fixed_share(rewards, task.group(snapshots_of).numpy())
    return shares


run(main, snakemake)

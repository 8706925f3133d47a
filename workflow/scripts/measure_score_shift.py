"""Measure how far each method's tuned model moves the noise prediction at snapshots of the base's chains.

In float32, as two predictions that differ little are compared.
"""

from pathlib import Path

import torch

from graft.branching import estimate
from graft.jobs import compute_of, run, task_of
from graft.rollouts import SamplerSettings, noise_at
from graft.shards import TensorFile, shard_batches
from graft.tables import write_csv


def main(job):
    task, compute, settings = task_of(job), compute_of(job), SamplerSettings(**job.params.sampler)
    base = task.load_network(job.input.base, job.input.data, compute.device)
    branches = TensorFile(job.input.branches)
    condition, groups = branches.group("condition"), branches.tensor("groups").numpy()
    snapshots = {int(name.removeprefix("step")): state for name, state in branches.group("base").items()}

    def noise(network, index):
        """The noise (n, ...) that a network sees in the snapshots at a grid index, on the CPU."""
        found = []
        for start, stop in shard_batches(len(groups), settings.batch_size, shard=0, shards=1):
            part = {name: compute.to_device(value[start:stop]) for name, value in condition.items()}
            x = compute.to_device(snapshots[index][start:stop].float())
            found.append(noise_at(task, network, x, settings.time(index), part, compute).cpu())
        return torch.cat(found)

    rows = []
    expected = {index: noise(base, index) for index in sorted(snapshots) if index > 0}
    for folder, members in zip(job.input.tuned, job.params.members, strict=True):
        for name, cut in members.items():
            above = task.load_tuned(base, Path(folder) / name)
            # At the cut and below, the base runs.
            for index in (index for index in expected if index > settings.index(cut)):
                shift = (noise(above, index) - expected[index]).flatten(1).double().square().sum(dim=1)
                mean, stderr = estimate(shift.numpy(), groups)
                rows.append({"method": name, "level": index / settings.steps, "mean": mean, "stderr": stderr})
    write_csv(job.output[0], rows)


run(main, snakemake)

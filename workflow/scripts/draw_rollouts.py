"""Draw a shard of samples from each model of a group, with the snapshots that P-GRAFT selects from."""

import time
from pathlib import Path

import torch

from graft.errors import UserError
from graft.files import write_json
from graft.jobs import compute_of, run, task_of
from graft.progress import progress
from graft.rollouts import SamplerSettings, roll_out
from graft.seeding import ChunkedNormal, Draw
from graft.shards import shard_batches, write_tensors


def main(job):
    compute, task, params = compute_of(job), task_of(job), job.params
    seed, shard, settings = int(job.wildcards.seed), int(job.wildcards.shard), SamplerSettings(**params.sampler)
    draw, number = Draw[params.draw[0]], params.draw[1]
    base = task.load_network(job.input.base, job.input.data, compute.device)
    below = compute.compile(base)
    batches = shard_batches(params.samples, settings.batch_size, shard, params.shards)
    # Every model of every group starts from the same noises under the same conditions.
    conditions = [
        task.conditions(job.input.data, seed, Draw.CONDITION, draw, number, start=start, stop=stop)
        for start, stop in batches
    ]
    tensors = {f"condition.{name}": torch.cat([c[name] for c in conditions]) for name in conditions[0]}
    seconds = {}
    for name, cut in params.members.items():
        above = below
        if name != "base":
            above = compute.compile(task.load_tuned(base, Path(job.input.tuned[0]) / name))
        started, states = time.monotonic(), []
        for (start, stop), condition in progress(list(zip(batches, conditions, strict=True)), name):
            condition = {key: compute.to_device(value) for key, value in condition.items()}
            normal = ChunkedNormal(seed, draw, number, start=start, stop=stop, shape=task.shape, device=compute.device)
            stops = [settings.index(stop) for stop in params.stops[name]]
            found = roll_out(task, above, below, settings.index(cut), settings, condition, normal, compute, stops)
            check_finite(found[0], name)
            states.append({index: state.cpu() for index, state in found.items()})
        seconds[name] = (time.monotonic() - started) / sum(stop - start for start, stop in batches)
        drawn = {index: torch.cat([state[index] for state in states]) for index in states[0]}
        tensors |= {f"{name}.step{index}": state.to(task.precision) for index, state in drawn.items()}
        samples = task.decode(drawn[0], condition_of(tensors), job.input.data, base)
        tensors |= {f"{name}.{key}": value for key, value in task.stored(samples).items()}
    write_tensors(job.output.samples, tensors, {"shard": shard})
    write_json(job.output.timing, {"seconds_per_sample": seconds})


def condition_of(tensors):
    """The conditions of all samples of the shard."""
    return {name.removeprefix("condition."): value for name, value in tensors.items() if name.startswith("condition.")}


def check_finite(samples, name):
    """End the job if a model has diverged."""
    broken = (~samples.flatten(1).isfinite().all(dim=1)).sum().item()
    if broken:
        raise UserError(
            f"rollouts: {broken} of {len(samples)} samples of {name} are not finite; lower its learning_rate, or set "
            "compute.precision to fp32"
        )


run(main, snakemake)

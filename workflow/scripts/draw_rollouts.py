"""Draw a shard of samples from each model of a group, with the snapshots that P-GRAFT selects from."""

import time
from pathlib import Path

from graft.errors import UserError
from graft.files import write_json
from graft.jobs import compute_of, run, task_of
from graft.rollouts import SamplerSettings, roll_out_batches
from graft.seeding import Draw
from graft.shards import shard_batches, write_tensors


def main(job):
    compute, task, params = compute_of(job), task_of(job), job.params
    seed, shard, settings = int(job.wildcards.seed), int(job.wildcards.shard), SamplerSettings(**params.sampler)
    draw, number = Draw[params.draw[0]], params.draw[1]
    base = task.load_network(job.input.base, job.input.data, compute.device)
    below = compute.compile(base)
    batches = shard_batches(params.samples, settings.batch_size, shard, params.shards)
    first, end = batches[0][0], batches[-1][1]
    # Every model of every group starts from the same noises under the same conditions.
    condition = task.conditions(job.input.data, seed, Draw.CONDITION, draw, number, start=first, stop=end)
    tensors = {f"condition.{name}": value for name, value in condition.items()}
    seconds = {}
    for name, cut in params.members.items():
        above = below
        if name != "base":
            above = compute.compile(task.load_tuned(base, Path(job.input.tuned[0]) / name))
        stops, started = [settings.index(stop) for stop in params.stops[name]], time.monotonic()
        drawn = roll_out_batches(
            task,
            above,
            below,
            settings.index(cut),
            settings,
            condition,
            compute,
            (seed, draw, number),
            first=first,
            stops=stops,
            title=name,
        )
        seconds[name] = (time.monotonic() - started) / (end - first)
        check_finite(drawn[0], name)
        tensors |= {f"{name}.step{index}": state.to(task.precision) for index, state in drawn.items()}
        samples = task.decode(drawn[0], condition, job.input.data, base)
        tensors |= {f"{name}.{key}": value for key, value in task.stored(samples).items()}
    write_tensors(job.output.samples, tensors, {"shard": shard})
    write_json(job.output.timing, {"seconds_per_sample": seconds})


def check_finite(samples, name):
    """End the job if a model has diverged."""
    broken = (~samples.flatten(1).isfinite().all(dim=1)).sum().item()
    if broken:
        raise UserError(
            f"rollouts: {broken} of {len(samples)} samples of {name} are not finite; lower its learning_rate, or set "
            "compute.precision to fp32"
        )


run(main, snakemake)

"""Continue snapshots of the base's first rollouts several times each: their rewards, and what a level fixes of them."""

import torch

from graft.branching import fixed_share
from graft.files import write_json
from graft.jobs import compute_of, run, task_of
from graft.paths import unit_information
from graft.rollouts import SamplerSettings, continue_from, in_batches, roll_out_batches
from graft.seeding import CHUNK, Draw
from graft.shards import write_tensors


def main(job):
    task, compute, params = task_of(job), compute_of(job), job.params
    settings = SamplerSettings(**params.sampler)
    indices = sorted({settings.index(level) for level in params.levels})
    base = task.load_network(job.input.base, job.input.data, compute.device)
    network = compute.compile(base)
    condition, chains = first_rollouts(job, task, network, settings, compute, indices)
    repeated = {name: value.repeat_interleave(params.branches, dim=0) for name, value in condition.items()}
    # In the precision in which rollouts are kept and tuned on.
    snapshots = {index: chains[index].to(task.precision) for index in indices}

    def rewards_of(x_0, condition):
        samples = task.decode(x_0, condition, job.input.data, base)
        return torch.from_numpy(task.rewards(samples, params.reward, compute))

    def branched(index):
        """Rewards (n, branches) of what the snapshots at a grid index lead to."""
        if index == 0:  # a sample is its own and only continuation
            return rewards_of(chains[0], condition)[:, None].expand(-1, params.branches)
        x, seed = snapshots[index].float().repeat_interleave(params.branches, dim=0), int(job.wildcards.seed)

        def continued(batch_size):
            batches = in_batches(task, repeated, batch_size, compute, seed, Draw.BRANCH, index)
            ends = (
                continue_from(task, network, compute.to_device(x[rows]), index, settings, part, normal, compute).cpu()
                for rows, part, normal in batches
            )
            return torch.cat(list(ends))

        x_0 = compute.fitting(continued, settings.batch_size, CHUNK)
        return rewards_of(x_0, repeated).reshape(-1, params.branches)

    rewards, groups = torch.stack([branched(index) for index in indices]), task.group(condition)
    levels = torch.tensor(indices, dtype=torch.double) / settings.steps
    times = torch.tensor([settings.time(index) for index in indices], dtype=torch.double)
    tensors = {
        "levels": levels,
        # The lowest noise that the sampler asks a network about is that at which its last step starts.
        "information": unit_information(task.path, times.clamp(min=settings.time(1))),
        "rewards": rewards,
        "groups": groups.clone(),  # of the condition, it may be the same memory
        **{f"condition.{name}": value for name, value in condition.items()},
        **{f"base.step{index}": snapshot for index, snapshot in snapshots.items()},
    }
    write_tensors(job.output.branches, tensors, {"steps": settings.steps})
    shares = [fixed_share(level, groups.numpy()) for level in rewards.numpy()]
    write_json(job.output.fixed_share, {f"{level:g}": share for level, share in zip(levels, shares, strict=True)})


def first_rollouts(job, task, network, settings, compute, indices):
    """Conditions of the first rollouts of round 1, and their states by grid index, on the CPU."""
    seed, count = int(job.wildcards.seed), job.params.branched
    # In the batches in which they were drawn, which on a CPU makes them the same to the last bit.
    drawn = min(-(-count // settings.batch_size) * settings.batch_size, job.params.rollouts)
    condition = task.conditions(job.input.data, seed, Draw.CONDITION, Draw.ROLLOUT, 1, start=0, stop=drawn)
    states = roll_out_batches(
        task, network, network, 0, settings, condition, compute, (seed, Draw.ROLLOUT, 1), stops=indices
    )
    first = {index: state[:count] for index, state in states.items()}
    return {name: value[:count] for name, value in condition.items()}, first


run(main, snakemake)

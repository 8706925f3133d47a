"""Continue snapshots of the base's first rollouts several times each: their rewards, and what a level fixes of them."""

import torch

from graft.branching import fixed_share
from graft.files import write_json
from graft.jobs import compute_of, run, task_of
from graft.paths import unit_information
from graft.rollouts import SamplerSettings, continue_from, in_batches, roll_out
from graft.seeding import Draw
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
        x, ends = snapshots[index].float().repeat_interleave(params.branches, dim=0), []
        seed = int(job.wildcards.seed)
        for rows, part, normal in in_batches(task, repeated, settings, compute, seed, Draw.BRANCH, index):
            at_level = compute.to_device(x[rows])
            ends.append(continue_from(task, network, at_level, index, settings, part, normal, compute).cpu())
        return rewards_of(torch.cat(ends), repeated).reshape(-1, params.branches)

    rewards, groups = torch.stack([branched(index) for index in indices]), task.group(condition)
    levels = torch.tensor(indices, dtype=torch.double) / settings.steps
    tensors = {
        "levels": levels,
        # The lowest noise that the sampler asks a network about is that at which its last step starts.
        "information": unit_information(task.path, levels.clamp(min=1 / settings.steps)),
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
    seed, count, states = int(job.wildcards.seed), job.params.branched, []
    # In the batches in which they were drawn, which makes them the same to the last bit.
    drawn = min(-(-count // settings.batch_size) * settings.batch_size, job.params.rollouts)
    condition = task.conditions(job.input.data, seed, Draw.CONDITION, Draw.ROLLOUT, 1, start=0, stop=drawn)
    for _, part, normal in in_batches(task, condition, settings, compute, seed, Draw.ROLLOUT, 1):
        found = roll_out(task, network, network, 0, settings, part, normal, compute, indices)
        states.append({index: state.cpu() for index, state in found.items()})
    first = {index: torch.cat([state[index] for state in states])[:count] for index in states[0]}
    return {name: value[:count] for name, value in condition.items()}, first


run(main, snakemake)

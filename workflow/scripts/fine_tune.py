"""Fine-tune each method of a group: on its accepted snapshots, or by policy gradient."""

import time
from pathlib import Path

import pandas as pd
import torch

from graft.files import write_json
from graft.fine_tuning import PolicyGradient, PolicySettings, tune_on_snapshots
from graft.jobs import compute_of, identity_of, run, task_of
from graft.objectives import Anchor, FocusedTimes
from graft.rewards import check_failures
from graft.rollouts import SamplerSettings
from graft.seeding import Draw
from graft.shards import ShardedTensor, TensorFile
from graft.tables import write_csv
from graft.training import TrainingSettings


def main(job):
    task, compute, folder = task_of(job), compute_of(job), Path(job.output.tuned)
    costs, turn = {}, int(job.wildcards.round)
    base = task.load_network(job.input.base, job.input.data, compute.device)
    for name, method in job.params.methods.items():
        started = time.monotonic()
        previous = Path(job.input.previous[0]) / name if job.input.previous else None
        network = task.tunable(base, previous, job.params.adapter, seed=int(job.wildcards.seed), run=turn)
        if "rule" in method:
            # What the rollouts came from.
            start = task.load_tuned(base, previous) if method.get("anchored") and previous else base
            costs[name] = by_rejection(job, task, compute, name, method, network, start)
            del start
        else:
            costs[name] = by_policy_gradient(job, task, compute, name, method, network)
        compute.synchronize()
        costs[name]["tuning_seconds"] = time.monotonic() - started
        network.save_pretrained(folder / name)
        del network  # before the next is made: two at once may not fit
    write_json(job.output.cost, costs)
    for checkpoint in Path(job.params.checkpoints).glob("*.safetensors"):
        checkpoint.unlink()


def by_rejection(job, task, compute, name, method, network, start):
    """GRAFT, P-GRAFT and the control: denoise towards the accepted snapshots at the method's cut.

    start: what anchored methods tell their relearning by.
    """
    sampler, source = SamplerSettings(**job.params.sampler), "base" if int(job.wildcards.round) == 1 else name
    cut, selected = sampler.index(method["cut"]), pd.read_csv(job.input.selected[0])
    rows = selected[selected["method"] == name]
    chosen, anchor = torch.tensor(rows["index"].to_numpy()), None
    names = TensorFile(job.input.samples[0]).group("condition")
    condition = {key: ShardedTensor(job.input.samples, f"condition.{key}") for key in names}
    accepted = {"accepted": len(rows), **task.describe({key: values[chosen] for key, values in condition.items()})}
    if method.get("anchored"):
        odds = torch.zeros(job.params.rollouts)
        odds[chosen] = len(odds) / len(chosen)
        chosen, anchor = torch.arange(len(odds)), Anchor(start, odds)
    log = tune_on_snapshots(
        task,
        network,
        ShardedTensor(job.input.samples, f"{source}.step{cut}")[chosen],
        sampler.time(cut),
        {key: values[chosen] for key, values in condition.items()},
        TrainingSettings(**job.params.training, learning_rate=method["learning_rate"]),
        times=FocusedTimes(**job.params.times) if job.params.times else None,
        anchor=anchor,
        seed=int(job.wildcards.seed),
        run=int(job.wildcards.round),
        compute=compute,
        checkpoint=Path(job.params.checkpoints) / f"{name}.safetensors",
        identity=identity_of(job),
    )
    write_csv(Path(job.output.tuned) / name / "training.csv", log.curve)
    return {"gradient_steps": job.params.training["steps"], "reward_calls": job.params.rollouts, **accepted}


def by_policy_gradient(job, task, compute, name, method, network):
    """DDPO, with as many reward calls as the others."""
    count = job.params.rollouts // method["iterations"]
    settings = PolicySettings(**method, rollouts=count, ema_decay=job.params.training["ema_decay"])
    seed, turn = int(job.wildcards.seed), int(job.wildcards.round)

    def draw_condition(iteration):
        return task.conditions(job.input.data, seed, Draw.CONDITION, Draw.POLICY, turn, iteration, start=0, stop=count)

    def reward(x_0, condition):
        condition = {key: value.cpu() for key, value in condition.items()}
        samples = task.decode(x_0.cpu(), condition, job.input.data, network)
        rewards = task.rewards(samples, job.params.reward, compute)
        check_failures(rewards, job.params.reward["max_failed"])
        return torch.from_numpy(rewards)

    policy = PolicyGradient(
        task, network, draw_condition, reward, settings, SamplerSettings(**job.params.sampler), seed, turn, compute
    )
    curve = policy.train(Path(job.params.checkpoints) / f"{name}.safetensors", identity_of(job))
    write_csv(Path(job.output.tuned) / name / "training.csv", curve)
    return {
        "gradient_steps": method["iterations"] * method["gradient_steps"],
        "reward_calls": count * method["iterations"],
    }


run(main, snakemake)

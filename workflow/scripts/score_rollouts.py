"""Score a shard of rollouts: reward and key of each sample of each model."""

import pandas as pd

from graft.jobs import compute_of, run, task_of
from graft.rewards import check_failures
from graft.shards import TensorFile
from graft.tables import write_csv


def main(job):
    task, compute = task_of(job), compute_of(job)
    condition, tables = TensorFile(job.input.samples).group("condition"), []
    for name in job.params.members:
        samples = task.load_samples([job.input.samples], name, job.input.data)
        rewards = task.rewards(samples, job.params.reward, compute)
        check_failures(rewards, job.params.reward["max_failed"])
        columns = {
            "model": name,
            "group": task.group(condition).numpy(),
            "reward": rewards,
            "key": task.sample_keys(samples),
        }
        tables.append(pd.DataFrame(columns))
    write_csv(job.output[0], pd.concat(tables))


run(main, snakemake)

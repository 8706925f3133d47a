"""Score a shard of rollouts: reward and key of each sample of each model."""

import pandas as pd

from graft.jobs import run, task_of
from graft.rewards import check_failures
from graft.shards import TensorFile
from graft.tables import write_csv


def main(job):
    task, file = task_of(job), TensorFile(job.input.samples)
    condition = file.group("condition")
    tables = []
    for name in job.params.members:
        samples = task.decode(file.tensor(f"{name}.step0"), condition)
        rewards = task.rewards(samples, job.params.reward["function"])
        check_failures(rewards, job.params.reward["max_failed"])
        columns = {"model": name, "group": task.group(condition).numpy(), "reward": rewards, "key": task.keys(samples)}
        tables.append(pd.DataFrame(columns))
    write_csv(job.output[0], pd.concat(tables))


run(main, snakemake)

"""Fit the control of the noise correctors: mean and standard deviation of every dimension of the inverted noises."""

from graft.chain_links import ShiftAndScale, write_fitted
from graft.jobs import compute_of, run
from graft.shards import ShardedTensor


def main(job):
    compute_of(job)  # for its threads
    noises = {steps: ShardedTensor(job.input.noise, f"noise_{steps}") for steps in job.params.step_counts}
    write_fitted(job.output[0], {steps: ShiftAndScale.fit(found) for steps, found in noises.items()})


run(main, snakemake)

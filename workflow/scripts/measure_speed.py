"""Measure, on freshly built networks of a setting, what the sampler adds to bare forward passes, and the training."""

import json
from statistics import median

import torch

from graft.files import write_json
from graft.jobs import compute_of, run
from graft.networks.flows import count_flops, velocity_of
from graft.sampling import flow_stage, sample
from graft.speed import PASSES_OF_A_STEP, matmul_flops_per_second, seconds_per_call, seconds_per_step
from graft.tasks.images import Images
from graft.training import TrainingSettings

STEPS = 20
TRAINING_STEPS = 200
"""So many that, as in a real training, not every step is a point of the loss curve, which waits for the device."""


def main(job):
    compute, task, training = compute_of(job), Images(**job.params.points), job.params.training
    network = task.build_network(job.params.network, seed=0, run=0)
    flops, peak = count_flops(network), matmul_flops_per_second(compute)
    seconds, overhead = time_sampling(network.eval().requires_grad_(False), task, job.params.batch_size, compute)
    evaluations = job.params.batch_size * STEPS / seconds
    images = training["batch_size"] / time_training(job, task, compute)
    result = {
        "setting": job.wildcards.setting,
        "sampling": {
            "batch_size": job.params.batch_size,
            "evaluations_per_second": evaluations,
            "overhead": overhead,
            "mfu": flops * evaluations / peak,
        },
        "training": {
            "batch_size": training["batch_size"],
            "images_per_second": images,
            "mfu": PASSES_OF_A_STEP * flops * images / peak,
        },
    }
    write_json(job.output[0], result)
    print(json.dumps(result, indent=2))


def time_sampling(network, task, batch_size, compute):
    """Seconds of sampling a batch in STEPS steps, and the share that it takes over as many bare forward passes."""
    velocity = velocity_of(network, compute)
    x = torch.randn(batch_size, *task.shape, generator=torch.Generator().manual_seed(0)).to(compute.device)
    t = torch.ones(batch_size, device=compute.device)

    def bare():
        for _ in range(STEPS):
            velocity(x, t)

    def sampled():
        sample(x, [flow_stage(velocity, STEPS)])

    # In turns, so that what else the machine does meets both alike.
    pairs = [[seconds_per_call(call, compute, repeats=1) for call in (bare, sampled)] for _ in range(15)]
    return median(seconds for _, seconds in pairs), median(ours / forward for forward, ours in pairs) - 1


def time_training(job, task, compute):
    """Seconds of a training step on random images, which are in memory: reading them from files is not in it."""
    rng, count = torch.Generator().manual_seed(0), job.params.training["batch_size"]
    images = torch.randint(256, (count, *task.shape), generator=rng, dtype=torch.uint8)
    network = task.build_network(job.params.network, seed=0, run=0)
    settings = TrainingSettings(**{**job.params.training, "steps": TRAINING_STEPS})
    return seconds_per_step(network, [images], task.loss, settings, compute)


run(main, snakemake)

"""Measure what the sampler adds to the network's bare forward passes, on freshly built networks of a setting."""

import json
from statistics import median

import torch

from graft.files import write_json
from graft.jobs import compute_of, run
from graft.networks.flows import build_network, count_flops, velocity_of
from graft.sampling import flow_stage, sample
from graft.speed import matmul_flops_per_second, seconds_per_call

STEPS = 20


def main(job):
    compute, batch_size = compute_of(job), job.params.batch_size
    shape = (job.params.channels, job.params.image_size, job.params.image_size)
    network = build_network(job.params.network, shape, seed=0, run=0).eval().requires_grad_(False)
    flops = count_flops(network)
    velocity = velocity_of(network, compute)
    x = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0)).to(compute.device)
    t = torch.ones(batch_size, device=compute.device)

    def bare():
        for _ in range(STEPS):
            velocity(x, t)

    def sampled():
        sample(x, [flow_stage(velocity, STEPS)])

    # In turns, so that what else the machine does meets both alike.
    pairs = [[seconds_per_call(call, compute, repeats=1) for call in (bare, sampled)] for _ in range(15)]
    sampling = median(seconds for _, seconds in pairs)
    result = {
        "setting": job.wildcards.setting,
        "batch_size": batch_size,
        "images_per_second_per_step": batch_size * STEPS / sampling,
        "sampler_overhead": median(ours / forward for forward, ours in pairs) - 1,
        "mfu": flops * batch_size * STEPS / sampling / matmul_flops_per_second(compute),
    }
    write_json(job.output[0], result)
    print(json.dumps(result, indent=2))


run(main, snakemake)

"""From which noise level on a base loses what it was trained for: real molecules noised to a level, and continued.

    PYTHONPATH=workflow/scripts python tests/benchmarks/restarts.py SCALE SETTING SAMPLES

of the base and the data in results/SCALE/molecules/SETTING, with the sampler of config/SCALE.yaml (demo's is in
config/config.yaml); on a GPU, with bf16 and compilation, where there is one. t = 1 is noise alone, so the base itself.
"""

import sys
from pathlib import Path

import torch
import yaml

from graft.compute import Compute
from graft.metrics.molecules import stability
from graft.rollouts import SamplerSettings, continue_from, in_batches
from graft.seeding import Draw, generator
from graft.tasks.molecules import Molecules, prepared

REPOSITORY = Path(__file__).parents[2]
LEVELS = (0.0, 0.25, 0.5, 0.5625, 0.625, 0.6875, 0.75, 0.875, 1.0)
"""Shares of the sampler's steps; 64 steps have all of them."""


def main(scale, name, samples):
    config = REPOSITORY / f"config/{'config' if scale == 'demo' else scale}.yaml"
    setting = yaml.safe_load(config.read_text())["molecules"]["settings"][name]
    gpus = int(torch.cuda.is_available())
    compute = Compute.of_job(2, gpus, "bf16" if gpus else "fp32", compiled=bool(gpus))
    task, sampler = Molecules(**setting["points"]), SamplerSettings(**setting["sampler"])
    folder, rng = REPOSITORY / f"results/{scale}/molecules/{name}", generator(0, Draw.SUBSET)
    network = compute.compile(task.load_network(folder / "base", device=compute.device))
    positions, numbers = prepared(folder / "data")
    rows = torch.randperm(len(positions), generator=rng)[: int(samples)]
    x_0, condition = task.encode(positions[rows], numbers[rows]), {"atoms": (numbers[rows] > 0).sum(dim=1)}
    x_0 = task.augment(x_0, rng)
    for index in sorted({sampler.index(level) for level in LEVELS}):
        ends = []
        for part, which, normal in in_batches(task, condition, sampler.batch_size, compute, 0, Draw.BRANCH, index):
            t = torch.tensor(sampler.time(index), device=compute.device)
            noise = task.project(normal(), which)
            x = task.path.alpha(t) * x_0[part].to(compute.device) + task.path.sigma(t) * noise
            if index > 0:
                x = continue_from(task, network, x, index, sampler, which, normal, compute)
            ends.append(x.cpu())
        stable = stability(*task.decode(torch.cat(ends), condition))[1].double()
        mean, error = 100 * stable.mean().item(), 100 * stable.std().item() / len(stable) ** 0.5
        print(f"t = {sampler.time(index):.3f}: {mean:.1f} ± {error:.1f} % stable", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How many molecules a second the sampler draws with QM9's network, and what it adds to bare forward passes.

    PYTHONPATH=workflow/scripts python tests/benchmarks/molecule_sampling.py

Random weights; network and batch size of config/gpu.yaml, with bf16 and compilation, on a GPU; of config/config.yaml,
with neither and on one thread, without one.
"""

from pathlib import Path
from statistics import median

import torch
import yaml

from graft.compute import Compute
from graft.rollouts import SamplerSettings, roll_out
from graft.seeding import ChunkedNormal, Draw
from graft.speed import seconds_per_call
from graft.tasks.molecules import Molecules

REPOSITORY = Path(__file__).parents[2]
ATOMS = 18
"""QM9's mean."""


def main():
    scale, name = ("gpu", "qm9") if torch.cuda.is_available() else ("config", "enumerated")
    setting = yaml.safe_load((REPOSITORY / f"config/{scale}.yaml").read_text())["molecules"]["settings"][name]
    gpus = int(scale == "gpu")
    compute = Compute.of_job(threads=1, gpus=gpus, precision="bf16" if gpus else "fp32", compiled=bool(gpus))
    task, batch, steps = Molecules(**setting["points"]), setting["sampler"]["batch_size"], 100 if gpus else 4
    network = task.build_network(setting["base"]["network"], seed=0, run=0).to(compute.device).requires_grad_(False)
    compiled = compute.compile(network.eval())
    atoms = torch.full((batch,), min(ATOMS, task.max_atoms), device=compute.device)
    x, t = torch.randn(batch, *task.shape, device=compute.device), torch.full((batch,), 0.5, device=compute.device)
    mask = task.mask({"atoms": atoms})

    @torch.no_grad()
    def bare():
        with compute.autocast():
            for _ in range(steps):
                compiled(x, t, mask)

    def sampled():
        normal = ChunkedNormal(0, Draw.NOISE, start=0, stop=batch, shape=task.shape, device=compute.device)
        settings = SamplerSettings(**{**setting["sampler"], "steps": steps, "batch_size": batch})
        roll_out(task, compiled, compiled, 0, settings, {"atoms": atoms}, normal, compute)

    # In turns, so that what else the machine does meets both alike.
    pairs = [[seconds_per_call(call, compute, repeats=1) for call in (bare, sampled)] for _ in range(7)]
    seconds = median(ours for _, ours in pairs)
    overhead = median(ours / forward for forward, ours in pairs) - 1
    print(f"{scale}, batch {batch}, {steps} steps, {compute.device}: {batch / seconds:.0f} molecules/s,")
    print(f"{100 * overhead:.1f} % over bare forward passes")


if __name__ == "__main__":
    main()

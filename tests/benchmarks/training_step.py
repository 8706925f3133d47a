"""What a step of training QM9's base costs: all of the loop, and the network's forward and backward passes alone.

    PYTHONPATH=workflow/scripts python tests/benchmarks/training_step.py

Random molecules; network and batch size of config/gpu.yaml, with bf16 and compilation, on a GPU; of config/config.yaml,
with neither and on one thread, without one.
"""

from pathlib import Path

import torch
import yaml

from graft.compute import Compute
from graft.speed import seconds_per_call, seconds_per_step
from graft.tasks.molecules import Molecules
from graft.training import TrainingSettings

REPOSITORY = Path(__file__).parents[2]
STEPS = 200


def main():
    scale, name = ("gpu", "qm9") if torch.cuda.is_available() else ("config", "enumerated")
    setting = yaml.safe_load((REPOSITORY / f"config/{scale}.yaml").read_text())["molecules"]["settings"][name]
    gpus = int(scale == "gpu")
    compute = Compute.of_job(threads=1, gpus=gpus, precision="bf16" if gpus else "fp32", compiled=bool(gpus))
    task, batch_size = Molecules(**setting["points"]), setting["base"]["training"]["batch_size"]
    rng = torch.Generator().manual_seed(0)
    numbers = torch.ones(8192, task.max_atoms, dtype=torch.uint8)  # all of them hydrogen
    data = [torch.randn(*numbers.shape, 3, generator=rng), numbers]

    def network():
        return task.build_network(setting["base"]["network"], seed=0, run=0)

    model = network().to(compute.device).train()
    compiled, batch = compute.compile(model), [array[:batch_size].to(compute.device) for array in data]
    draws = torch.Generator(compute.device).manual_seed(0)

    def passes():
        with compute.autocast():
            loss = task.loss(compiled, *batch, draws)
        loss.backward()
        model.zero_grad(set_to_none=False)

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    alone = seconds_per_call(passes, compute, repeats=30)
    settings = TrainingSettings(STEPS, batch_size, learning_rate=1e-4, ema_decay=0.999)
    loop = seconds_per_step(network(), data, task.loss, settings, compute)
    print(f"{scale}, batch {batch_size}, {compute.device}: {1e3 * loop:.1f} ms a step of the loop,")
    print(f"{1e3 * alone:.1f} ms for loss and gradients alone")


if __name__ == "__main__":
    main()

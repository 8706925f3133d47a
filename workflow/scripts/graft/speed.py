"""Measurements of speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from graft.compute import Compute
from graft.training import TrainingSettings, train

PASSES_OF_A_STEP = 3
"""What a training step costs, in forward passes: one forward, two for the gradients."""


def seconds_per_call(call: Callable[[], object], compute: Compute, repeats: int) -> float:
    """Median wall-clock seconds of `call`, each call waited for, after one to warm up."""
    call()
    compute.synchronize()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        compute.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def seconds_per_step(
    model: nn.Module,
    arrays: Sequence[Tensor],
    loss: Callable[..., Tensor],
    settings: TrainingSettings,
    compute: Compute,
) -> float | None:
    """Seconds of a step of training on the rows of `arrays`, once it is compiled and warm (`graft.training.train`)."""
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        log = train(model, [arrays], loss, settings, seed=0, run=0, compute=compute, checkpoint=checkpoint, identity="")
    return log.seconds_per_step


def matmul_flops_per_second(compute: Compute) -> float:
    """FLOP/s of a large square matrix product of random numbers in the job's precision: the peak that can be had."""
    size = 8192 if compute.device.type == "cuda" else 1024
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    rng = torch.Generator(compute.device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=rng, device=compute.device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_per_call(lambda: a @ b, compute, repeats=10)

"""Where and how a job computes: device, precision, compilation, threads."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from graft.errors import UserError

logger = logging.getLogger(__name__)
Module = TypeVar("Module", bound=Callable)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Compute:
    """Where and how a job computes.

    device: 'cpu' or one leased GPU. precision: 'fp32' or 'bf16' (autocast). compiled: whether to torch.compile.
    smaller_batches: whether a job whose GPU's memory is full goes on in smaller batches.
    """

    device: torch.device
    precision: str
    compiled: bool
    smaller_batches: bool = False

    @classmethod
    def of_job(
        cls, threads: int, gpus: int, precision: str = "fp32", compiled: bool = False, smaller_batches: bool = False
    ) -> Compute:
        """Set torch up for a job of `threads` CPU threads and `gpus` (0 or 1) GPUs.

        Raises UserError if a GPU is asked for and there is none.
        """
        torch.set_num_threads(threads)
        threadpool_limits(threads)
        torch.use_deterministic_algorithms(not gpus)
        # float32 stays float32: the inverse of a sampler needs all its digits.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        # Tuning every convolution to its shape pays only where shapes stay the same, as they must when compiled: in an
        # inversion the batch shrinks as samples converge, and each size would be tuned anew.
        torch.backends.cudnn.benchmark = bool(gpus) and compiled
        if compiled:
            limit_compile_workers(threads)
        return cls(lease_gpu() if gpus else torch.device("cpu"), precision, compiled, smaller_batches)

    def autocast(self) -> AbstractContextManager:
        """Mixed precision for network evaluations; a no-op at fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @contextmanager
    def tensor_cores(self) -> Iterator[None]:
        """Where bf16 is allowed but loses too much: float32, whose matrix products round to the ten bits of TF32."""
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, self.precision == "bf16"
        try:
            yield
        finally:
            matmul.allow_tf32 = before

    def compile(self, module: Module, dynamic: bool | None = None) -> Module:
        """The module compiled, or itself. dynamic: see `torch.compile`; by default a second shape makes it true.

        On a GPU its kernels are launched as one CUDA graph: for networks as small as ours the launches take longer than
        the kernels. What a call returns is overwritten by the next call, so use it up or copy it before.
        """
        if not self.compiled:
            return module
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        return torch.compile(module, mode=mode, dynamic=dynamic)

    def fitting(self, function: Callable[[int], Result], size: int, unit: int = 1) -> Result:
        """function(size), with a batch size; where memory is full and `smaller_batches` allows it, of half the size.

        And of half of that, in multiples of `unit`, down to one `unit`. The function starts anew each time.
        """
        while True:
            try:
                return function(size)
            except torch.OutOfMemoryError:
                if not self.smaller_batches or size <= unit:
                    raise
            size = max(unit, size // 2 // unit * unit)
            logger.warning("the GPU's memory is full; again in batches of %d", size)
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def to_device(self, tensor: Tensor) -> Tensor:
        """A CPU tensor on the device, copied without waiting for work that is under way."""
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def limit_compile_workers(workers: int) -> None:
    """Let torch's compiler start at most so many workers, as other jobs compile at the same time.

    By itself it starts one for each core, up to 32, or as many as TORCHINDUCTOR_COMPILE_THREADS says.
    """
    import torch._inductor.config as compiler  # takes seconds, which jobs that compile nothing need not spend

    compiler.compile_threads = min(workers, compiler.compile_threads)


_leases: list[IO] = []


def lease_gpu() -> torch.device:
    """Of the visible GPUs one that the fewest jobs of this user have leased; the lease ends with the process.

    Snakemake counts GPUs but does not say which one a job gets, and may be told to count more than there are, so that
    jobs share them.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "this job asks for a GPU and torch sees none; on a CPU, add a --configfile with compute: {gpu: 0}"
        )
    folder = Path(tempfile.gettempdir(), f"graft-gpus-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    names = [torch.cuda.get_device_properties(index).uuid for index in range(torch.cuda.device_count())]
    with (folder / "choosing").open("w") as choosing:
        fcntl.flock(choosing, fcntl.LOCK_EX)  # of jobs that start together, one after another counts and takes
        jobs = [sum(map(_is_locked, folder.glob(f"{name}-*"))) for name in names]
        index = jobs.index(min(jobs))
        places = (_lock(folder / f"{names[index]}-{place}") for place in count())
        _leases.append(next(place for place in places if place))
    return torch.device("cuda", index)


def _lock(path: Path) -> IO | None:
    """The file at `path`, locked until it is closed; None if a job has locked it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _is_locked(path: Path) -> bool:
    if (file := _lock(path)) is None:
        return True
    file.close()
    return False

from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config as compiler

import graft.compute
from graft.compute import Compute, lease_gpu, limit_compile_workers


@pytest.mark.parametrize(("gpus", "compiled", "tuned"), [(0, True, False), (1, False, False), (1, True, True)])
def test_convolutions_are_tuned_on_a_gpu_where_shapes_are_fixed(monkeypatch, gpus, compiled, tuned):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not tuned)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(graft.compute, "lease_gpu", lambda: torch.device("cpu"))
    with compiler.patch(compile_threads=2):
        Compute.of_job(threads=1, gpus=gpus, compiled=compiled)
    assert torch.backends.cudnn.benchmark is tuned


@pytest.mark.parametrize(("allowed", "workers"), [(32, 3), (2, 2)])
def test_the_compiler_starts_no_more_workers_than_a_job_has_threads(allowed, workers):
    with compiler.patch(compile_threads=allowed):
        limit_compile_workers(3)
        assert compiler.compile_threads == workers


def test_jobs_share_gpus_evenly_and_free_them(monkeypatch, tmp_path):
    monkeypatch.setattr(graft.compute.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(graft.compute, "_leases", leases := [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"gpu{index}"))
    assert [lease_gpu().index for _ in range(5)] == [0, 1, 0, 1, 0]
    leases[0].close()
    leases[3].close()
    assert [lease_gpu().index for _ in range(4)] == [1, 0, 1, 0]


def holding(rows):
    """A function of a batch size, for memory that holds so many rows, and the sizes that it was called with."""
    sizes = []

    def function(size):
        sizes.append(size)
        if size > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return f"in batches of {size}"

    return function, sizes


def of_cpu(smaller_batches):
    return Compute(torch.device("cpu"), "fp32", compiled=False, smaller_batches=smaller_batches)


@pytest.mark.parametrize(("rows", "unit", "sizes"), [(640, 64, [640]), (200, 64, [640, 320, 128]), (3, 1, [9, 4, 2])])
def test_what_does_not_fit_is_done_in_smaller_batches(rows, unit, sizes):
    function, called = holding(rows)
    assert of_cpu(True).fitting(function, sizes[0], unit) == f"in batches of {sizes[-1]}"
    assert called == sizes


@pytest.mark.parametrize(("allowed", "rows", "called"), [(False, 200, [512]), (True, 50, [512, 256, 128, 64])])
def test_a_full_memory_ends_the_job_if_nothing_smaller_is_allowed_or_fits(allowed, rows, called):
    function, sizes = holding(rows)
    with pytest.raises(torch.OutOfMemoryError):
        of_cpu(allowed).fitting(function, 512, 64)
    assert sizes == called


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("bf16", True)])
def test_tensor_cores_take_float32_only_where_bf16_is_allowed(precision, allowed):
    """And no longer than they are asked to, whatever happens meanwhile."""
    compute, seen = Compute(torch.device("cpu"), precision, compiled=False), []

    def fails():
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), compute.tensor_cores():
        fails()
    assert seen == [allowed]
    assert not torch.backends.cuda.matmul.allow_tf32

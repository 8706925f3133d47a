import pytest
import torch

import graft.compute
from graft.compute import Compute


@pytest.mark.parametrize(("gpus", "compiled", "tuned"), [(0, True, False), (1, False, False), (1, True, True)])
def test_convolutions_are_tuned_on_a_gpu_where_shapes_are_fixed(monkeypatch, gpus, compiled, tuned):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not tuned)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(graft.compute, "lease_gpu", lambda: torch.device("cpu"))
    Compute.of_job(threads=1, gpus=gpus, compiled=compiled)
    assert torch.backends.cudnn.benchmark is tuned

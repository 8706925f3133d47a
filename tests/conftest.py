"""What the tests share: one thread, the repository's folders, a CPU."""

from pathlib import Path

import pytest
import torch

from graft.compute import Compute

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Files that run whole workflows come first: last, the longest would keep one worker while the others are done."""
    items.sort(key=lambda item: "workflow" not in item.path.name and item.path.name != "test_scales.py")


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def cpu() -> Compute:
    return Compute(torch.device("cpu"), precision="fp32", compiled=False)

"""What the tests share: one thread, their order, the repository's folders, a CPU."""

from pathlib import Path

import pytest
import torch

from graft.compute import Compute

torch.set_num_threads(1)

WHOLE_RUNS = {
    "test_workflow.py",
    "test_scales.py",
    "test_reward_workflow.py",
    "test_text_to_image_workflow.py",
    "test_layout_workflow.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole workflows first: with several processes nothing should wait for the last of them."""
    items.sort(key=lambda item: item.path.name not in WHOLE_RUNS)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def cpu() -> Compute:
    return Compute(torch.device("cpu"), precision="fp32", compiled=False)

"""The optimizer Muon in batches."""

import pytest
import torch
from torch import nn

from graft.muon import BatchedMuon, orthogonalised

SHAPES = (6, 4), (4, 6), (6, 4), (5, 5), (4, 6), (6, 4)


def matrices():
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


def test_steps_are_those_of_torchs_muon():
    """Of tall, wide and square matrices, over several steps, so that momentum has its part."""
    ours, theirs = matrices(), matrices()
    optimizers = (
        BatchedMuon(ours, lr=0.03),
        torch.optim.Muon(theirs, lr=0.03, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    )
    rng = torch.Generator().manual_seed(1)
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=rng)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for start, mine, other in zip(matrices(), ours, theirs, strict=True):
        assert (mine - other).norm() < 0.01 * (other - start).norm()


def test_singular_values_are_brought_near_one():
    values = torch.linalg.svdvals(orthogonalised(torch.stack([matrix.detach() for matrix in matrices()[::5]])).float())
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_gradient_of_zero_moves_nothing():
    matrix = nn.Parameter(torch.eye(3))
    matrix.grad = torch.zeros(3, 3)
    BatchedMuon([matrix], lr=1.0).step()
    assert torch.equal(matrix, torch.eye(3))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_only_matrices(shape):
    with pytest.raises(ValueError, match="matrices"):
        BatchedMuon([nn.Parameter(torch.ones(shape))], lr=1.0)

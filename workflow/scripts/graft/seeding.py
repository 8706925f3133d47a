"""Every random draw of the workflow, as a function of (seed, draw, chunk) alone.

A chunk of 64 samples is the unit of randomness: the numbers that a sample receives depend neither on the
batch nor on the shard that it is computed in. Global random states are never used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

CHUNK = 64


class Draw(IntEnum):
    """What a stream of random numbers is for; the values are part of the results, so only append."""

    INITIALISATION = 0
    BATCH = 1
    TRAINING = 2
    DEQUANTISATION = 3
    REFERENCE = 4
    NOISE = 5
    KNOWN_NOISE = 6
    CONDITION = 7
    ROLLOUT = 8
    EVALUATION = 9
    BRANCH = 10
    SELECTION = 11
    POLICY = 12
    SUBSET = 13
    NEIGHBOURS = 14


def generator(seed: int, draw: Draw, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` for one stream; `index` is a chunk, or (run, step) in training."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(draw), *index))
    return torch.Generator(device).manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def chunked_normal(seed: int, draw: Draw, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers of the samples [start, stop), (stop - start, *shape), on the CPU.

    Raises ValueError unless `start` lies on a chunk's boundary.
    """
    if stop == start:
        return torch.empty(0, *shape)
    return ChunkedNormal(seed, draw, start=start, stop=stop, shape=shape)()


def numpy_generator(seed: int, draw: Draw, *index: int) -> np.random.Generator:
    """A NumPy generator for one stream."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(draw), *index)))


class ChunkedNormal:
    """An endless stream of standard normal numbers for the samples [start, stop), one generator a chunk.

    Each call returns the next (stop - start, *shape), on `device`; what a sample gets depends on (seed, draw, index)
    and its number alone. Raises ValueError unless `start` lies on a chunk's boundary.
    """

    def __init__(
        self,
        seed: int,
        draw: Draw,
        *index: int,
        start: int,
        stop: int,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        self.count, self.shape, self.device = stop - start, shape, device
        self.generators = [generator(seed, draw, *index, chunk, device=device) for chunk in _chunks(start, stop)]

    def __call__(self) -> Tensor:
        drawn = [torch.randn(CHUNK, *self.shape, generator=rng, device=self.device) for rng in self.generators]
        return torch.cat(drawn)[: self.count]


def chunked_rows(rows: int, seed: int, draw: Draw, *index: int, start: int, stop: int) -> Tensor:
    """For each of the samples [start, stop) a row number below `rows`, (stop - start,) int64, drawn uniformly.

    Raises ValueError unless `start` lies on a chunk's boundary.
    """
    chunks = [
        torch.randint(rows, (CHUNK,), generator=generator(seed, draw, *index, chunk)) for chunk in _chunks(start, stop)
    ]
    return torch.cat(chunks)[: stop - start]


def random_rows(total: int, count: int, seed: int, draw: Draw, *index: int) -> Tensor:
    """`count` different row numbers below `total`, ascending, (count,) int64; all of them if there are no more."""
    if count >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=generator(seed, draw, *index))[:count].sort().values


def _chunks(start: int, stop: int) -> range:
    if start % CHUNK:
        raise ValueError(f"samples start at {start}, which is no multiple of the chunk of {CHUNK}")
    return range(start // CHUNK, -(-stop // CHUNK))


@contextmanager
def drawn_weights(seed: int, run: int) -> Iterator[None]:
    """Networks built in this block draw their weights from (seed, run); the global state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(generator(seed, Draw.INITIALISATION, run).get_state())
        yield

"""How many times faster `stability` is than two Python loops over the atoms, on 200 molecules as large as QM9's.

    PYTHONPATH=workflow/scripts:tests python tests/benchmarks/stability.py

prints one line for the loops over NumPy arrays, as EDM has them, and one for the same loops over Python lists with
`math.dist`, the fastest that plain Python has. One thread, the best of several runs each.
"""

import math
import time

import numpy as np
import torch
from test_molecule_metrics import embed, pad, stability_by_loop

from graft.metrics.molecules import stability

MOLECULES = 200

SMILES = [
    "CC1CCC(O)C1=O",
    "CCOC(=O)CCC",
    "N#CC1CC2OC2C1",
    "CC(C)CCCCO",
    "OC1CC2CC1CO2",
    "CC1=CC(=O)NC1C",
    "C#CCC(O)C=CN",
]


def norm(a, b):
    return np.sqrt(np.sum((a - b) ** 2))


def seconds(function, repeats):
    """Wall time of the fastest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    shapes = [embed(smiles) for smiles in SMILES]
    drawn = [shapes[i % len(shapes)] for i in range(MOLECULES)]
    arrays = [(x + rng.normal(scale=0.02, size=x.shape), np.array(numbers)) for x, numbers in drawn]
    lists = [(x.tolist(), numbers.tolist()) for x, numbers in arrays]
    batch = pad(arrays)
    fast = seconds(lambda: stability(*batch), repeats=200)
    print(f"stability: {fast / MOLECULES * 1e6:.1f} us a molecule of {batch[2].sum() / MOLECULES:.1f} atoms on average")
    for name, molecules, distance in [("NumPy arrays", arrays, norm), ("Python lists", lists, math.dist)]:
        slow = seconds(lambda m=molecules, d=distance: stability_by_loop(m, d), repeats=5)
        print(f"loops over {name}: {slow / MOLECULES * 1e6:.0f} us a molecule, {slow / fast:.0f} times as long")


if __name__ == "__main__":
    main()

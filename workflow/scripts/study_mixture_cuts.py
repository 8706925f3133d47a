"""What branching says of each cut, beside the truth, on a Gaussian mixture whose tilted score is known."""

from itertools import pairwise

import numpy as np
import torch

from graft.branching import conditional_variances, elbow, estimate, is_non_decreasing, tilts
from graft.grids import Grid
from graft.jobs import run
from graft.paths import StraightPath, unit_information
from graft.rejection import TopK
from graft.rejection_law import ON_PLANE
from graft.seeding import Draw, generator
from graft.tables import write_csv
from graft.tilting import TiltedMixture

LEVELS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
FIRST = 0.05
"""The lowest noise at which learning is counted, as a sampler of 20 steps asks for no lower one."""

SNAPSHOTS, BRANCHES = 2048, 8
EXACT = TiltedMixture(
    reward=ON_PLANE,
    rule=TopK(1, 4),
    path=StraightPath(),
    grid=Grid(extent=5.0, cells=64, points=1),
)


def main(job):
    cuts = [EXACT.at(level) for level in LEVELS]
    rows = [*estimates(cuts, job.params.seed), *score_shifts(cuts)]
    write_csv(job.output[0], [{"method": str(EXACT.rule), **row} for row in rows])


def estimates(cuts, seed):
    """For each level the truth and what branching estimates of it, then the elbow and the cut that it suggests."""
    rewards = EXACT.branches(LEVELS, SNAPSHOTS, BRANCHES, generator(seed, Draw.BRANCH)).numpy()
    groups = np.zeros(SNAPSHOTS, dtype=np.int64)
    found = {"conditional_variance": conditional_variances(rewards), **tilts(rewards, groups, EXACT.rule)}
    exact = {
        "conditional_variance": [cut.conditional_variance for cut in cuts],
        "kl": [cut.divergence for cut in cuts],
        "kl_plug_in": [cut.divergence for cut in cuts],
        "pgraft_gain": [cut.gain for cut in cuts],
    }
    for quantity, contributions in found.items():
        for level, truth, values in zip(LEVELS, exact[quantity], contributions, strict=True):
            mean, stderr = estimate(values, groups)
            yield {"quantity": quantity, "level": level, "exact": truth, "mean": mean, "stderr": stderr}
    rises = {
        "exact": int(all(np.diff(exact["conditional_variance"]) >= 0)),
        "mean": int(is_non_decreasing(found["conditional_variance"], groups)),
    }
    yield {"quantity": "conditional_variance_non_decreasing", **rises}
    information = unit_information(EXACT.path, torch.tensor(LEVELS).clamp(min=FIRST)).numpy()
    truth, _ = elbow(np.array(exact["kl"])[:, None], information, np.zeros(1))
    elbows, errors = elbow(found["kl"], information, groups)
    for level, *values in zip(LEVELS, truth, elbows, errors, strict=True):
        yield {"quantity": "elbow", "level": level, **dict(zip(("exact", "mean", "stderr"), values, strict=True))}
    yield {"quantity": "suggested_cut", "exact": LEVELS[truth.argmax()], "mean": LEVELS[elbows.argmax()]}


def score_shifts(cuts):
    """How far the tilted score moves at each level, and what that adds up to between two, with the fall of KL there."""
    for level, cut in zip(LEVELS[1:], cuts[1:], strict=True):
        yield {"quantity": "score_shift", "level": level, "exact": cut.score_shift}
    for (level, cut), (end, further) in pairwise(zip(LEVELS, cuts, strict=True)):
        fall, moved = cut.divergence - further.divergence, EXACT.moved(level, end)
        yield {"quantity": "kl_fall", "level": level, "exact": fall}
        yield {"quantity": "kl_fall_by_score", "level": level, "exact": moved}


run(main, snakemake)

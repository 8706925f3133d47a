"""Compare what each acceptance rule accepts on a planar mixture with its law, and rewards with the frontier."""

import numpy as np

from graft.grids import Grid
from graft.jobs import run
from graft.mixture import PLANE
from graft.rejection import BestOf, Exponential, Threshold, TopK
from graft.rejection_law import ON_PLANE, check_deduplication, check_rule, frontier_rows
from graft.seeding import Draw, generator, numpy_generator
from graft.tables import write_csv

GRID = Grid(extent=5.0, cells=16, points=16)
RULES = [
    TopK(k=1, m=4),
    TopK(k=2, m=8),
    BestOf(n=2),
    BestOf(n=16),
    Exponential(alpha=1.0),
    Exponential(alpha=0.5),
    Threshold(c=0.5),
    Threshold(c=1.5),
]
DEDUPLICATED = Threshold(c=-0.5)
SWEEPS = [
    *(TopK(k=k, m=16) for k in range(1, 16)),
    *(BestOf(n=n) for n in (2, 3, 4, 6, 8, 12, 16, 24, 32)),
    *(Exponential(alpha=alpha) for alpha in np.geomspace(10, 0.25, 15)),
    *(Threshold(c=c) for c in np.linspace(-2.5, 2, 19)),
]
"""The parameters along the curves of reward against divergence, up to about 2.5 nats."""


def main(job):
    params, rows = job.params, []
    for seed in params.seeds:
        x = PLANE.sample(params.samples, generator(seed, Draw.REFERENCE))
        accepting = numpy_generator(seed, Draw.SELECTION)
        rows += [{"seed": seed, **check_rule(rule, ON_PLANE, GRID, x, accepting)} for rule in RULES]
        found = check_deduplication(DEDUPLICATED, ON_PLANE, GRID, x, params.repetition, accepting)
        rows.append({"seed": seed, **found})
    write_csv(job.output.laws, rows)
    write_csv(job.output.frontier, frontier_rows(ON_PLANE, SWEEPS))


run(main, snakemake)

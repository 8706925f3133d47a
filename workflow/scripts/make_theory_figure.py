"""Figure of what the methods rest on, a row of panels for each statement."""

import math

import numpy as np
import pandas as pd
from matplotlib import pyplot

from graft.figures import save
from graft.jobs import run
from graft.theory_figures import (
    draw_cuts,
    draw_divergences,
    draw_frontier,
    draw_key,
    draw_laws,
    draw_plane,
    draw_two_sample_tests,
)

COLUMNS = 3

BRANCHED = ("mixture", "plane, branched")


def main(job):
    table, frontier = pd.read_csv(job.input.table), pd.read_csv(job.input.frontier)
    part = dict(list(table.groupby("statement", sort=False)))
    cuts = list(pd.concat([part["cuts"], part["suggestions"]]).groupby(["task", "setting"], sort=False))
    cuts = [(names, rows) for names, rows in cuts if names != BRANCHED]  # beside the truth in the table
    plane = part["noise"]["task"] == "mixture"
    tests = list(part["noise"][~plane].groupby(["task", "setting"], sort=False))
    heights = [1, rows_of(len(cuts) + 1), rows_of(1 + len(tests))]
    figure, panels = pyplot.subplots(sum(heights), COLUMNS, figsize=(13, 3.7 * sum(heights)), layout="constrained")
    laws, middle, last = (rows.ravel() for rows in np.split(panels, np.cumsum(heights)[:-1]))
    draw_frontier(laws[0], frontier)
    draw_laws(laws[1], part["rejection"])
    draw_divergences(laws[2], part["rejection"])
    for axes, ((task, setting), rows) in zip(middle, cuts, strict=False):
        plain = job.params.plain.get(task, {}).get(setting)
        draw_cuts(axes, *curves_and_gains(rows, plain), title=f"{task}: {setting}")
    draw_key(middle[len(cuts)], middle[0])
    draw_plane(last[0], part["noise"][plane])
    for axes, ((task, setting), rows) in zip(last[1:], tests, strict=False):
        draw_two_sample_tests(axes, rows, f"{task}: {setting}")
    for axes in panels.ravel():
        axes.set_visible(axes.has_data() or axes.get_legend() is not None)
    save(figure, job.output.png, job.output.pdf)


def rows_of(panels):
    return math.ceil(panels / COLUMNS)


def curves_and_gains(rows, plain):
    """The lines of one setting that are drawn, and its gains; plain: its methods tuned on selected samples as they are.

    The score's movement is that of the first of them, beside the first control's, the KL that of the first rule. The
    mixture has no tuned models: its score is the exact one, its gains are those of P-GRAFT's exact law.
    """
    if plain is None:
        return rows, rows[rows["metric"] == "pgraft_gain"]
    drawn = rows[(rows["metric"] != "score_shift") | rows["method"].isin(plain[:1])]
    gains = rows[(rows["metric"] == "gain_over_base") & rows["method"].isin(plain)]
    return drawn.drop_duplicates(["metric", "level"]), gains


run(main, snakemake)

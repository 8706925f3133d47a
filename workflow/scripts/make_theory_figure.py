"""Figure of what the methods rest on: the panels of each statement, one after another."""

import math

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
    rows = math.ceil((3 + len(cuts) + 1 + 1 + len(tests)) / COLUMNS)
    figure, panels = pyplot.subplots(rows, COLUMNS, figsize=(13, 3.7 * rows), layout="constrained")
    panel = iter(panels.ravel())
    draw_frontier(next(panel), frontier)
    draw_laws(next(panel), part["rejection"])
    draw_divergences(next(panel), part["rejection"])
    of_cuts = [next(panel) for _ in cuts]
    for axes, ((task, setting), found) in zip(of_cuts, cuts, strict=True):
        plain = job.params.plain.get(task, {}).get(setting)
        draw_cuts(axes, *curves_and_gains(found, plain), title=f"{task}: {setting}")
    draw_key(next(panel), of_cuts[0])
    draw_plane(next(panel), part["noise"][plane])
    for (task, setting), found in tests:
        draw_two_sample_tests(next(panel), found, f"{task}: {setting}")
    for axes in panel:
        axes.set_visible(False)
    save(figure, job.output.png, job.output.pdf)


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

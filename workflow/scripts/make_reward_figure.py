"""Figure of a task with rewards: metrics by method, reward against reward calls, samples before and after."""

import pandas as pd
from matplotlib import pyplot

from graft.figures import draw_metrics, draw_pictures, draw_reward_calls, save
from graft.jobs import run


def main(job):
    table, curve = pd.read_csv(job.input.table), pd.read_csv(job.input.curve)
    settings = job.params.settings
    figure, panels = pyplot.subplots(
        2 * len(settings),
        2,
        figsize=(11, 7.5 * len(settings)),
        squeeze=False,
        layout="constrained",
        height_ratios=[1.2, 1] * len(settings),
    )
    for name, pictures, rows in zip(settings, job.input.pictures, panels.reshape(-1, 2, 2), strict=True):
        points = curve[curve["setting"] == name]
        # Real data are in the table, but no method.
        chosen = table[(table["setting"] == name) & table["method"].isin(["base", *points["method"]])]
        draw_metrics(rows[0, 0], chosen, job.params.metrics or others_than_reward(chosen), job.params.relative)
        draw_reward_calls(rows[0, 1], points, job.params.reward[name])
        grid = rows[1, 0].get_gridspec()
        start = rows[1, 0].get_subplotspec().rowspan.start
        for axes in rows[1]:
            axes.remove()
        draw_pictures(figure.add_subplot(grid[start, :]), chosen, pictures)
    save(figure, job.output.png, job.output.pdf)


def others_than_reward(rows):
    """All metrics of a setting but the reward, in the table's order."""
    return [metric for metric in dict.fromkeys(rows["metric"]) if metric != "reward"]


run(main, snakemake)

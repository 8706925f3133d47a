"""Panels of the figure that shows what the methods rest on; every panel reads lines of the table `theory`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

RULES = {
    "TopK": {"color": "#0072b2", "marker": "s", "label": "top k of 16"},
    "BestOf": {"color": "#d55e00", "marker": "^", "label": "best of n"},
    "Threshold": {"color": "#009e73", "marker": "v", "label": "threshold"},
    "Exponential": {"color": "#444444", "marker": "o", "label": "exponential"},
}
CHAINS = {
    "data": {"color": "#999999", "label": "data against data"},
    "base": {"color": "#444444", "label": "no corrector"},
    "shift_and_scale": {"color": "#009e73", "label": "shift and scale (control)"},
    "inc_straight": {"color": "#d55e00", "label": "straight corrector"},
    "inc_trigonometric": {"color": "#0072b2", "label": "trigonometric corrector"},
}
BIAS, VARIANCE, GAIN = "#d55e00", "#0072b2", "#009e73"


def draw_frontier(axes: Axes, frontier: pd.DataFrame) -> None:
    """Expected reward against KL as each rule's parameter moves, under the largest reward that any law has.

    frontier: the columns rule, kl, expected_reward and frontier_reward.
    """
    _title(axes, "reward that each rule buys")
    limit = frontier.sort_values("kl")
    axes.plot(limit["kl"], limit["frontier_reward"], color="#999999", linewidth=3, alpha=0.6, label="frontier")
    for rule, curve in frontier.sort_values("kl").groupby("rule"):
        axes.plot(curve["kl"], curve["expected_reward"], markersize=4, linewidth=1, **RULES[rule])
    axes.set(xlabel="KL(accepted || base), nats", ylabel="expected reward")
    axes.legend(fontsize=7)


def draw_laws(axes: Axes, rows: pd.DataFrame) -> None:
    """Total variation between accepted samples and their law, beside what chance gives; the p-value of each rule.

    rows: the statement `rejection`, with the metrics total_variation, total_variation_by_chance and chi_square_p.
    """
    _title(axes, "accepted samples against their law")
    wide = rows.pivot(index="method", columns="metric", values="mean").loc[rows["method"].unique()]
    errors = rows.pivot(index="method", columns="metric", values="stderr").loc[wide.index]
    places = np.arange(len(wide))
    for name, label, colour, shift in (
        ("total_variation", "measured", "#0072b2", -0.15),
        ("total_variation_by_chance", "by chance alone", "#999999", 0.15),
    ):
        axes.errorbar(
            wide[name], places + shift, xerr=errors[name], fmt="o", color=colour, markersize=4, capsize=2, label=label
        )
    texts = [f"{method.replace(' (', chr(10) + '(')}, p = {p:.2g}" for method, p in wide["chi_square_p"].items()]
    axes.set_yticks(places, texts, fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel="total variation")
    axes.legend(fontsize=7)


def draw_divergences(axes: Axes, rows: pd.DataFrame) -> None:
    """KL to the base estimated from accepted samples against its closed form, on the diagonal if both are right.

    rows: the statement `rejection`, with the metrics kl_closed and kl_samples; one without a closed form is left out.
    """
    _title(axes, "KL of accepted samples")
    wide = rows.pivot(index="method", columns="metric", values="mean").dropna(subset="kl_closed")
    most = wide["kl_closed"].max() * 1.08
    axes.plot([0, most], [0, most], color="#999999", linewidth=1)
    for rule, style in RULES.items():
        found = wide[wide.index.str.startswith(rule)]
        axes.plot(found["kl_closed"], found["kl_samples"], linestyle="none", markersize=5, **style)
    axes.set(xlabel="closed form, nats", ylabel="from the samples, nats")
    axes.legend(fontsize=7)


def draw_cuts(axes: Axes, rows: pd.DataFrame, gains: pd.DataFrame, title: str) -> None:
    """Bias and variance of cuts: what a snapshot leaves open of the reward, how far the score moves, what cuts gained.

    rows: the statements `cuts` and `suggestions` of one setting and of one method that is shown; `self_shift` is the
    score_shift of its control. gains: gain_over_base of the tuned models, or pgraft_gain of exact ones, in the reward's
    units, on an axis of its own. Curves are scaled to a largest value of 1, that of self_shift with score_shift.
    """
    _title(axes, title)
    curves = {
        "conditional_variance": ("E Var(r | x_c)", BIAS, "-"),
        "kl": ("KL at the cut", VARIANCE, "-"),
        "score_shift": ("movement of the score", VARIANCE, "--"),
        "self_shift": ("the same without a selection", "#999999", "--"),
    }
    largest = rows.groupby("metric")["mean"].max()
    for metric, (label, colour, line) in curves.items():
        curve = rows[rows["metric"] == metric].sort_values("level")
        scale = largest["score_shift" if metric == "self_shift" else metric]
        axes.errorbar(
            curve["level"],
            curve["mean"] / scale,
            curve["stderr"].astype(float) / scale,
            color=colour,
            linestyle=line,
            marker="o",
            markersize=3,
            linewidth=1,
            capsize=2,
            label=label,
        )
    marks = (
        rows[rows["metric"].isin(["suggested_cut", "best_cut"])].drop_duplicates("metric").set_index("metric")["mean"]
    )
    for metric, style in (("suggested_cut", ":"), ("best_cut", "-.")):
        if metric in marks:
            axes.axvline(marks[metric], color="#444444", linestyle=style, linewidth=1, label=metric.replace("_", " "))
    axes.set(xlabel="cut, share of the sampler's steps", ylabel="relative to the largest", ylim=(-0.08, 1.15))
    if len(gains):
        right = axes.twinx()
        right.errorbar(
            gains["level"], gains["mean"], gains["stderr"], fmt="D", color=GAIN, markersize=5, capsize=3, zorder=5
        )
        right.axhline(0, color=GAIN, linewidth=0.5)
        right.set_ylabel("gain over the base", color=GAIN)
        right.tick_params(axis="y", colors=GAIN)


def draw_key(axes: Axes, cuts: Axes) -> None:
    """The key of the panels that `draw_cuts` draws, in a panel of its own."""
    handles, labels = cuts.get_legend_handles_labels()
    gain = Line2D([], [], color=GAIN, marker="D", linestyle="none", markersize=5)
    best = Line2D([], [], color="#444444", linestyle="-.", linewidth=1)
    shown = {"best cut": best, **dict(zip(labels, handles, strict=True)), "gain of a cut, right axis": gain}
    axes.legend(shown.values(), shown.keys(), loc="center", fontsize=9, frameon=False)
    axes.set_axis_off()


def draw_plane(axes: Axes, rows: pd.DataFrame) -> None:
    """Total variation in the data's space against that in the noise's space: on the diagonal, as a bijection keeps it.

    rows: the statement `noise` on the plane.
    """
    _title(axes, "the plane: one distance in both spaces")
    keys = ["method", "corrector_steps"]
    wide = rows.pivot(index=keys, columns="metric", values="mean")
    most = wide[["noise_total_variation", "data_total_variation"]].to_numpy().max() * 1.15
    axes.plot([0, most], [0, most], color="#999999", linewidth=1)
    for method, found in wide.groupby(level=0):
        axes.plot(found["noise_total_variation"], found["data_total_variation"], "o", markersize=6, **CHAINS[method])
        for (_, steps), row in found.iterrows():
            note = f"{steps:g}" if steps else ""
            place = (row["noise_total_variation"], row["data_total_variation"])
            axes.annotate(note, place, xytext=(5, -9), textcoords="offset points", fontsize=7)
    axes.set(xlabel="total variation of the noise", ylabel="total variation of the samples")
    axes.legend(fontsize=7)


def draw_two_sample_tests(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    """Accuracy of a classifier that tells noises, and data, from the real ones; 1/2 is what equal laws give.

    rows: the statement `noise` of one image setting, of which the fewest base steps are shown. On each bar of
    corrected noises: the share of the deviation removed.
    """
    steps = rows["base_steps"].min()
    _title(axes, f"{title}, {steps:g} base steps")
    rows = rows[rows["base_steps"] == steps]
    wide, errors = (rows.pivot(index="method", columns="metric", values=name) for name in ("mean", "stderr"))
    methods = [method for method in CHAINS if method in wide.index]
    for place, (space, label) in enumerate((("noise", "noises"), ("data", "images"))):
        for number, method in enumerate(methods):
            found, error = wide.loc[method], errors.loc[method]
            x = place + 0.8 * ((number + 0.5) / len(methods) - 0.5)
            height = found[f"{space}_accuracy"]
            style = dict(CHAINS[method]) if place == 0 else {"color": CHAINS[method]["color"]}
            axes.bar(x, height - 0.5, bottom=0.5, width=0.75 / len(methods), **style)
            axes.errorbar(x, height, error[f"{space}_accuracy"], color="black", capsize=2, linewidth=1)
            if place == 0 and method not in ("data", "base") and np.isfinite(found.get("removed_share", np.nan)):
                axes.annotate(
                    f"{found['removed_share']:.0%}", (x, max(height, 0.5)), ha="center", va="bottom", fontsize=7
                )
        axes.annotate(label, (place, 0.44), ha="center", fontsize=9)
    # Room for the legend above bars that may reach 1.
    axes.set(ylabel="accuracy of a classifier", ylim=(0.42, 1.25), xticks=[], yticks=np.linspace(0.5, 1, 6))
    axes.legend(fontsize=7, loc="upper left", ncols=2)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9)
    axes.grid(alpha=0.25)

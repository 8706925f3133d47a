"""Figures, with matplotlib, in colours that survive colour blindness and grey printing."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from graft.files import atomic
from graft.noise_correction import Chain
from graft.shards import TensorFile
from graft.tables import ARROWS

matplotlib.use("Agg")

STYLES = {
    "base": {"color": "#444444", "marker": "o", "label": "base alone"},
    "shift_and_scale": {"color": "#009e73", "marker": "D", "label": "shift and scale of the noise (control)"},
    "inc_straight": {"color": "#d55e00", "marker": "s", "label": "corrector, straight path"},
    "inc_trigonometric": {"color": "#0072b2", "marker": "^", "label": "corrector, trigonometric path"},
}
PICTURES = 12
"""Samples drawn of each chain."""


def subplots_of_settings(count: int) -> tuple[Figure, np.ndarray]:
    """A figure of one row a setting: a panel for curves, a wider one for samples; axes are (count, 2)."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        count, 2, figsize=(11, 3.6 * count), squeeze=False, width_ratios=[1, 1.35], layout="constrained"
    )
    return figure, panels


def draw_quality(axes: Axes, rows: pd.DataFrame) -> None:
    """Mean Frechet distance with its standard error against GFLOPs an image, one curve a method.

    A method with corrector steps has one for each base step count. rows: the lines of one setting and one metric of the
    tidy table.
    """
    axes.set_title(rows["setting"].iloc[0], loc="left")
    for (method, base_steps), curve in _curves(rows):
        curve = curve.sort_values("gflops_per_image")
        style = dict(STYLES[method])
        if base_steps:
            style["label"] += f", {base_steps} base steps"
        axes.errorbar(
            curve["gflops_per_image"], curve["mean"], curve["stderr"], capsize=2, markersize=5, linewidth=1.2, **style
        )
        for row in curve.itertuples():
            steps = f"{row.base_steps}+{row.corrector_steps}" if row.corrector_steps else f"{row.base_steps}"
            axes.annotate(
                steps, (row.gflops_per_image, row.mean), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    axes.set(xscale="log", yscale="log", xlabel="GFLOPs an image", ylabel=f"{rows['metric'].iloc[0]}, lower is better")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.25, which="both")


def _curves(rows: pd.DataFrame):
    rows = rows[rows["method"].isin(STYLES)]
    corrected = rows["base_steps"].where(rows["corrector_steps"] > 0, 0)
    return rows.groupby(["method", corrected], sort=False)


def draw_samples(axes: Axes, rows: pd.DataFrame, samples: TensorFile) -> None:
    """Rows of samples that start from the same noises: the base at N and 2N steps, each corrector at its best.

    rows: the lines of one setting and of its Frechet distance.
    """
    chains = _compared(rows)
    grid = np.concatenate([_strip(samples, chain) for chain in chains])
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="equal")
    height = grid.shape[0] / len(chains)
    axes.set_yticks([height * (i + 0.5) for i in range(len(chains))], [_title(chain) for chain in chains], fontsize=7)
    axes.set_xticks([])
    axes.set_title("samples from the same noises", loc="left", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _compared(rows: pd.DataFrame) -> list[Chain]:
    if rows["metric"].nunique() != 1:
        raise ValueError(f"the best chain by which of {sorted(set(rows['metric']))}?")
    steps = int(rows.loc[rows["method"].str.startswith("inc"), "base_steps"].min())
    chosen = [Chain(steps), Chain(2 * steps)]
    for method in (name for name in STYLES if name != "base"):
        candidates = rows[(rows["method"] == method) & (rows["base_steps"] == steps)]
        if len(candidates):
            best = candidates.loc[candidates["mean"].idxmin()]
            chosen.append(Chain(steps, method.removeprefix("inc_"), int(best["corrector_steps"])))
    return chosen


def _strip(samples: TensorFile, chain: Chain) -> np.ndarray:
    """The first images side by side with a pixel of white between, (H + 1, PICTURES * (W + 1), C)."""
    images = np.pad(
        samples.tensor(chain.name)[:PICTURES].numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=255
    )
    return np.concatenate(list(images.transpose(0, 2, 3, 1)), axis=1)


def _title(chain: Chain) -> str:
    label = STYLES[chain.method]["label"]
    return f"{label}\n{chain.base_steps}" + (f"+{chain.corrector_steps}" if chain.corrector_steps else "") + " steps"


COLOURS = [
    "#444444",
    "#999999",
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#8fce9c",
    "#e69f00",
    "#d55e00",
    "#cc79a7",
    "#f0e442",
    "#882255",
    "#332288",
    "#000000",
]
MARKERS = "osDv^P*Xhd<>p8"
"""One more than colours, so that no pair comes twice among 182 methods."""


def method_style(methods: Sequence[str], method: str) -> dict[str, str]:
    """Colour and marker of a method among the methods of a table."""
    place = list(methods).index(method)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "label": method}


def draw_metrics(axes: Axes, rows: pd.DataFrame, metrics: Sequence[str], relative: bool) -> None:
    """Each metric's mean with its standard error, methods side by side. rows: one setting of the tidy table.

    relative: show instead the change over the base, in % of it, for metrics whose sizes differ much.
    """
    axes.set_title(f"{rows['setting'].iloc[0]}: metrics of samples", loc="left")
    mean, error = ("over_base_percent", "over_base_percent_stderr") if relative else ("mean", "stderr")
    methods = list(dict.fromkeys(rows["method"]))
    for number, method in enumerate(methods):
        found = rows[rows["method"] == method].set_index("metric").reindex(list(metrics))
        places = np.arange(len(metrics)) + 0.8 * ((number + 0.5) / len(methods) - 0.5)
        axes.errorbar(
            places,
            found[mean],
            found[error],
            linestyle="none",
            capsize=2,
            markersize=4,
            **method_style(methods, method),
        )
    better = rows.drop_duplicates("metric").set_index("metric")["better"]
    labels = [name.replace("_", "\n", 1).replace("_", " ") + ARROWS[better[name]] for name in metrics]
    axes.set_xticks(range(len(metrics)), labels, fontsize=8)
    axes.set(ylabel="change over the base, %" if relative else "share")
    if relative:  # so that one method which ruins a metric does not hide the others
        axes.set_yscale("symlog", linthresh=20)
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.grid(alpha=0.25, axis="y")


def draw_reward_calls(axes: Axes, curve: pd.DataFrame, reward: str) -> None:
    """Mean reward and standard error over seeds against reward calls, a curve a method; dashed, the base's."""
    axes.set_title("reward against reward calls", loc="left")
    methods = ["base", *dict.fromkeys(curve["method"])]
    base = curve.loc[curve["reward_calls"] == 0, "reward"].mean()
    axes.axhline(base, linestyle="--", linewidth=1, **{**method_style(methods, "base"), "marker": None})
    for method in methods[1:]:
        points = curve[curve["method"] == method].groupby("reward_calls")["reward"].agg(["mean", "sem"])
        axes.errorbar(
            points.index,
            points["mean"],
            points["sem"],
            capsize=2,
            markersize=4,
            linewidth=1,
            **method_style(methods, method),
        )
    axes.set(xlabel="reward calls", ylabel=f"mean reward ({reward})")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.25)


def draw_pictures(axes: Axes, rows: pd.DataFrame, folder: str | os.PathLike) -> None:
    """Samples from the same noises, of the methods that `pictured` names."""
    from matplotlib import pyplot

    shown = pictured(rows)
    strips = [pyplot.imread(os.path.join(folder, f"{method}.png")) for method in shown]
    axes.imshow(np.concatenate(strips), aspect="equal")
    height = strips[0].shape[0]
    # The layout leaves no more room than this for names.
    names = ["\n".join(textwrap.wrap(name.replace("_", " "), 12)).replace(" ", "_") for name in shown]
    axes.set_yticks([height * (i + 0.5) for i in range(len(shown))], names, fontsize=8)
    axes.set_xticks([])
    axes.set_title("samples from the same noises", loc="left", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def pictured(rows: pd.DataFrame) -> list[str]:
    """Whose samples a figure shows: the base's, the control's, the best rejection method's and the best of all.

    rows: of a setting in its table; best is what has the highest mean reward.
    """
    rewards = rows[rows["metric"] == "reward"].set_index("method")
    selected = rewards[rewards["cut"].notna() & (rewards["control"] != rewards.index)]
    best = [part["mean"].idxmax() for part in (selected, rewards) if len(part)]
    return list(dict.fromkeys(["base", *rewards.index.intersection(["self"]), *best]))


def save(figure: Figure, png: str | os.PathLike, pdf: str | os.PathLike) -> None:
    """Write a figure as PNG (200 dpi) and PDF, without dates, so that equal figures are equal files."""
    with atomic(png) as scratch:
        figure.savefig(scratch, format="png", dpi=200)
    with atomic(pdf) as scratch:
        figure.savefig(scratch, format="pdf", metadata={"CreationDate": None})

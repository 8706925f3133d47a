"""Tables: tidy CSV with mean and standard error over seeds, and the same as Markdown and LaTeX."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from graft.files import atomic

COLUMNS = ["task", "method", "metric", "better", "mean", "stderr", "seeds", "samples", "paper", "paper_source"]


def write_csv(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> None:
    """Write rows as CSV; numbers keep nine significant digits."""
    with atomic(path) as scratch:
        pd.DataFrame(rows).to_csv(scratch, index=False, float_format="%.9g", lineterminator="\n")


def summarise(values: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean and standard error (sd / sqrt(n), ddof 1; empty for one seed) of `value` over `seed`, for each of `keys`.

    values: one row a seed, with the columns `seed` and `value` besides `keys`; the order of first appearance stays.
    """
    groups = values.groupby(list(keys), sort=False, dropna=False)["value"]
    table = groups.agg(mean="mean", stderr=lambda v: v.std(ddof=1) / np.sqrt(len(v)), seeds="count")
    return table.reset_index()


def gains(values: pd.DataFrame, keys: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """Paired gains over controls, for each of `keys` (`method` among them): their mean over seeds.

    values: see `summarise`; for each of `names` the column `control_{name}` says which method a row is compared with.
    The columns are `over_{name}` and, in % of the control's magnitude, `over_{name}_percent`, each with its `_stderr`;
    pairing by seed takes out what method and control share (noises, rollouts). Empty where the control is not among the
    methods.
    """
    shared = [*(key for key in keys if key != "method"), "seed"]
    columns = {}
    for name in names:
        control = f"control_{name}"
        reference = values[[*shared, "method", "value"]].rename(columns={"method": control})
        paired = values.merge(reference, on=[*shared, control], how="left", suffixes=("", "_control"))
        difference = paired["value"] - paired["value_control"]
        size = paired["value_control"].abs()
        percent = 100 * difference / size.where(size != 0)
        for column, gain in ((f"over_{name}", difference), (f"over_{name}_percent", percent)):
            over = paired.assign(gain=gain).groupby(list(keys), sort=False, dropna=False)["gain"]
            columns |= {column: over.mean(), f"{column}_stderr": over.sem()}
    return pd.DataFrame(columns).reset_index()


def with_published(table: pd.DataFrame, published: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> pd.DataFrame:
    """`table` with the columns `paper` and `paper_source`, filled where a published figure has the row's keys."""
    known = pd.DataFrame(published, columns=[*keys, "value", "source"])
    known = known.rename(columns={"value": "paper", "source": "paper_source"})
    typed = known.astype({key: table[key].dtype for key in keys})
    return table.merge(typed, on=list(keys), how="left")


def layout(table: pd.DataFrame, index: Sequence[str], contest: Sequence[str], bold: str) -> pd.DataFrame:
    """The tidy table as people read it: one line for each `index`, one column a metric, `mean ± stderr` as text.

    The best mean of each metric within a `contest` (the columns that lines compete in) is put into the format string
    `bold`; lines whose `ranked` is False are never best.
    """
    best = table[table["ranked"]].groupby([*contest, "metric"], sort=False, dropna=False)["mean"]
    extremes = {"lower": best.min(), "higher": best.max()}

    def text(row: pd.Series) -> str:
        mean = 0 if abs(row["mean"]) < NOTHING else row["mean"]  # what float32 leaves of a zero
        shown = f"{mean:.3g}" if np.isnan(row["stderr"]) else f"{mean:.3g} ± {row['stderr']:.1g}"
        key = tuple(row[column] for column in [*contest, "metric"])
        is_best = row["ranked"] and row["better"] in extremes and row["mean"] == extremes[row["better"]][key]
        return bold.format(shown) if is_best else shown

    shown = table.assign(text=table.apply(text, axis=1), heading=table["metric"] + table["better"].map(ARROWS))
    wide = shown.pivot_table(index=list(index), columns="heading", values="text", aggfunc="first", sort=False)
    # A pivot orders lines by each column in turn.
    lines = shown[list(index)].drop_duplicates()
    return lines.merge(wide.fillna("").reset_index().rename_axis(columns=None), on=list(index))


NOTHING = 1e-6

ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}


def write_layouts(
    markdown: str | os.PathLike, latex: str | os.PathLike, tables: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write tables one below the other, as Markdown and as LaTeX (booktabs).

    tables: the arguments of `layout`, but for `bold`, by the title that stands above a table; none above that of "".
    """
    shown = [_titled(title, "## {}\n\n", _markdown(arguments)) for title, arguments in tables.items()]
    with atomic(markdown) as scratch:
        scratch.write_text("\n".join(shown))
    shown = [_titled(title, "% {}\n", _latex(arguments)) for title, arguments in tables.items()]
    with atomic(latex) as scratch:
        scratch.write_text("\n".join(shown))


def _titled(title: str, heading: str, text: str) -> str:
    return (heading.format(title) if title else "") + text


def _markdown(arguments: Mapping[str, Any]) -> str:
    return layout(**arguments, bold="**{}**").to_markdown(index=False, disable_numparse=True) + "\n"


def _latex(arguments: Mapping[str, Any]) -> str:
    symbols = {"±": "$\\pm$", "↓": "$\\downarrow$", "↑": "$\\uparrow$", "×": "$\\times$", "_": "\\_", "%": "\\%"}
    text = layout(**arguments, bold="\\textbf{{{}}}").style.hide(axis="index").to_latex(hrules=True)
    for symbol, command in symbols.items():
        text = text.replace(symbol, command)
    return text

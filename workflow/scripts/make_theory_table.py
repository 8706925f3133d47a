"""Table of what the methods rest on: laws of accepted samples, bias and variance of cuts, noises and data corrected."""

from pathlib import Path

import pandas as pd
from scipy.stats import combine_pvalues

from graft.jobs import run
from graft.tables import COLUMNS, summarise, write_csv, write_layouts

CHAIN = ["method", "base_steps", "corrector_steps"]
STATEMENTS = {
    "rejection": {
        "title": "1. Accepted samples follow the base, tilted by the reshaped reward",
        "index": ["method"],
        "metrics": [
            "total_variation",
            "total_variation_by_chance",
            "chi_square_p",
            "kl_closed",
            "kl_law",
            "kl_samples",
            "expected_reward",
            "reward_samples",
        ],
    },
    "cuts": {
        "title": "2. Bias and variance, level by level",
        "index": ["task", "setting", "level"],
        "metrics": [
            "conditional_variance",
            "kl",
            "pgraft_gain",
            "score_shift",
            "self_shift",
            "gain_over_base",
            "gain_over_control",
        ],
    },
    "suggestions": {
        "title": "2. The cut that is suggested before any fine-tuning, and the best one",
        "index": ["task", "setting"],
        "metrics": ["conditional_variance_non_decreasing", "suggested_cut", "best_cut"],
    },
    "noise": {
        "title": "3. Correcting the noise corrects the data",
        "index": ["task", "setting", *CHAIN],
        "metrics": [
            "noise_total_variation",
            "data_total_variation",
            "noise_accuracy",
            "data_accuracy",
            "noise_frechet",
            "removed_share",
        ],
    },
}
"""What people read of each part of the table, of which the CSV holds more: a line for each `index`, and its metrics."""

TUNED = ["score_shift", "gain_over_base", "gain_over_control"]
"""Metrics of fine-tuned models, of which people read those of selected samples, not de-duplicated."""

EXTRAS = ["statement", "setting", "level", "base_steps", "corrector_steps"]

ROUNDING = 1e-9
"""Standard errors relative to the mean below which there are none."""


def main(job):
    found = [accepted(job.input.rejection), known_cuts(job.input.mixture), *cuts_of(job), corrected(job.input.plane)]
    if job.input.noises:
        found.append(told_apart(job.input.noises))
    table = pd.concat(found).assign(better="", paper=None, paper_source=None).reset_index(drop=True)
    # Of what no seed enters, rounding is all that varies; a classifier's accuracies, though, may agree by chance.
    by_chance = table["metric"].str.endswith("_accuracy")
    table["stderr"] = table["stderr"].where(by_chance | (table["stderr"] > ROUNDING * table["mean"].abs()))
    write_csv(job.output.csv, table.reindex(columns=[*COLUMNS, *EXTRAS]))
    shown = {
        each["title"]: arguments(job, table[table["statement"] == name], each) for name, each in STATEMENTS.items()
    }
    write_layouts(job.output.markdown, job.output.latex, shown)


def arguments(job, rows, statement):
    """A statement's part of the table as `graft.tables.layout` takes it; where several methods meet, the first."""
    rows = rows[rows["metric"].isin(statement["metrics"]) & ~(rows["metric"].isin(TUNED) & ~chosen(job, rows))]
    index, places = statement["index"], {name: place for place, name in enumerate(statement["metrics"])}
    rows = rows.assign(place=rows["metric"].map(places), part=rows.groupby(index[:2], sort=False).ngroup())
    # Suggestions keep the order of their rules: their level is what they say.
    order = ["place", "part", "level"] if "level" in index else ["place", "part"]
    rows = rows.sort_values(order, kind="stable")
    shown = {name: rows[name].map(lambda value: value if isinstance(value, str) else f"{value:g}") for name in index}
    return {"table": rows.assign(ranked=False, **shown), "index": index, "contest": index}


def chosen(job, rows):
    """(n,) bool: whether a row is of a method that was tuned on selected samples as they are, or of the mixture."""
    plain = {(task, name, method) for task, of in job.params.plain.items() for name in of for method in of[name]}
    keys = zip(rows["task"], rows["setting"], rows["method"], strict=True)
    return pd.Series([key in plain or key[0] == "mixture" for key in keys], index=rows.index, dtype=bool)


def accepted(path):
    """What each acceptance rule accepts on the mixture; p-values of the seeds are combined by Fisher's method."""
    values = pd.read_csv(path)
    values = values.assign(method=values["rule"] + " (" + values["parameter"] + ")").drop(columns=["rule", "parameter"])
    of_method = values.groupby("method", sort=False)
    samples = of_method["samples"].mean().round().astype(int)
    combined = of_method["chi_square_p"].apply(lambda each: combine_pvalues(each).pvalue)
    measured = values.drop(columns=["samples", "chi_square_p", *(name for name in values if name.endswith("_stderr"))])
    table = summarise(measured.melt(["seed", "method"], var_name="metric"), ["method", "metric"])
    tests = pd.DataFrame({"metric": "chi_square_p", "mean": combined, "seeds": of_method.size()}).reset_index()
    table = pd.concat([table.dropna(subset="mean"), tests])  # not of every rule is a closed form known
    return table.assign(samples=table["method"].map(samples), statement="rejection", task="mixture", setting="plane")


def known_cuts(path):
    """Cuts on the mixture, where branching can be compared with the truth."""
    found = pd.read_csv(path).rename(columns={"quantity": "metric"})
    found = found.assign(statement=statement_of(found), task="mixture")
    exact = found.drop(columns=["mean", "stderr"]).rename(columns={"exact": "mean"}).assign(setting="plane, exact")
    branched = found.drop(columns="exact").assign(setting="plane, branched")
    return pd.concat([exact, branched]).dropna(subset="mean")


def cuts_of(job):
    """Cuts of each task's settings; a suggested or best cut is shown by its level, not by how good it is."""
    for path in job.input.cuts:
        table = pd.read_csv(path).rename(columns={"quantity": "metric"})
        cut = table["metric"].isin(["suggested_cut", "best_cut"])
        table = table.assign(statement=statement_of(table), mean=table["mean"].where(~cut, table["level"]))
        yield table.assign(stderr=table["stderr"].where(~cut))


def statement_of(table):
    of_setting = table["metric"].isin(STATEMENTS["suggestions"]["metrics"])
    return of_setting.map({True: "suggestions", False: "cuts"})


def corrected(path):
    """The planar sampler, whose laws are known in both spaces."""
    table = summarise(pd.read_csv(path).melt(["seed", *CHAIN], var_name="metric"), [*CHAIN, "metric"])
    return table.assign(statement="noise", task="mixture", setting="plane")


def told_apart(paths):
    """Two-sample tests of images and of their noises."""
    found = []
    for path in map(Path, paths):
        seed, setting, task = (folder.name for folder in path.parents[:3])
        found.append(pd.read_csv(path).assign(seed=seed, setting=setting, task=task))
    values = pd.concat(found)
    values = values.drop(columns=[name for name in values if name.endswith("_stderr")])
    keys = ["task", "setting", *CHAIN, "samples"]
    table = summarise(values.melt(["seed", *keys], var_name="metric"), [*keys, "metric"])
    return table.assign(statement="noise")


run(main, snakemake)

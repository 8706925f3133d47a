"""Bias and variance of each cut of a task, from branched snapshots and tuned models, and the cut that they suggest."""

from pathlib import Path

import numpy as np
import pandas as pd

from graft.branching import conditional_variances, elbow, estimate, is_non_decreasing, tilts
from graft.jobs import run
from graft.plan import is_plain
from graft.rejection import rule_from
from graft.shards import TensorFile
from graft.tables import summarise, write_csv

COLUMNS = ["task", "setting", "quantity", "method", "level", "mean", "stderr", "seeds"]


def main(job):
    table, parts = pd.read_csv(job.input.tables[0]), []
    table = table[(table["metric"] == job.params.headline) & table["cut"].notna()]
    for name, methods in job.params.methods.items():
        folders = [Path(job.params.folder) / job.wildcards.task / name / f"seed{seed}" for seed in job.params.seeds]
        gains = gained(table[table["setting"] == name], methods)
        found = [*branched(folders, methods), moved(folders, methods), *gains]
        parts += [part.assign(task=job.wildcards.task, setting=name) for part in found]
    write_csv(job.output[0], pd.concat(parts)[COLUMNS])


def branched(folders, methods):
    """What branches tell before any fine-tuning, for each rule; seeds are pooled, as they share the base."""
    files = [TensorFile(folder / "branches.safetensors") for folder in folders]
    levels, information = (files[0].tensor(name).numpy() for name in ("levels", "information"))
    rewards = np.concatenate([file.tensor("rewards").numpy() for file in files], axis=1)
    groups = np.concatenate([file.tensor("groups").numpy() for file in files])

    def curve(quantity, method, means, errors):
        columns = {"quantity": quantity, "method": method, "level": levels, "mean": means, "stderr": errors}
        return pd.DataFrame({**columns, "seeds": len(files)})

    def estimated(contributions):
        return zip(*(estimate(level, groups) for level in contributions), strict=True)

    variances = conditional_variances(rewards)
    yield curve("conditional_variance", "base", *estimated(variances))
    rises = {"method": "base", "mean": int(is_non_decreasing(variances, groups)), "seeds": len(files)}
    yield pd.DataFrame([{"quantity": "conditional_variance_non_decreasing", **rises}])
    for rule in dict.fromkeys(rule_from(method["rule"]) for method in methods.values() if method.get("rule")):
        tilt = tilts(rewards, groups, rule)
        for quantity, contributions in tilt.items():
            yield curve(quantity, str(rule), *estimated(contributions))
        elbows = curve("elbow", str(rule), *elbow(tilt["kl"], information, groups))
        yield elbows
        yield highest(elbows, "suggested_cut")


def moved(folders, methods):
    """How far each tuned model moves the score at each level; every seed has tuned its own.

    `self_shift` is what tuning on unselected rollouts moves, which no reward asks for.
    """
    found = [pd.read_csv(folder / "score_shift.csv").assign(seed=folder.name) for folder in folders]
    values = pd.concat(found).drop(columns="stderr").rename(columns={"mean": "value"})
    table = summarise(values, ["method", "level"])
    unselected = [name for name, method in methods.items() if method.get("rule", "none") is None]
    return table.assign(quantity=np.where(table["method"].isin(unselected), "self_shift", "score_shift"))


def gained(table, methods):
    """What each cut gave in the task's table; the best cut is of the plain methods."""
    gains = {}
    for control, quantity in (("base", "gain_over_base"), ("self", "gain_over_control")):
        columns = {"mean": f"over_{control}", "stderr": f"over_{control}_stderr", "level": "cut"}
        shown = {name: table[column] for name, column in columns.items()}
        gains[quantity] = table[["method", "seeds"]].assign(quantity=quantity, **shown)
        yield gains[quantity]
    plain = [name for name, method in methods.items() if is_plain(method)]
    yield highest(gains["gain_over_base"][table["method"].isin(plain)], "best_cut")


def highest(curve, quantity):
    """The row of a curve whose mean is the highest, as another quantity; of equal ones the first, of none none."""
    return curve[curve["mean"] == curve["mean"].max()].head(1).assign(quantity=quantity)


run(main, snakemake)

"""Table of a task with rewards: metrics of every method, gains over base and self, what each cost."""

import math
from itertools import product
from pathlib import Path

import pandas as pd
import yaml

from graft.files import read_json
from graft.jobs import run
from graft.tables import COLUMNS, gains, summarise, with_published, write_csv, write_layouts

KEYS = ["task", "setting", "method", "metric", "better"]
EXTRAS = [
    "data",
    "cut",
    "deduplicated",
    "anchored",
    "fixed_share",
    "eta",
    "rounds",
    "reward_calls",
    "accepted",
    "control",
]
"""Notes that stand beside the metrics where people read the table, after what a task tells of accepted samples."""


def main(job):
    values = pd.DataFrame([row for name in job.params.settings for row in values_of(job, name)])
    costs = pd.DataFrame([row for name in job.params.settings for row in costs_of(job, name)])
    table = summarise(values, [*KEYS, "samples"])
    table = table.merge(gains(values, KEYS, ["base", "self"]), on=KEYS)
    notes = pd.DataFrame([row for name in job.params.settings for row in notes_of(job, name, costs)])
    # Where all settings are on the usual data, or no method is anchored, nobody needs to be told.
    notes = notes.drop(columns=[name for name in ("data", "anchored") if notes[name].isna().all()])
    table = table.merge(notes, on=["setting", "method"], how="left")
    with open(job.input.published) as file:
        published = [entry for entry in yaml.safe_load(file) if entry["task"] == job.params.task]
    table = with_published(table, published, KEYS[:4])
    write_csv(job.output.csv, table[COLUMNS + [column for column in table if column not in COLUMNS]])
    headline = job.params.headline
    measured = table[table["metric"] == headline].set_index(["setting", "method"])
    shown = {}
    for name in ("base", "self"):
        shown[f"{headline} over {name}"] = [
            gain_text(measured.loc[tuple(key)], name) for key in zip(table["setting"], table["method"], strict=True)
        ]
    extras = [name for name in table if name in EXTRAS or name.startswith("mean_")]
    models = table["method"].isin(
        [name for plan in job.params.settings.values() for name in ["base", *plan["methods"]]]
    )
    laid_out = table.assign(ranked=models, **shown, **{name: table[name].map(note_text) for name in extras})
    arguments = {"table": laid_out, "index": ["setting", "method", *extras, *shown], "contest": ["setting"]}
    write_layouts(job.output.markdown, job.output.latex, {"": arguments})
    write_csv(job.output.cost, costs)
    write_csv(job.output.curve, pd.DataFrame([row for name in job.params.settings for row in curve_of(job, name)]))


def note_text(value):
    """A note of a row as people read it: counts whole, shares with four digits."""
    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 1000 or value.is_integer() else f"{value:.4g}"


def gain_text(row, name):
    """A paired gain and its standard error, and both in per cent; nothing where a method is its own control."""
    if pd.isna(row[f"over_{name}"]) or row.name[1] == (row["control"] if name == "self" else name):
        return ""

    def text(column):
        mean, error = row[column], row[f"{column}_stderr"]
        return f"{mean:+.3g}" if pd.isna(error) else f"{mean:+.3g} ± {error:.1g}"

    percent = f"over_{name}_percent"
    return text(f"over_{name}") + ("" if pd.isna(row[percent]) else f" ({text(percent)} %)")


def folders(job, name):
    """(seed, folder) of a setting's seeds."""
    root = Path(job.params.folder) / job.params.task / name
    return [(seed, root / f"seed{seed}") for seed in job.params.seeds[name]]


def values_of(job, name):
    """A row for each seed, model and metric of a setting; first what is no method, which is compared with nothing."""
    plan = job.params.settings[name]
    for seed, folder in folders(job, name):
        evaluation = read_json(folder / "evaluation.json")
        models = {method: evaluation["models"][method] for method in ["base", *plan["methods"]]}
        for method, found in {**evaluation["others"], **models}.items():
            controls = {
                "control_base": "base" if method in models else None,
                "control_self": plan["controls"].get(method),
            }
            for metric, value in found["metrics"].items():
                better = "lower" if metric in evaluation["lower_is_better"] else "higher"
                row = {"task": job.params.task, "setting": name, "method": method, "metric": metric, "better": better}
                yield {**row, **controls, "seed": seed, "samples": found["samples"], "value": value}


def notes_of(job, name, costs):
    """What stands beside each method of a setting: its cut and rule, what the cut fixes, what it accepted."""
    plan = job.params.settings[name]
    shares = pd.DataFrame([read_json(folder / "fixed_share.json") for _, folder in folders(job, name)])
    data = Path(job.params.folder) / job.params.task / name / "data/data.json"
    shared = {"setting": name, "eta": plan["eta"], "data": read_json(data)["note"]}
    yield {**shared, "method": "base", "reward_calls": 0, "rounds": 0, "control": plan["controls"]["base"]}
    for method, settings in plan["methods"].items():
        cut, spent = settings.get("cut"), costs[(costs["setting"] == name) & (costs["method"] == method)]
        counts = spent.groupby("seed")[["reward_calls", "accepted"]].sum(min_count=1).mean()
        described = [column for column in spent if column.startswith("mean_")]
        yield {
            **shared,
            "method": method,
            "rounds": plan["rounds"],
            "cut": cut,
            "deduplicated": settings.get("deduplicate"),
            "anchored": settings.get("anchored"),
            "fixed_share": None if cut is None else shares[f"{cut:g}"].astype(float).mean(),
            **counts,
            # Of all that was accepted, whatever the round.
            **{column: (spent[column] * spent["accepted"]).sum() / spent["accepted"].sum() for column in described},
            "control": plan["controls"][method],
        }


def costs_of(job, name):
    """A row for each seed, round and method: gradient steps, reward calls, seconds of rollouts and of fine-tuning."""
    plan = job.params.settings[name]
    for seed, folder in folders(job, name):
        for turn, group in product(range(1, plan["rounds"] + 1), plan["groups"]):
            for method, cost in read_json(folder / f"round{turn}" / group / "cost.json").items():
                model = ("base", "base") if turn == 1 else (group, method)
                rollouts = rollout_seconds(plan, folder / f"round{turn}", *model) if "accepted" in cost else None
                row = {"task": job.params.task, "setting": name, "method": method, "seed": seed, "round": turn}
                yield {**row, "accepted": math.nan, **cost, "rollout_seconds": rollouts}


def rollout_seconds(plan, folder, group, model):
    """Seconds that a round's rollouts of a model took; those of the base in the first round serve every method."""
    timings = [read_json(folder / group / f"shard{shard}_timing.json") for shard in range(plan["shards"])]
    return plan["samples"] * sum(timing["seconds_per_sample"][model] for timing in timings) / len(timings)


def curve_of(job, name):
    """Points (reward calls spent, mean reward) of each method and seed, from before any to after the last."""
    plan = job.params.settings[name]
    for seed, folder in folders(job, name):
        models = read_json(folder / "evaluation.json")["models"]
        for method in plan["methods"]:
            points = list(points_of(plan, folder, method, models))
            # On prompts that train, rollouts have other rewards than the evaluation, whatever the method.
            for calls, reward in points if job.params.rollouts_compare else (points[0], points[-1]):
                row = {"task": job.params.task, "setting": name, "method": method, "seed": seed}
                yield {**row, "reward_calls": calls, "reward": reward}


def points_of(plan, folder, method, models):
    """The base's reward, that of the rollouts of every later round, and the final samples'."""
    yield 0, models["base"]["metrics"]["reward"]
    spent = plan["samples"]
    for turn in range(1, plan["rounds"] + 1):
        (group,) = (group for group in plan["groups"] if (folder / f"round{turn}" / group / "tuned" / method).exists())
        curve = pd.read_csv(folder / f"round{turn}" / group / "tuned" / method / "training.csv")
        if "reward_calls" in curve:
            # An iteration's rollouts are drawn by the policy of before its gradient steps.
            before = curve["reward_calls"].shift(fill_value=0) + (turn - 1) * spent
            yield from list(zip(before, curve["reward"], strict=True))[1:]
        if turn < plan["rounds"]:
            paths = [folder / f"round{turn + 1}" / group / f"scores{shard}.csv" for shard in range(plan["shards"])]
            scores = pd.concat([pd.read_csv(path) for path in paths])
            yield turn * spent, scores.loc[scores["model"] == method, "reward"].mean()
    yield plan["rounds"] * spent, models[method]["metrics"]["reward"]


run(main, snakemake)

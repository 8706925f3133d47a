"""Table of unconditional images: quality against FLOPs for every chain, and its cost companion."""

from pathlib import Path

import pandas as pd
import yaml

from graft.files import read_json
from graft.jobs import run
from graft.noise_correction import DATA, chains
from graft.tables import COLUMNS, summarise, with_published, write_csv, write_layouts

ROW = ["setting", "method", "base_steps", "corrector_steps"]
KEYS = ["task", *ROW, "gflops_per_image", "parameters", "dequantisation", "metric", "better"]
BETTER = {"frechet": "lower", "kid": "lower", "precision": "higher", "recall": "higher"}


def main(job):
    plans = job.params.settings
    values = pd.DataFrame([row for name, plan in plans.items() for row in values_of(job, name, plan)])
    table = summarise(values, [*KEYS, "samples"])
    with open(job.input.published) as file:
        table = with_published(table, yaml.safe_load(file), ["task", *ROW, "metric"])
    write_csv(job.output.csv, table[COLUMNS + [column for column in table if column not in COLUMNS]])
    arguments = {
        "table": table.assign(ranked=table["method"] != "data"),
        "index": [*ROW, "gflops_per_image", "parameters"],
        "contest": ["setting"],
    }
    write_layouts(job.output.markdown, job.output.latex, {"": arguments})
    costs = pd.DataFrame([row for name, plan in plans.items() for row in costs_of(job, name, plan)])
    write_csv(job.output.cost, costs)


def setting_of(folder):
    """A setting as tables name it: with the note of the data that it was run on, if these are not the usual ones."""
    note = read_json(folder / "data" / "data.json")["note"]
    return f"{folder.name} ({note})" if note else folder.name


def values_of(job, name, plan):
    """A row for each seed, chain and metric of a setting; the clean data are a row of their own."""
    folder = Path(job.params.folder) / name
    for seed in job.params.seeds:
        found = read_json(folder / f"seed{seed}" / "metrics.json")
        for chain in [DATA, *chains(**plan["chains"])]:
            metrics, cost = found["metrics"][chain.name], found["costs"].get(chain.name, {})
            row = {
                "task": "images",
                "setting": setting_of(folder),
                "method": chain.method,
                "base_steps": chain.base_steps,
                "corrector_steps": chain.corrector_steps,
                "gflops_per_image": cost.get("flops_per_image", 0) / 1e9,
                "parameters": cost.get("parameters", 0),
                "dequantisation": plan["dequantisation"],
                "seed": seed,
                "samples": metrics["samples"],
            }
            for metric, better in BETTER.items():
                yield {
                    **row,
                    "metric": plan["names"][metric],
                    "better": better,
                    "value": metrics[metric],
                }


def costs_of(job, name, plan):
    """A row for each chain: seconds an image over seeds, and how fast its networks were trained."""
    folder = Path(job.params.folder) / name
    base = read_json(folder / "base_timing.json")["samples_per_second"]
    sampled = [
        pd.Series(read_json(path)["seconds_per_image"])
        for seed in job.params.seeds
        for path in (folder / f"seed{seed}/samples/shard{shard}_timing.json" for shard in range(plan["shards"]))
    ]
    seconds = pd.concat(sampled, axis=1)
    for chain in chains(**plan["chains"]):
        trained = [
            read_json(folder / f"seed{seed}" / "correctors" / f"{chain.corrector}_timing.json")["images_per_second"]
            for seed in job.params.seeds
            if chain.corrector_steps
        ]
        rates = [rates[str(chain.base_steps)] for rates in trained]
        yield {
            "task": "images",
            "setting": setting_of(folder),
            "method": chain.method,
            "base_steps": chain.base_steps,
            "corrector_steps": chain.corrector_steps,
            "seconds_per_image": seconds.loc[chain.name].mean(),
            "seconds_per_image_stderr": seconds.loc[chain.name].sem(),
            "seeds": len(job.params.seeds),
            "base_training_images_per_second": base,
            "corrector_training_images_per_second": pd.Series(rates, dtype=float).mean(),
        }


run(main, snakemake)

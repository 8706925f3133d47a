"""Table of unconditional images: quality against FLOPs for every chain of flows, and its cost companion."""

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
    write_layouts(
        job.output.markdown,
        job.output.latex,
        table=table.assign(ranked=table["method"] != "data"),
        index=[*ROW, "gflops_per_image", "parameters"],
        contest=["setting"],
    )
    costs = pd.DataFrame([row for name, plan in plans.items() for row in costs_of(job, name, plan)])
    write_csv(job.output.cost, costs)


def values_of(job, name, plan):
    """A row for each seed, chain and metric of a setting; the clean data are a row of their own."""
    folder = Path(job.params.folder) / name
    note = read_json(folder / "data" / "data.json")["note"]
    known = {chain.name: chain for chain in chains(**plan["chains"])}
    for seed in job.params.seeds:
        found = read_json(folder / f"seed{seed}" / "metrics.json")
        for key, metrics in found["metrics"].items():
            chain, cost = known.get(key, DATA), found["costs"].get(key, {})
            row = {
                "task": "images",
                "setting": f"{name} ({note})" if note else name,
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
                    "metric": plan["frechet"] if metric == "frechet" else metric,
                    "better": better,
                    "value": metrics[metric],
                }


def costs_of(job, name, plan):
    """A row for each seed and chain: seconds an image in sampling, hours of training."""
    folder = Path(job.params.folder) / name
    base = read_json(folder / "base_timing.json")
    for seed in job.params.seeds:
        sampling = [
            read_json(path)["seconds_per_image"]
            for path in sorted((folder / f"seed{seed}").glob("samples/*_timing.json"))
        ]
        for chain in chains(**plan["chains"]):
            yield {
                "task": "images",
                "setting": name,
                "method": chain.method,
                "base_steps": chain.base_steps,
                "corrector_steps": chain.corrector_steps,
                "seed": seed,
                "seconds_per_image": sum(shard[chain.name] for shard in sampling) / len(sampling),
                "base_training_images_per_second": base["images_per_second"],
            }


run(main, snakemake)

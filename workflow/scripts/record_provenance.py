"""Record what a table came from: machine, versions, commit, seeds, configuration, times, throughput."""

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

import pandas as pd
import torch

from graft.assets import without_credentials
from graft.files import read_json, write_json
from graft.jobs import compute_of, run
from graft.networks.flows import count_flops, load_network
from graft.speed import PASSES_OF_A_STEP, matmul_flops_per_second

PACKAGES = [
    "snakemake",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "torch-fidelity",
    "numpy",
    "scipy",
    "rdkit",
    "pandas",
    "matplotlib",
]


def main(job):
    compute = compute_of(job)
    peak = matmul_flops_per_second(compute)
    results, images = Path(job.params.results), job.params.settings.get("images", [])
    record = {
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "modified_files": git("status", "--porcelain"),
        "machine": {
            "gpu": torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else None,
            "cpu": platform.processor() or platform.machine(),
            "threads": job.threads,
            "measured_peak_flops_per_second": peak,
            "precision": job.params.precision,
        },
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "seeds": job.config["seeds"],
        "rule_seconds": rule_seconds(Path(job.params.benchmarks)),
        "assets": {
            f"{task}/{name}": read_json(results / task / name / "data/data.json")
            for task, names in job.params.settings.items()
            for name in names
        },
        "inversion": {
            name: inversions(results / "images" / name, job.params.inversion_shards[name]) for name in images
        },
        "throughput": {
            name: throughput(results / "images" / name, pd.read_csv(results / "tables/images_cost.csv"), peak)
            for name in images
        },
        "config": {**job.config, "mirror": job.config["mirror"] and without_credentials(job.config["mirror"])},
    }
    write_json(job.output[0], record)


def versions(packages):
    """Versions of those packages that this environment has."""
    installed = {distribution.name: distribution.version for distribution in distributions()}
    return {name: installed[name] for name in packages if name in installed}


def git(*arguments):
    """What a git command prints, or None outside a repository and where there is no git."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def rule_seconds(folder):
    """Wall-clock seconds and largest resident memory of each rule's jobs, from all of Snakemake's benchmarks."""
    rules = {path: path.stem if path.parent == folder else path.parent.name for path in folder.rglob("*.tsv")}
    jobs = pd.concat([pd.read_csv(path, sep="\t").assign(rule=rule) for path, rule in rules.items()])
    jobs["max_rss"] = pd.to_numeric(jobs["max_rss"], errors="coerce").fillna(0)
    grouped = jobs.groupby("rule")
    return {
        rule: {"jobs": len(part), "seconds": float(part["s"].sum()), "largest_mib": float(part["max_rss"].max())}
        for rule, part in grouped
    }


def inversions(folder, shards):
    """The inversion's report of every shard."""
    names = [f"inverted/shard{shard}.json" for shard in range(shards)]
    return {name: read_json(folder / name) for name in names}


def throughput(folder, costs, peak):
    """Base training and sampling, in images a second and as a share of the measured peak (MFU)."""
    rate, flops = (
        read_json(folder / "base_timing.json")["samples_per_second"],
        count_flops(load_network(folder / "base")),
    )
    base = costs[(costs["setting"].str.split().str[0] == folder.name) & (costs["method"] == "base")]
    steps_per_second = (base["base_steps"] / base["seconds_per_image"]).mean()
    return {
        "training": {"images_per_second": rate, "mfu": rate and PASSES_OF_A_STEP * flops * rate / peak},
        "sampling": {"evaluations_per_second": steps_per_second, "mfu": flops * steps_per_second / peak},
    }


run(main, snakemake)

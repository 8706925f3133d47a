# Needs: the merged configuration. Makes: its checks, and the few helpers that rules share.
import os
import sys

import yaml
from snakemake.exceptions import WorkflowError

RESULTS = f"results/{config['scale']}"
SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

from graft.configuration import check_config, check_references
from graft.errors import UserError
from graft.fingerprint import fingerprint

try:
    check_config(config, Path(workflow.basedir) / "workflow/schemas/config.yaml")
    with open(config["assets"]) as assets_file:
        ASSETS = yaml.safe_load(assets_file)
    check_config(ASSETS, Path(workflow.basedir) / "workflow/schemas/assets.yaml")
    check_references(config, ASSETS)
except (UserError, OSError) as error:
    sys.exit(f"error: configuration: {error}")

# Every job of a machine shares what torch.compile has compiled.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.abspath("results/compiled"))


wildcard_constraints:
    setting="[A-Za-z0-9_]+",
    seed="[0-9]+",
    shard="[0-9]+",
    path="straight|trigonometric",


def code(script):
    """Fingerprint of the code that a script runs: a rerun trigger that ignores comments."""
    return fingerprint(SCRIPTS / script)


def setting(leaf):
    """A leaf of the configuration of a job's image setting, as an input or params function."""
    return lookup(dpath=f"images/settings/{{setting}}/{leaf}", within=config)


def shards_of(name, leaf):
    """Numbers of the shards of an image setting, such as those of its `sampling`."""
    return range(config["images"]["settings"][name][leaf]["shards"])


IMAGE_SETTINGS = config["images"]["run"]


def metric_names(name):
    """FID and KID on InceptionV3; on other features the network is named, as the figures are not comparable."""
    if config["images"]["settings"][name]["features"]["extractor"] == "inception":
        return {"frechet": "FID", "kid": "KID", "precision": "precision", "recall": "recall"}
    features = f"{name} classifier"
    return {"frechet": f"FD ({features})", "kid": f"KD ({features})", "precision": "precision", "recall": "recall"}


def chain_plan(name):
    """The step counts and paths whose products are the rows of a setting."""
    chosen = config["images"]["settings"][name]
    return {
        "step_counts": chosen["inversion"]["step_counts"],
        "paths": chosen["corrector"]["paths"],
        "corrector_steps": chosen["corrector"]["step_counts"],
    }


def timings_of(names):
    """Timing files of all jobs behind a table."""
    root = "<results>/images"
    for name in names:
        yield f"{root}/{name}/base_timing.json"
        for seed in config["seeds"]:
            for path in config["images"]["settings"][name]["corrector"]["paths"]:
                yield f"{root}/{name}/seed{seed}/correctors/{path}_timing.json"
            for shard in shards_of(name, "sampling"):
                yield f"{root}/{name}/seed{seed}/samples/shard{shard}_timing.json"


def images_folder(wildcards, input):
    """The folder of all image settings, from a table's inputs."""
    return str(Path(input.metrics[0]).parents[2])

# Needs: the merged configuration. Makes: its checks, and the few helpers that rules share.
import os
import sys
from functools import cache
from itertools import product

import yaml
from snakemake.exceptions import WorkflowError

RESULTS = f"results/{config['scale']}"
SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))

from graft.configuration import check_config, check_references
from graft.errors import UserError
from graft.fingerprint import fingerprint
from graft.plan import RewardPlan, is_plain
from graft.tasks import JUDGES, REWARD_TASKS, TASKS

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

# What a job has freed it keeps for its next tensors, up to these sizes in bytes (glibc's malloc): memory that the system
# hands out anew, page by page, is a fifth of the time that sampling takes on a CPU.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**29))


wildcard_constraints:
    task="|".join(TASKS),
    stage="round[0-9]+|final",
    group="base|jobs[0-9]+",
    round="[0-9]+",
    setting="[A-Za-z0-9_]+",
    seed="[0-9]+",
    shard="[0-9]+",
    path="straight|trigonometric",
    name="[A-Za-z][A-Za-z0-9_]*",


@cache
def code_of(script, task=None):
    """Fingerprint of the code that a script runs (for a task): a rerun trigger that ignores comments."""
    return fingerprint(SCRIPTS / script, task=task)


def code(script):
    """`code_of` a script, as a params function: every job starts a snakemake within, which needs only the job's own."""
    return lambda wildcards: code_of(script)


def task_setting(leaf, task="images"):
    """A leaf of the configuration of a job's task and setting, as an input or params function; None if left out.

    task: of a rule that has no such wildcard.

    Snakemake's lookup() does the same, but walks through all of the configuration each time: seconds at paper scale.
    """

    def of_job(wildcards):
        *blocks, last = leaf.split("/")
        found = config[wildcards.get("task", task)]["settings"][wildcards.setting]
        for key in blocks:
            found = found[key]
        return found.get(last)

    return of_job


def pretrained_files(wildcards):
    """The files of a base that diffusers saved, so that others in their place rerun what follows.

    Or the base of another setting, which is trained first. None if the base is trained here, or if there are none: the
    job says what is missing.
    """
    folder = task_setting("base/pretrained")(wildcards) or ""
    if folder.startswith(f"{RESULTS}/"):
        return [folder]
    return saved_files(folder) if folder else []


def saved_files(folder):
    """Configurations and weights in a folder that diffusers or transformers saved."""
    patterns = ("*.json", "*.safetensors", "*.bin")
    return sorted(str(path) for pattern in patterns for path in Path(folder).rglob(pattern))


def autoencoder_of(wildcards):
    """The autoencoder of a base whose points are latents and which is trained here; otherwise none."""
    base = task_setting("base")(wildcards)
    trained = "autoencoder" in base and not base["pretrained"]
    return ["<results>/{task}/{setting}/autoencoder"] if trained else []


def judges_of(wildcards):
    """The folders of the judges of a setting's samples, by their names, and their batch size; None without judges."""
    judges = config[wildcards.task]["settings"][wildcards.setting].get("judges")
    if judges is None:
        return None
    folder = f"{RESULTS}/{wildcards.task}/{wildcards.setting}/judges"
    trained = {name: f"{folder}/{name}" for name in JUDGES[wildcards.task]}
    return {**(judges["pretrained"] or trained), "batch_size": judges["batch_size"]}


def judge_files(wildcards):
    """What the judges of a setting's samples are read from: what is trained here, or the files of pretrained ones."""
    judges = config[wildcards.task]["settings"][wildcards.setting].get("judges")
    if judges is None:
        return []
    if judges["pretrained"] is None:
        return ["<results>/{task}/{setting}/judges"]
    # A folder that is not there is missed before anything is drawn.
    return [
        path for folder in judges["pretrained"].values() for path in saved_files(folder) or [f"{folder}/config.json"]
    ]


def comparisons_of(wildcards, task=None):
    """Other models whose samples are measured beside a setting's methods, by name; mostly none."""
    return config[task or wildcards.task]["settings"][wildcards.setting].get("comparisons", {})


def comparison_shards(wildcards):
    """The samples of those models."""
    shards = range(plan_of(wildcards).sizes("final")["shards"])
    folder = f"{SEED}/comparisons"
    return [f"{folder}/{name}/shard{shard}.safetensors" for name in comparisons_of(wildcards) for shard in shards]


def rewarding_judges(wildcards):
    """The judges' files where one of them gives the reward; others only evaluate."""
    return judge_files(wildcards) if "reward" in (judges_of(wildcards) or {}) else []


def judging_gpus(wildcards):
    """GPUs of a job that scores: a judge is a network, other rewards are not."""
    return config["compute"]["gpu"] if rewarding_judges(wildcards) else 0


def reward_of(wildcards):
    """A setting's reward, with the judge that gives it where one does."""
    reward, judges = task_setting("reward")(wildcards), judges_of(wildcards) or {}
    if "reward" not in judges:
        return reward
    return {**reward, "judge": judges["reward"], "batch_size": judges["batch_size"]}


def adapter_of(wildcards):
    """The adapter that fine-tuning trains; None where it trains the whole network."""
    return task_setting("fine_tuning")(wildcards).get("adapter")


def command_line_configfiles(wildcards):
    """The overlays of --configfile, for a snakemake within; not the Snakefile's own, which would overlay them in turn."""
    overlays = [os.path.relpath(path) for path in workflow.overwrite_configfiles]
    return ["--configfile", *overlays] if overlays else []


def command_line_overrides(wildcards):
    """The entries of --config, for a snakemake within; not the mirror, of which a log must not show the password."""
    return [entry for entry in workflow.config_settings.config_args or [] if not entry.startswith("mirror=")]


def task_code(script):
    """The same as `code`, with the task that a job works on, which its script loads by name."""
    return lambda wildcards: code_of(script, wildcards.task)


def reward_code(wildcards):
    """Fingerprint of the file of a user's reward, as a rerun trigger; None for a built-in or installed one."""
    imported, _, _ = task_setting("reward/function")(wildcards).partition(":")
    path = Path(*imported.split(".")).with_suffix(".py")
    try:
        return fingerprint(path.resolve()) if path.is_file() else None
    except SyntaxError:
        return path.read_text()  # the job says what is wrong with it


SEED = "<results>/{task}/{setting}/seed{seed}"
"""The folder of a seed's products of the reward chain, under which each round and the final evaluation have one."""


def plan_of(wildcards):
    """The plan of a job of the reward chain."""
    return RewardPlan(config[wildcards.task]["settings"][wildcards.setting], int(wildcards.seed))


def of_plan(leaf):
    """A property of a job's plan, as a params function."""
    return lambda wildcards: getattr(plan_of(wildcards), leaf)


def of_group(method):
    """What a method of a job's plan says of its group, as a params function."""
    return lambda wildcards: getattr(plan_of(wildcards), method)(wildcards.group)


def of_stage(leaf):
    """`samples` or `shards` of a job's stage, as a params function."""
    return lambda wildcards: plan_of(wildcards).sizes(wildcards.stage)[leaf]


def stage_draw(wildcards):
    """Which stream of random numbers a stage draws from, and its number."""
    return ["EVALUATION", 0] if wildcards.stage == "final" else ["ROLLOUT", int(wildcards.stage.removeprefix("round"))]


def tuned_before(wildcards):
    """The tuned models that a stage's rollouts, or a round's fine-tuning, start from; none for the base."""
    stage = wildcards.get("stage", f"round{wildcards.get('round')}")
    before = plan_of(wildcards).round_before(stage)
    return [] if wildcards.group == "base" or before == 0 else [f"{SEED}/round{before}/{{group}}/tuned"]


def last_tuned(wildcards):
    """The tuned models of every group after the last round."""
    plan = plan_of(wildcards)
    return [f"{SEED}/round{plan.rounds}/{group}/tuned" for group in plan.groups]


def selection_of(wildcards):
    """What a round of a group is tuned on; none for policy gradients alone, which wait for no rollouts but their own."""
    selects = plan_of(wildcards).selections(wildcards.group)
    return [f"{SEED}/round{{round}}/{{group}}/selected.csv"] if selects else []


def source_shards(pattern):
    """The files of all rollout shards that a round of a group selects from; none if it selects from none."""

    def of_round(wildcards):
        plan, stage = plan_of(wildcards), f"round{wildcards.round}"
        if not plan.selections(wildcards.group):
            return []
        folder = f"{SEED}/{stage}/{plan.source(stage, wildcards.group)}"
        return [f"{folder}/{pattern.format(shard)}" for shard in range(plan.sizes(stage)["shards"])]

    return of_round


def final_shards(wildcards):
    """The final samples of every model of a seed."""
    plan = plan_of(wildcards)
    shards = range(plan.sizes("final")["shards"])
    return [f"{SEED}/final/{group}/shard{shard}.safetensors" for group in ["base", *plan.groups] for shard in shards]


def reward_seeds(task, tuning=False):
    """(folder, plan) of every setting and seed of a task, of the table's seeds or of the tuning seed."""
    for name in config[task]["run"]:
        setting_config = config[task]["settings"][name]
        for seed in [setting_config["tuning"]["seed"]] if tuning else config["seeds"]:
            yield f"<results>/{task}/{name}/seed{seed}", RewardPlan(setting_config, seed)


def of_reward_seeds(name, task, tuning=False):
    """The files of this name of every seed, such as evaluation.json."""
    return [f"{folder}/{name}" for folder, _ in reward_seeds(task, tuning)]


def reward_costs(task, tuning=False):
    """The cost record of every fine-tuning job, the times of its rollouts, and, after the first round, their scores."""
    for folder, plan in reward_seeds(task, tuning):
        shards = range(plan.sizes("round1")["shards"])
        yield from (f"{folder}/round1/base/shard{shard}_timing.json" for shard in shards)
        for turn, group in product(range(1, plan.rounds + 1), plan.groups):
            yield f"{folder}/round{turn}/{group}/cost.json"
            if turn > 1:
                yield from (f"{folder}/round{turn}/{group}/shard{shard}_timing.json" for shard in shards)
                yield from (f"{folder}/round{turn}/{group}/scores{shard}.csv" for shard in shards)


def reward_plans(task, tuning=False):
    """What the table says of each setting beside its results."""
    return {folder.split("/")[2]: plan.for_table() for folder, plan in reward_seeds(task, tuning)}


def tuned_settings(task):
    """Of each setting of a task what its tuning depends on: all of `tuning` and of `methods` but the rates in use."""
    return {
        name: {
            "tuning": config[task]["settings"][name]["tuning"],
            "methods": {
                method: {key: value for key, value in settings.items() if key != "learning_rate"}
                for method, settings in config[task]["settings"][name]["methods"].items()
            },
        }
        for name in config[task]["run"]
    }


def plain_methods(task):
    """By setting, the methods of a task that are tuned on selected samples as the paper does it."""
    return {
        setting: [name for name, each in plan["methods"].items() if is_plain(each)]
        for setting, plan in reward_plans(task).items()
    }


def shards_of(name, leaf):
    """Numbers of the shards of an image setting, such as those of its `sampling`."""
    return range(config["images"]["settings"][name][leaf]["shards"])


def inverted_noises(wildcards):
    """The files of all inversion shards of an image setting."""
    folder = f"<results>/images/{wildcards.setting}/inverted"
    return [f"{folder}/shard{shard}.safetensors" for shard in shards_of(wildcards.setting, "inversion")]


TASKS_RUN = [task for task in TASKS if config[task]["run"]]
TUNED_TASKS = [task for task in TASKS_RUN if all("tuning" in each for each in config[task]["settings"].values())]
REWARD_TASKS_RUN = [task for task in TASKS_RUN if task in REWARD_TASKS]
IMAGE_SETTINGS = config["images"]["run"]


def metric_names(name):
    """FID and KID on InceptionV3; on other features the network is named, as the figures are not comparable."""
    inception = config["images"]["settings"][name]["features"]["extractor"] == "inception"
    features = "InceptionV3" if inception else f"{name} classifier"
    return {
        "frechet": "FID" if inception else f"FD ({features})",
        "kid": "KID" if inception else f"KD ({features})",
        # Named on InceptionV3 too, as the published ones are on VGG-16.
        "precision": f"precision ({features})",
        "recall": f"recall ({features})",
    }


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


def results_folder(wildcards, input):
    """The folder of all tasks of a scale, from the inputs of a table with rewards."""
    return str(Path(input.metrics[0]).parents[3])


def tables_folder(wildcards, input):
    """The folder of all tasks of a scale, from finished tables."""
    return str(Path(input.tables[0]).parents[1])

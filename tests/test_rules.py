"""Rules against what stands beside them: environment files, directives, profiles."""

import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

from graft.tasks import TASKS

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "workflow/scripts"

# What an environment needs although no script of its rules imports it.
NOT_IMPORTED = {
    "report": {
        "jinja2",  # pandas writes LaTeX with it
        "tabulate",  # pandas writes Markdown with it
        "snakemake",  # the shell command of rule `report`
        "pygments",  # `snakemake --report` shows code with it
    },
    "torch": {
        "torchvision",  # torch-fidelity imports it, and one version of it fits one of torch
        "accelerate",  # peft imports it
    },
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """The rules by name, as Snakemake parses them at paper scale, where jobs ask for GPUs."""
    folder = tmp_path_factory.mktemp("workflow")
    (folder / "config").symlink_to(REPOSITORY / "config")
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        parsed = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[REPOSITORY / "config/paper.yaml"]),
            snakefile=REPOSITORY / "Snakefile",
            workdir=folder,
        )._workflow
        yield {rule.name: rule for rule in parsed.rules}


@pytest.fixture(scope="module")
def jobs(rules):
    """The rules that make files, which pure targets do not.

    `all` only names files. `benchmarks` prints some whenever it is asked to: a benchmark of its own would count as its
    product, and the second time it would print nothing.
    """
    return {name: rule for name, rule in rules.items() if rule.output}


def pins(lines):
    """Versions by distribution, from lines `name==version`."""
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.fixture(scope="module")
def pinned():
    return pins((REPOSITORY / "requirements.txt").read_text().splitlines())


def environment(path):
    """Pins of a conda file's pip section."""
    (pip,) = (entry["pip"] for entry in yaml.safe_load(path.read_text())["dependencies"] if isinstance(entry, dict))
    return pins(pip)


def environment_of(rule):
    """A rule's conda file; paths in a rule are relative to the file that defines it."""
    return (Path(rule.snakefile).parent / rule.conda_env).resolve()


class ImportFinder(ModuleFinder):
    """What a script imports, through `graft` and within functions too; every task, if it loads tasks by name.

    `graft.jobs`, which every script shares, imports within functions so that light jobs need no heavy environment: of
    these functions only those count that the script names.
    """

    def __init__(self, script):
        super().__init__(path=[str(SCRIPTS)])
        self.named = compile(script.read_text(), script, "exec").co_names
        self.run_script(str(script))
        if "task_of" in self.named:
            for task in TASKS:
                self.import_hook(f"graft.tasks.{task}")

    def scan_code(self, co, m):
        if m.__name__ != "graft.jobs" or co.co_name in ("<module>", *self.named):
            super().scan_code(co, m)

    def distributions(self):
        """Names of the distributions that are imported, as PEP 503 spells them."""
        # Only our own folder is searched, so that the standard library and other packages are what it misses.
        missed = {name.split(".")[0] for name in self.badmodules} - {"graft", *sys.stdlib_module_names}
        names = (name for package in missed for name in installed().get(package, [package]))
        return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


@cache
def installed():
    """Distributions by the packages that they install."""
    return packages_distributions()


@pytest.fixture(scope="module")
def needed(jobs):
    """Distributions that the script of each rule imports; a shell command imports none."""
    return {
        name: ImportFinder(Path(rule.snakefile).parent / rule.script).distributions() if rule.script else set()
        for name, rule in jobs.items()
    }


def test_imports_are_followed_through_the_package_and_into_functions(tmp_path):
    script = tmp_path / "some_script.py"
    # safetensors is one import away, Pillow two, and scikit-learn is imported there within a function.
    script.write_text("from graft.tasks.images import load_images\n")
    assert {"torch", "safetensors", "pillow", "scikit-learn"} <= ImportFinder(script).distributions()
    script.write_text("from graft.jobs import run\n")
    assert ImportFinder(script).distributions() == set()
    script.write_text("from graft.jobs import compute_of\n")
    assert {"torch", "threadpoolctl"} == ImportFinder(script).distributions()
    script.write_text("from graft.jobs import task_of\n")
    assert {"pillow", "rdkit"} <= ImportFinder(script).distributions()


def test_a_rule_finds_in_its_environment_what_its_script_imports(jobs, needed, pinned):
    for name, rule in jobs.items():
        path = environment_of(rule)
        lacking = {each: pinned.get(each) for each in needed[name]}.items() - environment(path).items()
        assert not lacking, f"{path.name} of rule {name} needs {sorted(lacking)}"


def test_environments_have_the_pins_of_the_requirements(pinned):
    for path in (REPOSITORY / "envs").glob("*.yaml"):
        assert environment(path).items() <= pinned.items(), path.name


def test_environments_hold_nothing_that_no_rule_needs(jobs, needed):
    for path in (REPOSITORY / "envs").glob("*.yaml"):
        imported = set().union(*(needed[name] for name, rule in jobs.items() if environment_of(rule) == path))
        assert not imported & NOT_IMPORTED.get(path.stem, set()), f"{path.name}: NOT_IMPORTED names what is imported"
        superfluous = environment(path).keys() - imported - NOT_IMPORTED.get(path.stem, set())
        assert not superfluous, f"no rule of {path.name} imports {superfluous}"


def test_every_rule_that_makes_files_says_where_and_how(jobs):
    for name, rule in jobs.items():
        silent = {each for each in ("conda_env", "log", "benchmark", "threads") if not getattr(rule.ruleinfo, each)}
        silent |= {"gpu", "mem_mb", "runtime"} - rule.resources.keys()
        assert not silent, f"rule {name} lacks {silent}"


def profile(name):
    return yaml.safe_load((REPOSITORY / f"profiles/{name}/config.yaml").read_text())


def test_the_cluster_profile_knows_the_rules(rules, jobs):
    slurm = profile("slurm")
    unknown = (slurm["set-threads"].keys() | slurm["set-resources"].keys()) - rules.keys()
    assert not unknown, f"no such rules: {unknown}"
    complete = {name for name, given in slurm["set-resources"].items() if given.keys() >= {"mem_mb", "runtime"}}
    # A function of the job says that some of them take one.
    gpus = {name: rule.resources["gpu"] for name, rule in jobs.items()}
    heavy = {name for name, gpu in gpus.items() if gpu.is_evaluable() or gpu.value or name.startswith("train_")}
    missing = heavy - (slurm["set-threads"].keys() & complete)
    assert not missing, f"set-threads and set-resources lack {missing}"


def test_the_cluster_profile_repeats_the_default_one():
    # It replaces the default profile. Only the limit on GPUs is left out: it is one machine's.
    default, slurm = profile("default"), profile("slurm")
    assert {key: slurm.get(key) for key in default if key != "resources"} == {
        key: value for key, value in default.items() if key != "resources"
    }
    # Without `code`, which sees a script's time stamp: params carry a fingerprint of the code instead.
    assert set(default["rerun-triggers"]) == {"mtime", "params", "input", "software-env"}

"""The plan of a seed's reward chain."""

import runpy
from types import SimpleNamespace

import yaml
from test_workflow import REPOSITORY

from graft.files import write_json
from graft.plan import RewardPlan, is_plain

UNSELECTED = {"rule": None, "deduplicate": False}
SELECTED = {"rule": {"type": "BestOf", "n": 4}, "deduplicate": False}


def plan(methods, seed=0, **setting):
    tuning = {"seed": 1000, "learning_rates": [1e-4, 3e-4]}
    return RewardPlan({"methods": methods, "tuning": tuning, "fine_tuning": {"jobs": 2}, **setting}, seed)


METHODS = {
    "self": {**UNSELECTED, "cut": 0.0, "learning_rate": 1e-5},
    "self_25": {**UNSELECTED, "cut": 0.25, "learning_rate": 3e-4},
    "graft": {**SELECTED, "cut": 0.0, "learning_rate": 1e-4},
    "pgraft_25": {**SELECTED, "cut": 0.25, "learning_rate": 1e-4},
    "pgraft_50": {**SELECTED, "cut": 0.5, "learning_rate": 1e-4},
    "ddpo": {"iterations": 2, "learning_rate": 1e-4},
}


def test_the_control_is_unselected_and_at_the_same_cut_where_there_is_one():
    found = {name: plan(METHODS).control(name) for name in ("base", *METHODS)}
    assert found == {
        "base": "self",
        "self": "self",
        "self_25": "self_25",
        "graft": "self",
        "pgraft_25": "self_25",
        "pgraft_50": "self",
        "ddpo": "self",
    }
    assert plan({"graft": METHODS["graft"]}).control("graft") is None


def test_the_control_of_an_anchored_method_is_the_base():
    methods = {**METHODS, "anchored": {**METHODS["graft"], "anchored": True}}
    assert plan(methods).control("anchored") == "base"


def test_groups_are_about_as_long_and_have_every_method_once():
    assert plan(METHODS).groups == {"jobs0": ["self", "self_25", "graft", "pgraft_25"], "jobs1": ["pgraft_50", "ddpo"]}
    assert plan(METHODS, fine_tuning={"jobs": 9}).groups.keys() == {f"jobs{number}" for number in range(6)}
    assert plan({}).groups == {}


def test_plain_methods_are_those_of_the_paper():
    methods = {
        **METHODS,
        "unique": {**METHODS["graft"], "deduplicate": True},
        "anchored": {**METHODS["graft"], "anchored": True},
    }
    assert [name for name, method in methods.items() if is_plain(method)] == ["graft", "pgraft_25", "pgraft_50"]


def test_on_the_tuning_seed_the_control_has_the_learning_rate_of_the_method():
    tuned = plan(METHODS, seed=1000)
    assert tuned.control("pgraft_25_0p0003") == "self_25_0p0003"
    assert tuned.control("graft_0p0001") == "self_0p0001"


def test_snapshots_are_branched_at_the_cuts_and_the_levels_for_the_tuning_seed_at_the_cuts_alone():
    levels = {"evaluation": {"levels": [0.25, 0.75, 1.0]}}
    assert plan(METHODS, **levels).levels == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert plan(METHODS, seed=1000, **levels).levels == [0.0, 0.25, 0.5]
    assert plan({"pgraft_50": METHODS["pgraft_50"]}, **levels).levels == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_only_the_snapshots_that_a_selection_needs_are_kept():
    found = plan(METHODS)
    assert found.stops("round1", "base") == {"base": [0.0, 0.25, 0.5]}
    assert found.stops("round2", "jobs1") == {"pgraft_50": [0.5], "ddpo": [0.0]}
    assert found.stops("final", "jobs1") == {"pgraft_50": [], "ddpo": []}


def test_a_method_takes_the_rate_of_its_best_trial_and_a_control_that_of_what_it_controls():
    tuned = plan(METHODS, seed=1000)
    better = {"graft": 3e-4, "pgraft_25": 1e-4, "pgraft_50": 3e-4, "ddpo": 3e-4, "self": 1e-4, "self_25": 3e-4}
    scores = {trial: -1.0 + (better[method] == rate) for trial, (method, rate) in tuned.trials.items()}
    assert tuned.best_rates(scores) == {**better, "self": 3e-4, "self_25": 1e-4}
    # What is de-duplicated has another best rate, and says nothing of a control that is not.
    unique = {"graft_unique": {**METHODS["graft"], "deduplicate": True}, **METHODS}
    assert plan(unique, seed=1000).best_rates({**scores, "graft_unique_0p0001": 1.0, "graft_unique_0p0003": 0.0}) == {
        **better,
        "self": 3e-4,
        "self_25": 1e-4,
        "graft_unique": 1e-4,
    }
    # Nor does what is anchored.
    anchored = {"anchored": {**METHODS["graft"], "anchored": True}, **METHODS}
    found = plan(anchored, seed=1000).best_rates({**scores, "anchored_0p0001": 1.0, "anchored_0p0003": 0.0})
    assert (found["anchored"], found["self"]) == (1e-4, 3e-4)
    alone = plan({"self": METHODS["self"], "pgraft_25": METHODS["pgraft_25"]}, seed=1000)
    assert alone.best_rates(scores) == {"self": 1e-4, "pgraft_25": 1e-4}


def test_of_equal_trials_the_first_tried_is_taken():
    tuned = plan({"ddpo": METHODS["ddpo"]}, seed=1000)
    assert tuned.best_rates({"ddpo_0p0001": 1.0, "ddpo_0p0003": 1.0}) == {"ddpo": 1e-4}


def test_the_best_rates_are_an_overlay_for_the_configuration(tmp_path):
    setting = {"methods": {"ddpo": METHODS["ddpo"]}, "tuning": {"seed": 1000, "learning_rates": [1e-4, 3e-4]}}
    settings, metrics = {"small": setting, "large": setting}, []
    for name, rewards in (("small", (1.0, 2.0)), ("large", (2.0, 1.0))):
        trials = zip(("ddpo_0p0001", "ddpo_0p0003"), rewards, strict=True)
        metrics.append(tmp_path / f"{name}.json")
        write_json(metrics[-1], {"models": {trial: {"metrics": {"reward": mean}} for trial, mean in trials}})
    job = SimpleNamespace(
        params=SimpleNamespace(task="molecules", headline="reward", settings=settings),
        input=SimpleNamespace(metrics=metrics),
        output=[str(tmp_path / "molecules.yaml")],
        log=[str(tmp_path / "job.log")],
    )
    runpy.run_path(str(REPOSITORY / "workflow/scripts/choose_rates.py"), init_globals={"snakemake": job})
    found = yaml.safe_load((tmp_path / "molecules.yaml").read_text())["molecules"]["settings"]
    assert found == {
        "small": {"methods": {"ddpo": {"learning_rate": 3e-4}}},
        "large": {"methods": {"ddpo": {"learning_rate": 1e-4}}},
    }

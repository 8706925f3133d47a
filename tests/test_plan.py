"""The plan of a seed's reward chain."""

from graft.plan import RewardPlan

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
    assert found.stops("round2", "jobs0") == {"self": [0.0], "graft": [0.0], "pgraft_50": [0.5]}
    assert found.stops("final", "jobs0") == {"self": [], "graft": [], "pgraft_50": []}

"""What people read of the theory's table."""

import runpy
from types import SimpleNamespace

import pandas as pd

import graft.jobs
from graft.tables import layout


def test_of_several_rules_the_first_ones_suggestion_is_shown(repository, monkeypatch):
    """Though another suggests a lower cut; within a setting, levels are in order all the same."""
    monkeypatch.setattr(graft.jobs, "run", lambda main, job: None)
    script = runpy.run_path(str(repository / "workflow/scripts/make_theory_table.py"), init_globals={"snakemake": None})
    of_setting = {"task": "layouts", "setting": "own", "better": "", "stderr": float("nan")}
    suggested = [("suggested_cut", "first", 0.75), ("suggested_cut", "second", 0.5)]
    measured = [("kl", "first", 0.5), ("kl", "first", 0.25), ("kl", "second", 0.5)]
    rows = pd.DataFrame(
        [
            {**of_setting, "metric": metric, "method": rule, "level": level, "mean": level}
            for metric, rule, level in suggested + measured
        ]
    )

    def shown(statement):
        found = script["arguments"](SimpleNamespace(params=SimpleNamespace(plain={})), rows, statement)
        return layout(**found, bold="{}")

    assert shown(script["STATEMENTS"]["suggestions"])["suggested_cut"].tolist() == ["0.75"]
    assert shown(script["STATEMENTS"]["cuts"])["level"].tolist() == ["0.25", "0.5"]

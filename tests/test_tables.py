import math

import numpy as np
import pandas as pd
import pytest

from graft.tables import COLUMNS, gains, layout, summarise, with_published, write_csv, write_layouts


@pytest.fixture
def values():
    """Three seeds of two methods and two metrics, with a method that has one seed."""
    rng = np.random.default_rng(0)
    rows = [
        {"method": method, "steps": steps, "metric": metric, "seed": seed, "value": rng.normal()}
        for method, steps in (("inc", 2), ("base", 16), ("base", 8))
        for metric in ("FD", "recall")
        for seed in (range(1) if steps == 16 else range(3))
    ]
    return pd.DataFrame(rows)


KEYS = ["method", "steps", "metric"]


def test_mean_and_standard_error_over_seeds(values):
    table = summarise(values, KEYS)
    assert list(table.columns) == [*KEYS, "mean", "stderr", "seeds"]
    assert len(table) == 6
    for row in table.itertuples():
        found = values[(values["method"] == row.method) & (values["steps"] == row.steps)]
        found = found[found["metric"] == row.metric]["value"].to_numpy()
        assert row.seeds == len(found)
        assert row.mean == pytest.approx(found.mean(), rel=1e-12)
        if len(found) == 1:
            assert math.isnan(row.stderr)
        else:
            assert row.stderr == pytest.approx(np.std(found, ddof=1) / math.sqrt(3), rel=1e-12)


def test_rows_stay_in_the_order_of_first_appearance(values):
    table = summarise(values.sample(frac=1, random_state=0).sort_values("metric", kind="stable"), KEYS)
    shuffled = values.sample(frac=1, random_state=0).sort_values("metric", kind="stable")[KEYS].drop_duplicates()
    assert table[KEYS].to_numpy().tolist() == shuffled.to_numpy().tolist()


def test_missing_keys_make_groups_of_their_own():
    rows = pd.DataFrame({"key": ["a", None, None], "seed": [0, 0, 1], "value": [1.0, 2.0, 4.0]})
    assert summarise(rows, ["key"])["mean"].tolist() == [1.0, 3.0]


@pytest.fixture
def table():
    rows = [
        # contest, method, metric, better, mean, stderr, ranked
        ("small", "base", "FD", "lower", 12.7, 0.31, True),
        ("small", "inc", "FD", "lower", 5.24, 0.12, True),
        ("small", "data", "FD", "lower", 0.01, 0.001, False),
        ("small", "base", "recall", "higher", 0.8, 0.01, True),
        ("small", "inc", "recall", "higher", 0.7, 0.01, True),
        ("small", "data", "recall", "higher", 0.99, 0.01, False),
        ("small", "base", "size", "", 3.0, 0.1, True),
        ("large", "base", "FD", "lower", 40.0, math.nan, True),
        ("large", "inc", "FD", "lower", 50.0, math.nan, True),
    ]
    return pd.DataFrame(rows, columns=["contest", "method", "metric", "better", "mean", "stderr", "ranked"])


def test_layout_bolds_the_best_of_each_contest_that_is_ranked(table):
    wide = layout(table, index=["contest", "method"], contest=["contest"], bold="<{}>")
    assert list(wide.columns) == ["contest", "method", "FD ↓", "recall ↑", "size"]
    found = {(row.contest, row.method): row[2:] for _, row in wide.iterrows()}
    assert list(found) == [("small", "base"), ("small", "inc"), ("small", "data"), ("large", "base"), ("large", "inc")]
    assert found["small", "base"].tolist() == ["12.7 ± 0.3", "<0.8 ± 0.01>", "3 ± 0.1"]
    assert found["small", "inc"].tolist()[:2] == ["<5.24 ± 0.1>", "0.7 ± 0.01"]
    assert found["small", "data"].tolist()[:2] == ["0.01 ± 0.001", "0.99 ± 0.01"]
    assert found["large", "base"]["FD ↓"] == "<40>"
    assert found["large", "inc"]["FD ↓"] == "50"


def test_all_that_share_the_best_mean_are_bold(table):
    table.loc[table["contest"] == "large", "mean"] = 7.0
    wide = layout(table, index=["contest", "method"], contest=["contest"], bold="<{}>")
    assert wide[wide["contest"] == "large"]["FD ↓"].tolist() == ["<7>", "<7>"]


def test_contest_in_which_nothing_is_ranked_has_no_best(table):
    table.loc[table["contest"] == "large", "ranked"] = False
    wide = layout(table, index=["contest", "method"], contest=["contest"], bold="<{}>")
    assert wide[wide["contest"] == "large"]["FD ↓"].tolist() == ["40", "50"]


def test_published_figures_stand_beside_the_rows_that_they_match(table):
    published = [
        {"contest": "small", "method": "inc", "metric": "FD", "value": 8.02, "source": "Table 5"},
        {"contest": "small", "method": "base", "metric": "KID", "value": 1.0, "source": "Table 6"},
        {"contest": "huge", "method": "inc", "metric": "FD", "value": 2.0, "source": "Table 7"},
    ]
    found = with_published(table, published, ["contest", "method", "metric"])
    pd.testing.assert_frame_equal(found[table.columns], table)
    filled = found[found["paper"].notna() | found["paper_source"].notna()]
    assert filled[["contest", "method", "metric", "paper", "paper_source"]].to_numpy().tolist() == [
        ["small", "inc", "FD", 8.02, "Table 5"]
    ]


def test_no_published_figures_leave_empty_columns(table):
    found = with_published(table, [], ["contest", "method", "metric"])
    assert len(found) == len(table)
    assert found[["paper", "paper_source"]].isna().all(axis=None)


def test_csv_keeps_nine_digits_and_is_the_same_twice(tmp_path):
    rows = [{"method": "base", "mean": 1 / 3, "samples": 2048, "paper": math.nan}]
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, rows)
    assert (tmp_path / "a.csv").read_bytes() == b"method,mean,samples,paper\nbase,0.333333333,2048,\n"
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_columns_of_the_final_tables():
    expected = "task,method,metric,better,mean,stderr,seeds,samples,paper,paper_source"
    assert ",".join(COLUMNS) == expected


def test_markdown_and_latex_hold_the_same_cells(table, tmp_path):
    table = table.assign(method=table["method"].replace("inc", "inc_straight"))
    arguments = {"table": table, "index": ["contest", "method"], "contest": ["contest"]}
    write_layouts(tmp_path / "table.md", tmp_path / "table.tex", {"": arguments})
    markdown, latex = (tmp_path / "table.md").read_text(), (tmp_path / "table.tex").read_text()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    assert cells[0] == ["contest", "method", "FD ↓", "recall ↑", "size"]
    assert cells[3][1:4] == ["inc_straight", "**5.24 ± 0.1**", "0.7 ± 0.01"]
    assert len(cells) == 2 + 5
    assert r"small & inc\_straight & \textbf{5.24 $\pm$ 0.1} & 0.7 $\pm$ 0.01 &" in latex
    assert r"FD $\downarrow$ & recall $\uparrow$" in latex
    assert latex.count(r"\textbf") == 3
    assert r"\toprule" in latex
    assert latex.isascii()


def test_several_tables_stand_one_below_the_other_under_their_titles(table, tmp_path):
    small, large = (
        {"table": rows, "index": ["contest", "method"], "contest": ["contest"]} for rows in (table[:1], table)
    )
    write_layouts(tmp_path / "t.md", tmp_path / "t.tex", {"A few": small, "All of 100 %": large})
    blocks = (tmp_path / "t.md").read_text().split("\n\n")
    assert blocks[0::2] == ["## A few", "## All of 100 %"]
    assert [len(block.splitlines()) for block in blocks[1::2]] == [3, 7]
    latex = (tmp_path / "t.tex").read_text()
    assert latex.count(r"\toprule") == 2
    assert "% All of 100 %\n\\begin{tabular}" in latex


def test_percentages_end_no_line_of_latex(table, tmp_path):
    """An unescaped % would make a comment of the rest of its row."""
    noted = table.assign(note="+5 %")
    arguments = {"table": noted, "index": ["contest", "method", "note"], "contest": ["contest"]}
    write_layouts(tmp_path / "t.md", tmp_path / "t.tex", {"": arguments})
    assert r"+5 \% &" in (tmp_path / "t.tex").read_text()


def test_what_float32_leaves_of_a_zero_is_shown_as_zero(table):
    tiny = table.assign(mean=table["mean"].where(table["metric"] != "FD", -2e-8))
    wide = layout(tiny, index=["contest", "method"], contest=["contest"], bold="{}")
    assert wide["FD ↓"].str.startswith("0").all()


def test_lines_stay_in_the_order_of_the_table(table):
    """Not in that in which the values of each column first appear."""
    levels = pd.DataFrame({"setting": ["a", "a", "b", "b", "b"], "level": [0.1, 0.4, 0.1, 0.2, 0.4]})
    levels = levels.assign(metric="kl", better="", mean=1.0, stderr=0.1, ranked=False)
    wide = layout(levels, index=["setting", "level"], contest=["setting"], bold="{}")
    assert wide["level"].tolist() == levels["level"].tolist()


def test_missing_cells_are_empty(table, tmp_path):
    """Only one row has a size."""
    arguments = {"table": table, "index": ["contest", "method"], "contest": ["contest"]}
    write_layouts(tmp_path / "table.md", tmp_path / "table.tex", {"": arguments})
    assert "nan" not in (tmp_path / "table.md").read_text()
    assert "nan" not in (tmp_path / "table.tex").read_text()


def test_gains_are_paired_by_seed():
    """Methods share what a seed does to them: the error of the difference is far below that of either."""
    rng = np.random.default_rng(0)
    seed_effect, tuned_effect = rng.normal(size=4), 0.1 * rng.normal(size=4)
    values = pd.DataFrame(
        {"method": method, "control_self": "self", "metric": "reward", "seed": seed, "value": value}
        for method, column in (("self", seed_effect), ("graft", 1 + seed_effect + tuned_effect))
        for seed, value in enumerate(column)
    ).sample(frac=1, random_state=1)
    found = gains(values, ["method", "metric"], ["self"]).set_index("method")
    assert found.loc["graft", "over_self"] == pytest.approx((1 + tuned_effect).mean(), rel=1e-12)
    assert found.loc["graft", "over_self_stderr"] == pytest.approx(tuned_effect.std(ddof=1) / 2, rel=1e-12)
    assert found.loc["self", ["over_self", "over_self_stderr"]].tolist() == [0, 0]


def test_a_gain_over_a_control_that_is_not_there_is_empty():
    rows = [
        {"method": "graft", "control_self": None, "metric": "reward", "seed": seed, "value": 1.0} for seed in (0, 1)
    ]
    assert gains(pd.DataFrame(rows), ["method", "metric"], ["self"])["over_self"].isna().all()


def test_reference_demo_meets_its_acceptance_line(repository):
    """At the cost of the base at 8 steps, within a tenth, a corrector makes it better than the base at 16."""
    table = pd.read_csv(repository / "results/reference/demo/images.csv")
    table = table[table["metric"].str.startswith("FD")]
    base = table[table["method"] == "base"].set_index("base_steps")
    corrected = table[(table["method"] == "inc_trigonometric") & (table["base_steps"] == 8)]
    affordable = corrected[corrected["gflops_per_image"] <= 1.1 * base["gflops_per_image"].loc[8]]
    assert (affordable["mean"] < base["mean"].loc[16]).any()

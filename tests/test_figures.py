"""What figures show."""

import pandas as pd
import pytest
import yaml

from graft.figures import _compared, method_style, pictured
from graft.noise_correction import SHIFT_AND_SCALE, Chain


@pytest.mark.parametrize("scale", ["config", "gpu", "paper"])
def test_no_two_methods_of_a_scale_look_alike(repository, scale):
    config = yaml.safe_load((repository / f"config/{scale}.yaml").read_text())
    for name, setting in config["molecules"]["settings"].items():
        methods = ["base", *setting["methods"]]
        styles = [method_style(methods, method) for method in methods]
        assert len({(style["color"], style["marker"]) for style in styles}) == len(methods), name


def test_the_best_chain_is_the_one_of_lowest_distance():
    rows = pd.DataFrame(
        [
            ("base", 8, 0, 3.0),
            ("shift_and_scale", 8, 0, 2.9),
            ("inc_straight", 8, 2, 2.5),
            ("inc_straight", 8, 4, 2.0),
            ("inc_straight", 16, 2, 0.1),
        ],
        columns=["method", "base_steps", "corrector_steps", "mean"],
    ).assign(metric="FD")
    assert _compared(rows) == [Chain(8), Chain(16), Chain(8, SHIFT_AND_SCALE), Chain(8, "straight", 4)]
    with pytest.raises(ValueError, match="by which"):
        _compared(pd.concat([rows, rows.assign(metric="recall")]))


def test_the_pictures_are_of_base_control_best_selection_and_best_of_all():
    """A control is tuned on what nobody selected, however high its reward."""
    rows = pd.DataFrame(
        [
            ("base", 0.5, None, "self"),
            ("self", 0.4, 0.0, "self"),
            ("self_25", 0.9, 0.25, "self_25"),
            ("graft", 0.6, 0.0, "self"),
            ("pgraft_25", 0.7, 0.25, "self_25"),
            ("ddpo", 0.8, None, "self"),
        ],
        columns=["method", "mean", "cut", "control"],
    ).assign(metric="reward")
    other = rows.assign(metric="accuracy", mean=-rows["mean"])
    without = rows["method"].isin(["self", "self_25"])
    assert pictured(pd.concat([other, rows[rows["method"] != "self_25"]])) == ["base", "self", "pgraft_25", "ddpo"]
    assert pictured(rows) == ["base", "self", "pgraft_25", "self_25"]
    assert pictured(rows[~without & (rows["method"] != "ddpo")]) == ["base", "pgraft_25"]
    assert pictured(rows[rows["method"].isin(["base", "ddpo"])]) == ["base", "ddpo"]

"""What figures show."""

import pandas as pd
import pytest
import yaml

from graft.figures import _compared, method_style
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

"""What figures show."""

import pytest
import yaml

from graft.figures import method_style


@pytest.mark.parametrize("scale", ["config", "gpu", "paper"])
def test_no_two_methods_of_a_scale_look_alike(repository, scale):
    config = yaml.safe_load((repository / f"config/{scale}.yaml").read_text())
    for name, setting in config["molecules"]["settings"].items():
        methods = ["base", *setting["methods"]]
        styles = [method_style(methods, method) for method in methods]
        assert len({(style["color"], style["marker"]) for style in styles}) == len(methods), name

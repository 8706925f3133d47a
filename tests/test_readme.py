"""What the READMEs promise: commands that start, examples that are accepted, links that lead somewhere."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from test_workflow import REPOSITORY, Checkout

READMES = [
    "README.md",
    "config/README.md",
    "resources/digits/README.md",
    "resources/molecules_base/README.md",
    "resources/pages/README.md",
]


def commands():
    """Every snakemake command of a README, on a line of its own or within a line."""
    for name in READMES:
        yield from re.findall(r"^`?(snakemake --[^`\n]*)", (REPOSITORY / name).read_text(), flags=re.MULTILINE)


def examples():
    """The example files of config/README.md, by the names that their first lines give them."""
    text = (REPOSITORY / "config/README.md").read_text()
    found = re.findall(r"```(?:yaml|python)\n(# (\S+\.(?:yaml|py)).*?)```", text, flags=re.DOTALL)
    return {name.rstrip(":,"): block for block, name in found}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with the files that the examples have their user write."""
    checkout = Checkout(tmp_path_factory.mktemp("readme"))
    for name, text in examples().items():
        (checkout.folder / name).write_text(text)
    copied = (REPOSITORY / "config/assets.yaml").read_text()
    (checkout.folder / "my_assets.yaml").write_text(copied + examples()["my_assets.yaml"])
    return checkout


@pytest.mark.parametrize("command", list(commands()))
def test_commands_start(checkout, command):
    # The cluster's executor is a plugin that the project does not install.
    words = shlex.split(command.replace("--workflow-profile profiles/slurm", "--cores 1"))[1:]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", *words],
        cwd=checkout.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_commands_are_found():
    found = list(commands())
    assert any("config/gpu.yaml" in command for command in found)
    assert any("my.yaml" in command for command in found)
    assert any("mine.yaml" in command for command in found)


def test_the_example_of_a_reward_is_one():
    namespace = {}
    exec(examples()["my_reward.py"], namespace)
    positions = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    assert namespace["compactness"](positions, np.array([1, 1])) == pytest.approx(-1.0)


@pytest.mark.parametrize("name", READMES)
def test_links_lead_to_files(name):
    text, folder = (REPOSITORY / name).read_text(), (REPOSITORY / name).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert not [link for link in links if not (folder / link).exists()]

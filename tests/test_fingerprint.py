import ast
import re
import shutil

import pytest

from graft.fingerprint import fingerprint
from graft.tasks import TASKS

FILES = {
    "train.py": '''
        """Script."""
        from graft.losses import loss
        from graft.networks.small import Network

        def main(job):
            """Train."""
            return loss(Network(job))

        main(snakemake)
    ''',
    "graft/__init__.py": '"""Package."""',
    "graft/losses.py": '''
        """Losses."""
        from graft.helpers import halve

        SCALE = 2
        """Factor of the loss."""

        def loss(x):
            """Loss of x."""
            # scaled
            return halve(SCALE * x)

        def never_called(x):
            return x + 1
    ''',
    "graft/helpers.py": """
        def halve(x):
            return x / 2

        def unused(x):
            return x / 3
    """,
    "graft/networks/__init__.py": "",
    "graft/networks/small.py": """
        import torch

        class Network(torch.nn.Module):
            width = 3

            def __init__(self, job):
                self.job = self.helper(job)

            def forward(self, x):
                return x + self.job

            def helper(self, x):
                return x
    """,
    "graft/metrics.py": """
        def measure(x):
            return x
    """,
}


@pytest.fixture
def write(tmp_path):
    """Writes FILES with some text replaced, each time into a folder of its own, and returns the script."""
    number = iter(range(100))

    def write(changes=()):
        folder = tmp_path / str(next(number)) / "scripts"
        for name, text in FILES.items():
            lines = [line[8:] if line.startswith("        ") else line for line in text.strip("\n").split("\n")]
            text = "\n".join(lines).rstrip() + "\n"
            for file, old, new in changes:
                if file == name:
                    assert text.count(old) == 1
                    text = text.replace(old, new)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return folder / "train.py"

    return write


def test_same_code_has_the_same_fingerprint_wherever_it_lies(write):
    assert fingerprint(write()) == fingerprint(write())


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("graft/losses.py", "# scaled", "# scaled, as in the paper"),
        ("graft/losses.py", "    # scaled\n", ""),
        ("graft/losses.py", "Loss of x.", "The loss of a batch."),
        ("graft/losses.py", '"""Losses."""', '"""All the losses."""\n\n'),
        ("graft/losses.py", "Factor of the loss.", "What the loss is multiplied by."),
        ("graft/losses.py", "halve(SCALE * x)", "halve(\n        SCALE * x\n    )"),
        ("train.py", '"""Script."""', "# A script."),
        ("train.py", '    """Train."""\n', ""),
    ],
    ids=["comment", "no comment", "docstring", "module", "constant's docstring", "layout", "script", "main"],
)
def test_descriptions_do_not_count(write, file, old, new):
    assert fingerprint(write([(file, old, new)])) == fingerprint(write())


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("graft/losses.py", "SCALE * x", "SCALE + x"),
        ("graft/losses.py", "SCALE = 2", "SCALE = 3"),
        ("graft/helpers.py", "x / 2", "x / 4"),
        ("graft/networks/small.py", "width = 3", "width = 4"),
        ("graft/networks/small.py", "return x\n", "return 2 * x\n"),
        ("graft/networks/small.py", "self.helper(job)", "job and self.helper(job)"),
        ("graft/networks/small.py", "x + self.job", "x - self.job"),
        ("train.py", "loss(Network(job))", "loss(Network(None))"),
        ("train.py", "main(snakemake)", "main(None)"),
    ],
    ids=[
        "function",
        "constant",
        "function of a function",
        "class attribute",
        "method",
        "__init__",
        "method that only a framework calls",
        "script",
        "script's statement",
    ],
)
def test_reached_code_counts(write, file, old, new):
    assert fingerprint(write([(file, old, new)])) != fingerprint(write())


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("graft/losses.py", "x + 1", "x + 2"),
        ("graft/helpers.py", "x / 3", "x / 4"),
        ("graft/metrics.py", "return x", "return -x"),
    ],
    ids=["function", "function of another module", "module"],
)
def test_code_out_of_reach_does_not_count(write, file, old, new):
    assert fingerprint(write([(file, old, new)])) == fingerprint(write())


def test_code_that_comes_into_reach_counts(write):
    call = ("train.py", "loss(Network(job))", "never_called(Network(job))")
    edit = ("graft/losses.py", "x + 1", "x + 2")
    imported = ("train.py", "import loss", "import never_called")
    assert fingerprint(write([call, imported])) != fingerprint(write([call, imported, edit]))


HEIRS = """
from graft.networks.small import Network

class Plain:
    def called(self, x):
        return x

class Heir(Plain):
    def named(self, x):
        return self.called(x) + 1

    def unnamed(self, x):
        return x + 2

class Framed(Network):
    def unnamed(self, x):
        return x + 3

def measure(x):
    return Heir().named(x), Framed(x)
"""
"""In place of `graft/metrics.py`: classes that inherit within the package, one of them from a framework in the end."""


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("self.called(x) + 1", "self.called(x) + 4", True),
        ("return x\n", "return -x\n", True),
        ("x + 2", "x + 4", False),
        ("x + 3", "x + 4", True),
    ],
    ids=["method", "inherited method", "method that nothing names", "method of a framework's class"],
)
def test_methods_of_classes_that_inherit_from_plain_ones_count_where_they_are_named(write, old, new, counts):
    def script(text):
        measured = ("train.py", "from graft.losses import loss", "from graft.metrics import measure as loss")
        return write([measured, ("graft/metrics.py", "def measure(x):\n    return x", text.strip())])

    assert HEIRS.count(old) == 1
    assert (fingerprint(script(HEIRS)) != fingerprint(script(HEIRS.replace(old, new)))) == counts


@pytest.mark.parametrize("statement", ["from graft import helpers", "import graft.helpers as helpers"])
def test_modules_are_followed_however_they_are_imported(write, statement):
    imported = ("graft/losses.py", "from graft.helpers import halve", statement)
    called = ("graft/losses.py", "return halve", "return helpers.halve")
    edit = ("graft/helpers.py", "x / 2", "x / 4")
    assert fingerprint(write([imported, called])) != fingerprint(write([imported, called, edit]))


@pytest.fixture
def copy(repository, tmp_path):
    """A copy of the workflow's scripts; with `edit`, each function of that name in `file` starts with a statement."""
    number = iter(range(100))

    def copy(file=None, edit=None):
        folder = tmp_path / str(next(number)) / "scripts"
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(repository / "workflow" / "scripts", folder, ignore=ignore)
        if file:
            tree = ast.parse((folder / file).read_text())
            functions = [node for node in ast.walk(tree) if getattr(node, "name", None) == edit]
            assert functions
            for function in functions:
                function.body.append(ast.parse("edited = 1").body[0])
            (folder / file).write_text(ast.unparse(tree))
        return folder

    return copy


def changed(before, after):
    """Names of the scripts whose fingerprints differ."""
    scripts = sorted(path.name for path in before.glob("*.py"))
    assert scripts == sorted(path.name for path in after.glob("*.py"))
    return {name for name in scripts if of_images(before / name) != of_images(after / name)}


def of_images(script):
    """A script's fingerprint as the rules ask for it, for a job on images."""
    return fingerprint(script, task="images" if "task_of" in script.read_text() else None)


def test_editing_the_inversion_concerns_the_inversion(copy):
    scripts = changed(copy(), copy("graft/inversion.py", "solve_step"))
    assert "invert_data.py" in scripts
    assert not {"train_base.py", "sample_chains.py", "prepare_data.py", "evaluate_samples.py"} & scripts


def test_editing_a_metric_concerns_the_evaluation(copy):
    scripts = changed(copy(), copy("graft/metrics/images.py", "distances"))
    assert "evaluate_samples.py" in scripts
    assert not {"train_base.py", "sample_chains.py", "invert_data.py"} & scripts


def test_editing_a_task_concerns_its_own_jobs(copy):
    before, after = copy(), copy("graft/tasks/molecules.py", "encode")
    assert changed(before, after) == set()
    scripts = [folder / "train_base.py" for folder in (before, after)]
    assert len({fingerprint(script, task="molecules") for script in scripts}) == 2


@pytest.mark.parametrize(
    ("file", "function"),
    [("graft/metrics/molecules.py", "largest_fragment"), ("graft/tasks/molecules.py", "drug_likeness")],
)
def test_editing_a_metric_or_a_reward_of_molecules_draws_and_trains_no_base(copy, file, function):
    before, after = copy(), copy(file, function)
    scripts = [path.name for path in before.glob("*.py") if "task_of" in path.read_text()]
    changed = {
        name
        for name in scripts
        if fingerprint(before / name, task="molecules") != fingerprint(after / name, task="molecules")
    }
    assert {"score_rollouts.py", "evaluate_models.py"} <= changed
    assert not {"prepare_data.py", "train_base.py", "draw_rollouts.py"} & changed


@pytest.mark.parametrize("function", ["denoiser", "weight", "denoising_loss", "build_network"])
def test_editing_what_tasks_share_concerns_all_that_inherit_it(copy, function):
    before, after = (folder / "train_base.py" for folder in (copy(), copy("graft/tasks/sets.py", function)))
    changed = {task for task in TASKS if fingerprint(before, task=task) != fingerprint(after, task=task)}
    assert changed == {"molecules", "layouts"}


def test_method_of_a_task_that_a_job_does_not_call_does_not_count(copy):
    assert "train_base.py" not in changed(copy(), copy("graft/tasks/images.py", "decode"))
    assert "sample_chains.py" in changed(copy(), copy("graft/tasks/images.py", "decode"))


def test_editing_the_objective_concerns_training(copy):
    scripts = changed(copy(), copy("graft/objectives.py", "flow_matching"))
    assert {"train_base.py", "train_correctors.py"} <= scripts
    assert not {"sample_chains.py", "invert_data.py", "prepare_data.py"} & scripts


def test_editing_the_sampler_does_not_train_anything(copy):
    scripts = changed(copy(), copy("graft/sampling.py", "sample"))
    assert {"sample_chains.py", "invert_data.py"} <= scripts
    assert not {"train_base.py", "train_correctors.py"} & scripts


def test_editing_the_classifier_concerns_its_training_and_the_evaluation(copy):
    """`forward` and `features` are called by torch and torch-fidelity, not by name."""
    assert "train_features.py" in changed(copy(), copy("graft/networks/classifier.py", "forward"))
    assert "evaluate_samples.py" in changed(copy(), copy("graft/networks/classifier.py", "features"))
    assert "evaluate_samples.py" in changed(copy(), copy("graft/metrics/images.py", "forward"))


def test_comments_and_docstrings_of_the_workflow_do_not_count(copy):
    after = copy()
    for path in after.rglob("*.py"):
        text, count = re.subn(r'^( *""")(?=[A-Za-z`])', r"\1Or so: ", path.read_text(), flags=re.MULTILINE)
        assert count or not text
        path.write_text(f"# A comment.\n{text}\n# Another.\n")
    assert changed(copy(), after) == set()

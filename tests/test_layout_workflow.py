"""Layouts as their users run them: classes drawn and given through the whole chain, and what is refused."""

import inspect

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_workflow import TINY_DDPO, TINY_TRAINING, Checkout, alone, finished_run, merged

from graft.files import read_json
from graft.layout_formats import CLASSES
from graft.shards import TensorFile
from graft.tasks.layouts import Layouts, load_judge, pages

REJECTION = {"rule": None, "cut": 0.0, "deduplicate": False, "learning_rate": 1e-2}
NETWORK = {"width": 8, "depth": 1, "heads": 2}
DRAWN = {
    "data": {"asset": "synthetic_pages", "shards": 1},
    "points": {"max_elements": 4, "rollouts_per_condition": None},
    "base": {"pretrained": None, "network": NETWORK, "training": TINY_TRAINING},
    "judges": {"pretrained": None, "batch_size": 256, "network": NETWORK, "training": TINY_TRAINING},
    "sampler": {"steps": 4, "shift": 1.0, "eta": 1.0, "batch_size": 64},
    "reward": {
        "function": "tidiness",
        "weights": {"alignment": 1.0, "overlap": 3.0, "realism": 0.25},
        "max_failed": 0.0,
    },
    "rollouts": {"samples": 64, "shards": 1, "rounds": 1},
    "fine_tuning": {"jobs": 1, "training": {"steps": 4, "batch_size": 32, "ema_decay": 0.0}},
    "methods": {
        "self": REJECTION,
        "graft": {**REJECTION, "rule": {"type": "TopK", "k": 1, "m": 4}},
        "pgraft_50": {**REJECTION, "rule": {"type": "TopK", "k": 1, "m": 4}, "cut": 0.5},
        "ddpo": {**TINY_DDPO, "clip": 0.2, "learning_rate": 1e-2},
    },
    "tuning": {"seed": 1000, "learning_rates": [1e-3]},
    "evaluation": {"samples": 64, "shards": 1, "branched": 16, "branches": 2, "levels": [1.0]},
}
"""Classes drawn with the boxes, tidiness with realism as the reward."""

GIVEN = {
    **DRAWN,
    "points": {"max_elements": 4, "rollouts_per_condition": 4},
    "reward": {**DRAWN["reward"], "function": "my_layout_reward:illustrated"},
}
"""Classes given, a user's function as the reward."""

SETTINGS = {"drawn": DRAWN, "given": GIVEN}
TASKS = {name: Layouts(**setting["points"]) for name, setting in SETTINGS.items()}
MODELS, DATA = ["base", *DRAWN["methods"]], ["data_test", "data_train"]
TIDY, COMPARED = {"alignment_x100", "overlap"}, {"maximum_iou", "fd_layout_network"}
TABLE, FIGURE = "results/demo/tables/layouts.csv", "results/demo/figures/layouts.png"
FOLDER = "results/demo/layouts/{}"
TARGETS = ("table_layouts", "figure_layouts")


def illustrated(boxes, names):
    """The share of the page that figures and tables take, boxes (n, 4)."""
    shown = [name in ("figure", "table") for name in names]
    return (boxes[:, 2] * boxes[:, 3])[shown].sum()


class LayoutCheckout(Checkout):
    """A checkout with a user's reward, which runs both settings, or those that it is told."""

    def __init__(self, folder, results=None):
        super().__init__(folder, results)
        (folder / "my_layout_reward.py").write_text(inspect.getsource(illustrated))

    def run(self, *targets, arguments=(), settings=None):
        return super().run(*targets, config=alone("layouts", settings or SETTINGS), arguments=arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(LayoutCheckout(tmp_path_factory.mktemp("finished")), *TARGETS)


@pytest.fixture(scope="module")
def table(finished):
    return pd.read_csv(finished.folder / TABLE)


def samples_of(checkout, name, model, stage="final"):
    """The samples of a model, as they are measured."""
    folder = checkout.folder / FOLDER.format(name)
    shard = folder / f"seed0/{stage}/{'base' if model == 'base' else 'jobs0'}/shard0.safetensors"
    return TASKS[name].load_samples([shard], model, folder / "data")


def conditions_of(checkout, name, stage):
    return TensorFile(checkout.folder / FOLDER.format(name) / f"seed0/{stage}/base/shard0.safetensors").group(
        "condition"
    )


def test_the_table_has_real_pages_base_and_every_method_with_four_metrics(table):
    for name, rows in table.groupby("setting"):
        assert list(dict.fromkeys(rows["method"])) == [*DATA, *MODELS], name
        for method, found in rows.groupby("method"):
            expected = TIDY | {"reward"} | (COMPARED if method != "data_test" else set())
            assert set(found["metric"]) == expected, (name, method)
    assert set(table["setting"]) == set(SETTINGS)
    assert table["mean"].notna().all()
    samples = table.groupby("method")["samples"].unique()
    assert all(samples[method].tolist() == [64] for method in [*MODELS, "data_train"])
    assert samples["data_test"].tolist() == [2000]


def test_better_is_lower_for_all_metrics_but_maximum_iou_and_reward(table):
    better = table.groupby("metric")["better"].unique().map(list).to_dict()
    assert better == {
        "alignment_x100": ["lower"],
        "overlap": ["lower"],
        "fd_layout_network": ["lower"],
        "maximum_iou": ["higher"],
        "reward": ["higher"],
    }


def test_gains_have_the_sign_of_the_difference_and_real_pages_have_none(table):
    """A negative gain in a metric of which less is better is an improvement."""
    keys = ["setting", "metric"]
    models = table[table["method"].isin(MODELS)]
    for control in ("base", "self"):
        means = models[models["method"] == control].set_index(keys)["mean"]
        difference = models["mean"].to_numpy() - means[models.set_index(keys).index].to_numpy()
        np.testing.assert_allclose(models[f"over_{control}"], difference, rtol=0, atol=1e-7)
    overlaps = models[(models["metric"] == "overlap") & (models["method"] != "base")]
    assert (overlaps["over_base"] != 0).any()
    np.testing.assert_array_equal(np.sign(overlaps["over_base_percent"]), np.sign(overlaps["over_base"]))
    real = table[table["method"].isin(DATA)]
    assert real[["over_base", "over_base_percent", "over_self", "over_self_percent"]].isna().all(axis=None)


def test_real_pages_are_never_bold_though_no_model_beats_them(finished, table):
    """In each setting and metric one model is bold, the best; pages of the data lie so much better here."""
    head, _, *lines = (finished.folder / TABLE).with_suffix(".md").read_text().splitlines()
    names = [cell.strip() for cell in head.strip("|").split("|")]
    cells = [dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines]
    assert [row["method"] for row in cells] == 2 * [*DATA, *MODELS]
    assert not any("**" in cell for row in cells if row["method"] in DATA for cell in row.values())
    for (name, metric), rows in table.groupby(["setting", "metric"]):
        arrow, best = ("↓", "idxmin") if rows["better"].iloc[0] == "lower" else ("↑", "idxmax")
        means = rows.set_index("method")["mean"]
        bold = [row["method"] for row in cells if row["setting"] == name and "**" in row[f"{metric} {arrow}"]]
        assert getattr(means[MODELS], best)() in bold, (name, metric)
        if metric != "reward":
            assert getattr(means, best)() in DATA, (name, metric)


@pytest.mark.parametrize("name", SETTINGS)
def test_metrics_are_those_of_the_kept_samples(finished, table, cpu, name):
    """Under the network that the run has trained, against the held-out pages; rewards are the setting's function."""
    folder, task = finished.folder / FOLDER.format(name), TASKS[name]
    reference = task.reference(folder / "data", {"features": folder / "judges/features", "batch_size": 100}, cpu)
    samples = {"pgraft_50": samples_of(finished, name, "pgraft_50"), **task.real(folder / "data", 64, seed=0)}
    for method, found in samples.items():
        expected = task.metrics(found, reference)
        if name == "drawn":
            realism = load_judge(folder / "judges/reward", cpu.device).realism_of(*found, batch_size=100)
            expected["reward"] = -expected["alignment_x100"] - 3 * expected["overlap"] + 0.25 * realism.mean().item()
        else:
            shown = (found.classes == CLASSES.index("table") + 1) | (found.classes == CLASSES.index("figure") + 1)
            expected["reward"] = (found.boxes[..., 2:].prod(dim=2) * shown).sum(dim=1).double().mean().item()
        rows = table[(table["setting"] == name) & (table["method"] == method)]
        means = rows.set_index("metric")["mean"].to_dict()
        assert means == pytest.approx(expected, rel=1e-5, abs=1e-6), method


def test_given_classes_are_kept_through_the_chain_and_come_from_the_right_pages(finished):
    """Rollouts: four of each training page; evaluation: one of each held-out page, the same for every model."""
    data = str(finished.folder / FOLDER.format("given") / "data")
    for stage, length, held_out in (("round1", 4, False), ("final", 1, True)):
        condition = conditions_of(finished, "given", stage)
        assert len(condition["page"].unique()) == 64 // length, stage
        assert (condition["page"].reshape(-1, length) == condition["page"][::length, None]).all(), stage
        expected = pages(data, held_out)[1][condition["page"]].long()
        for model in MODELS if stage == "final" else ["base"]:
            assert samples_of(finished, "given", model, stage).classes.equal(expected), (stage, model)


def test_drawn_pages_have_the_numbers_of_elements_of_the_condition_whatever_the_model(finished):
    elements = conditions_of(finished, "drawn", "final")["elements"]
    assert len(elements.unique()) == 2
    for model in MODELS:
        assert samples_of(finished, "drawn", model).mask.sum(dim=1).equal(elements), model


def test_rewards_are_compared_within_the_pages_of_given_classes(finished):
    seed = finished.folder / FOLDER.format("given") / "seed0"
    scores, selected = (pd.read_csv(seed / "round1" / name) for name in ("base/scores0.csv", "jobs0/selected.csv"))
    assert scores["group"].tolist() == conditions_of(finished, "given", "round1")["page"].tolist()
    accepted = scores.loc[selected.loc[selected["method"] == "graft", "index"]].set_index("group")["reward"]
    pd.testing.assert_series_equal(accepted.sort_index(), scores.groupby("group")["reward"].max())
    scores = pd.read_csv(finished.folder / FOLDER.format("drawn") / "seed0/round1/base/scores0.csv")
    assert (scores["group"] == 0).all()


def test_the_figure_and_the_pictures_of_all_rows_open(finished):
    with Image.open(finished.folder / FIGURE) as figure:
        figure.load()
        assert figure.format == "PNG"
        assert min(figure.size) > 500
        assert len(figure.convert("L").getcolors()) > 10, "something is drawn"
    assert (finished.folder / FIGURE).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    for name in SETTINGS:
        folder = finished.folder / FOLDER.format(name) / "seed0/pictures"
        assert {path.stem for path in folder.glob("*.png")} == {*DATA, *MODELS}
        sizes = {Image.open(path).size for path in folder.glob("*.png")}
        assert len(sizes) == 1


def test_judges_and_their_accuracies_are_recorded(finished):
    judges = finished.folder / FOLDER.format("drawn") / "judges"
    found = read_json(judges / "accuracy.json")
    assert found.keys() == {"features", "reward"}
    for accuracy in found.values():
        assert accuracy.keys() == {"real_recognised", "disturbed_recognised"}
        assert all(0 <= share <= 1 for share in accuracy.values())
    weights = [(judges / name / "diffusion_pytorch_model.safetensors").read_bytes() for name in found]
    assert weights[0] != weights[1], "two judges"


def test_a_finished_run_is_finished(finished):
    assert finished.planned(*TARGETS) == set()


def test_what_one_run_has_trained_serves_another(finished, tmp_path):
    """Which trains neither the base nor the judges."""
    own = finished.folder / FOLDER.format("drawn")
    base = {**DRAWN["base"], "pretrained": str(own / "base")}
    pretrained = {name: str(own / "judges" / name) for name in ("features", "reward")}
    judges = {**DRAWN["judges"], "pretrained": pretrained}
    checkout, settings = LayoutCheckout(tmp_path), {"drawn": {**DRAWN, "base": base, "judges": judges}}
    assert "train_judges" not in checkout.planned(*TARGETS, settings=settings)
    done = checkout.run(f"{FOLDER.format('drawn')}/base", settings=settings)
    assert done.returncode == 0, done.stderr[-5000:]
    weights = "base/diffusion_pytorch_model.safetensors"
    assert checkout.bytes(f"{FOLDER.format('drawn')}/{weights}") == (own / weights).read_bytes()


@pytest.mark.parametrize(
    ("blocks", "complaint"),
    [
        ({"reward": {"wieghts": {}}}, "reward: unknown key 'wieghts', did you mean 'weights'?"),
        (
            {"reward": {"weights": {"aligment": 1.0}}},
            "reward.weights: unknown key 'aligment', did you mean 'alignment'?",
        ),
        (
            {"points": {"rollout_per_condition": 4}},
            "unknown key 'rollout_per_condition', did you mean 'rollouts_per_condition'?",
        ),
        (
            {"points": {"rollouts_per_condition": 3}},
            "methods.graft.rule.m: 4 is more than points.rollouts_per_condition = 3, and rules accept within a",
        ),
        (
            {"methods": {"graft": {"rule": {"type": "BestOf", "n": 8, "k": None, "m": None}}}},
            "methods.graft.rule.n: 8 is more than points.rollouts_per_condition = 4, and rules accept within a",
        ),
        (
            {"reward": {"function": "tidiness"}, "judges": {"pretrained": {"features": "some/folder"}}},
            "reward.weights.realism: needs a judge; name its folder in judges.pretrained.reward, or set",
        ),
    ],
    ids=["weights", "alignment", "rollouts_per_condition", "TopK", "BestOf", "realism"],
)
def test_a_bad_configuration_is_one_clear_line(finished, blocks, complaint):
    done = finished.run(*TARGETS, arguments=["--dry-run"], settings={"given": merged(GIVEN, blocks)})
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: configuration: layouts.settings.given.")
    assert complaint in line

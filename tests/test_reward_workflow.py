"""The reward chain as its users run it: own molecules, models and rewards, rounds, shards, and what is refused."""

import inspect
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from test_workflow import REPOSITORY, TINY_DDPO, TINY_TRAINING, Checkout, failing, merged

from graft.branching import fixed_share
from graft.fine_tuning import tune_on_snapshots
from graft.objectives import Anchor, FocusedTimes
from graft.rollouts import SamplerSettings, roll_out
from graft.seeding import ChunkedNormal, Draw
from graft.shards import ShardedTensor, TensorFile
from graft.tasks.molecules import Molecules
from graft.training import TrainingSettings, train

REJECTION = {"rule": None, "cut": 0.0, "deduplicate": False, "learning_rate": 1e-3}
DDPO = {**TINY_DDPO, "clip": 0.2, "learning_rate": 1e-3}
SETTING = {
    "data": {"asset": "enumerated", "shards": 1},
    "points": {"elements": ["H", "C", "O"], "max_atoms": 6, "element_scale": 1.0},
    "base": {
        "pretrained": None,
        "network": {"width": 8, "depth": 1, "heads": 2},
        "training": TINY_TRAINING,
        "training_times": {"centre": 0.3, "spread": 1.0, "uniform": 0.5},
    },
    "sampler": {"steps": 4, "shift": 1.0, "eta": 1.0, "batch_size": 64},
    "reward": {"function": "qed", "max_failed": 0.0},
    "rollouts": {"samples": 192, "shards": 1, "rounds": 1},
    "fine_tuning": {
        "jobs": 1,
        "training": {"steps": 4, "batch_size": 32, "ema_decay": 0.9},
        "training_times": {"centre": 0.6, "spread": 0.5, "uniform": 0.1},
    },
    "methods": {
        "self": REJECTION,
        "graft": {**REJECTION, "rule": {"type": "TopK", "k": 1, "m": 3}},
        "pgraft": {**REJECTION, "rule": {"type": "Threshold", "c": 0.0}, "cut": 0.5, "deduplicate": True},
        "ddpo": DDPO,
    },
    "tuning": {"seed": 1000, "learning_rates": [1e-3]},
    "evaluation": {"samples": 128, "shards": 1, "branched": 16, "branches": 2, "levels": [0.25, 1.0]},
}
TASK = Molecules(**SETTING["points"])
FOLDER = "results/demo/molecules/{}"
TABLE = "results/demo/tables/molecules.csv"
SCORES = f"{FOLDER}/seed0/round1/base/scores0.csv"
SELECTED = f"{FOLDER}/seed0/round1/jobs0/selected.csv"
STUDY = "results/demo/theory/molecules.csv"
TARGETS = ("table_molecules", "figure_molecules", STUDY)

SHARDED = merged(SETTING, {"data": {"shards": 2}, "rollouts": {"shards": 3}, "evaluation": {"shards": 2}})
"""The same in several shards."""

OWN = {
    **SETTING,
    "data": {"asset": "mine", "shards": 1},
    "base": {**SETTING["base"], "pretrained": "my_base"},
    "reward": {"function": "my_reward:compactness", "max_failed": 0.0},
    "rollouts": {"samples": 192, "shards": 1, "rounds": 2},
    "fine_tuning": {**SETTING["fine_tuning"], "jobs": 2},
    "methods": {
        "graft": {**SETTING["methods"]["graft"], "anchored": True},
        "ddpo": DDPO,
        "pgraft": {**REJECTION, "rule": {"type": "BestOf", "n": 4}, "cut": 0.5},
    },
}
"""A user's molecules, model and reward over two rounds, in two fine-tuning jobs, of which one has DDPO alone.

GRAFT is anchored."""

WATER = "3\nwater\nO 0 0 0\nH 0.76 0.59 0\nH -0.76 0.59 0\n"
FORMALDEHYDE = "4\nformaldehyde\nC 0 0 0\nO 1.21 0 0\nH -0.55 0.94 0\nH -0.55 -0.94 0\n"


def compactness(positions, atomic_numbers):
    """Minus the radius of gyration, in angstrom."""
    return -np.sqrt(((positions - positions.mean(axis=0)) ** 2).sum(axis=1).mean())


COMPACTNESS = f"import numpy as np\n\n\n{inspect.getsource(compactness)}"


def configured(**settings):
    """The configuration that runs these settings alone."""
    return {
        "assets": "my_assets.yaml",
        "mirror": "my_files",
        "images": {"run": []},
        "molecules": {"run": list(settings), "settings": settings},
    }


def tiny(**blocks):
    """The configuration of the setting `tiny` alone, with changed blocks."""
    return configured(tiny=merged(SETTING, blocks))


class RewardCheckout(Checkout):
    """A checkout with a user's files, which runs three settings at a time unless told otherwise."""

    def __init__(self, folder, results=None):
        super().__init__(folder, results)
        assets = yaml.safe_load((REPOSITORY / "config/assets.yaml").read_text())
        files = [{"name": "mine.xyz", "sha256": None}]
        assets["mine"] = {"licence": "mine", "formats": [{"reader": "xyz", "files": files}]}
        (folder / "my_assets.yaml").write_text(yaml.safe_dump(assets))
        (folder / "my_files").mkdir()
        self.reward(COMPACTNESS)

    def run(self, *targets, config=None, arguments=()):
        config = config or configured(tiny=SETTING, sharded=SHARDED, own=OWN)
        return super().run(*targets, config=config, arguments=arguments)

    def reward(self, text):
        """Write the user's own reward."""
        (self.folder / "my_reward.py").write_text(text)

    def molecules(self, text):
        """Write the user's own molecules."""
        (self.folder / "my_files/mine.xyz").write_text(text)

    def table(self, name):
        return pd.read_csv(self.folder / name)

    def clouds(self, path, model):
        """Positions in angstrom and atomic numbers of each sample of a shard, without padding."""
        file = TensorFile(self.folder / path)
        cloud = TASK.decode(file.tensor(f"{model}.step0"), file.group("condition"))
        rows = zip(*(part.numpy() for part in cloud), strict=True)
        return [(positions[mask], numbers[mask]) for positions, numbers, mask in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of all three settings."""
    checkout = RewardCheckout(tmp_path_factory.mktemp("finished"))
    TASK.build_network({"width": 16, "depth": 1, "heads": 2}, seed=3, run=0).save_pretrained(
        checkout.folder / "my_base"
    )
    checkout.molecules((WATER + FORMALDEHYDE) * 3)
    done = checkout.run(*TARGETS)
    assert done.returncode == 0, done.stderr
    return checkout


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished.folder / "my_base", tmp_path / "my_base")  # an input: its time stamps count
    return RewardCheckout(tmp_path, results=finished)


def test_own_molecules_model_and_reward(finished):
    """The base is the user's, sizes are those of the user's molecules, each reward in a table is the function's."""
    own = FOLDER.format("own")
    taken, mine = (TASK.load_network(finished.folder / place).state_dict() for place in (f"{own}/base", "my_base"))
    assert all(torch.equal(taken[name], tensor) for name, tensor in mine.items())
    for stage, group, models in (("round1", "base", ["base"]), ("round2", "jobs0", ["graft", "pgraft"])):
        scores = finished.table(f"{own}/seed0/{stage}/{group}/scores0.csv")
        assert list(dict.fromkeys(scores["model"])) == models
        for model in models:
            clouds = finished.clouds(f"{own}/seed0/{stage}/{group}/shard0.safetensors", model)
            assert {len(numbers) for _, numbers in clouds} == {3, 4}
            expected = [compactness(*cloud) for cloud in clouds]
            np.testing.assert_allclose(scores.loc[scores["model"] == model, "reward"], expected, rtol=1e-6)
    table = finished.table(TABLE).set_index(["setting", "method", "metric"])["mean"]
    clouds = finished.clouds(f"{own}/seed0/final/base/shard0.safetensors", "base")
    expected = np.mean([compactness(*cloud) for cloud in clouds])
    assert table["own", "base", "reward"] == pytest.approx(expected, rel=1e-6)


def test_rounds_double_the_reward_calls(finished):
    def rows(name):
        table = finished.table(f"results/demo/tables/{name}.csv")
        return table[table["setting"] == "own"]

    table = rows("molecules").set_index("method")
    assert set(table.index) == {"base", "graft", "ddpo", "pgraft"}
    assert (table.drop("base")["reward_calls"] == 2 * 192).all()
    assert (table.drop("base")["rounds"] == 2).all()
    costs = rows("molecules_cost").set_index(["method", "round"])
    assert set(costs.index) == {(name, turn) for name in ("graft", "ddpo", "pgraft") for turn in (1, 2)}
    assert (costs["reward_calls"] == 192).all()
    assert (costs["gradient_steps"] == 4).all()
    calls = rows("molecules_curve").groupby("method")["reward_calls"].apply(list).to_dict()
    assert calls["graft"] == calls["pgraft"] == [0, 192, 384]
    assert calls["ddpo"] == [0, 96, 192, 288, 384]


@pytest.mark.parametrize(
    ("stage", "before", "draw"), [("round2", "round1", (Draw.ROLLOUT, 2)), ("final", "round2", (Draw.EVALUATION, 0))]
)
@pytest.mark.parametrize(("model", "cut"), [("graft", 0), ("pgraft", 2)])
def test_later_rollouts_come_from_the_models_of_the_round_before(finished, cpu, stage, before, draw, model, cut):
    """The tuned model above the cut, the base below, from the stage's own numbers."""
    own = finished.folder / FOLDER.format("own")
    file = TensorFile(own / f"seed0/{stage}/jobs0/shard0.safetensors")
    found = roll_out(
        TASK,
        TASK.load_network(own / f"seed0/{before}/jobs0/tuned/{model}"),
        TASK.load_network(own / "base"),
        cut,
        SamplerSettings(**SETTING["sampler"]),
        {name: value[:64] for name, value in file.group("condition").items()},
        ChunkedNormal(0, *draw, start=0, stop=64, shape=TASK.shape),
        cpu,
    )
    torch.testing.assert_close(file.tensor(f"{model}.step0")[:64], found[0], rtol=0, atol=1e-6)


def job(compute, folder, **which):
    """What a job tells the training loop beside models, data and settings."""
    return {"compute": compute, "checkpoint": folder / "checkpoint.safetensors", "identity": "", **which}


def check_saved(network, folder):
    found = TASK.load_network(folder).state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_the_base_is_trained_at_the_configured_times(finished, cpu, tmp_path):
    folder = finished.folder / FOLDER.format("tiny")
    network = TASK.build_network(SETTING["base"]["network"], seed=100, run=0)
    train(
        network,
        TASK.training_data(folder / "data"),
        partial(TASK.loss, times=FocusedTimes(**SETTING["base"]["training_times"])),
        TrainingSettings(**TINY_TRAINING),
        **job(cpu, tmp_path, seed=100, run=0),
    )
    check_saved(network, folder / "base")


@pytest.mark.parametrize(("name", "size", "step", "anchored"), [("pgraft", 4, 2, False), ("graft", 3, 0, True)])
def test_the_second_round_tunes_on_what_the_models_of_the_first_drew(
    finished, cpu, tmp_path, name, size, step, anchored
):
    """From these models on, and on the snapshots at the method's cut that its own selection names.

    An anchored method is given them all, the odds of each, and the model of the first round to tell relearning by.
    """
    seed = finished.folder / FOLDER.format("own") / "seed0"
    scores, selected = (finished.table(seed / f"round2/jobs0/{table}.csv") for table in ("scores0", "selected"))
    rewards = scores.loc[scores["model"] == name, "reward"].reset_index(drop=True)
    chosen = selected.loc[selected["method"] == name, "index"]
    assert sorted(chosen) == sorted(rewards.groupby(rewards.index // size).idxmax())
    file, chosen = TensorFile(seed / "round2/jobs0/shard0.safetensors"), torch.tensor(chosen.to_numpy())
    network = TASK.load_network(seed / f"round1/jobs0/tuned/{name}").requires_grad_(True)
    anchor = None
    if anchored:
        odds = torch.zeros(192).index_fill(0, chosen, size)
        start = TASK.load_network(seed / f"round1/jobs0/tuned/{name}")
        chosen, anchor = slice(None), Anchor(start, odds)
    tune_on_snapshots(
        TASK,
        network,
        file.tensor(f"{name}.step{step}")[chosen],
        step / 4,
        {key: value[chosen] for key, value in file.group("condition").items()},
        TrainingSettings(**SETTING["fine_tuning"]["training"], learning_rate=REJECTION["learning_rate"]),
        times=FocusedTimes(**SETTING["fine_tuning"]["training_times"]),
        anchor=anchor,
        **job(cpu, tmp_path, seed=0, run=2),
    )
    check_saved(network, seed / f"round2/jobs0/tuned/{name}")


def test_shards_change_no_rollout_and_no_digit_of_the_table(finished):
    """Nor does running everything a second time, from the base on."""
    whole = TensorFile(finished.folder / SCORES.format("tiny").replace("scores0.csv", "shard0.safetensors"))
    folder = (finished.folder / SCORES.format("sharded")).parent
    paths = [folder / f"shard{number}.safetensors" for number in range(3)]
    assert {"base.step0", "base.step2", "condition.atoms"} == set(whole.names)
    for name in whole.names:
        parts = ShardedTensor(paths, name)
        assert [len(part) for part in parts.parts] == [64, 64, 64]
        assert torch.equal(parts[:], whole.tensor(name)), name
    assert finished.bytes(SELECTED.format("tiny")) == finished.bytes(SELECTED.format("sharded"))
    for name in ("molecules", "molecules_curve"):
        lines = finished.bytes(f"results/demo/tables/{name}.csv").decode().splitlines()
        of_tiny, of_sharded = ([line for line in lines if f",{setting}," in line] for setting in ("tiny", "sharded"))
        assert of_tiny
        assert [line.replace(",sharded,", ",tiny,") for line in of_sharded] == of_tiny


def test_selection_keeps_what_its_rules_say(finished):
    scores, selected = finished.table(SCORES.format("tiny")), finished.table(SELECTED.format("tiny"))
    assert list(selected.loc[selected["method"] == "self", "index"]) == list(range(192))
    graft = selected[selected["method"] == "graft"]
    assert (graft["index"] // 3).tolist() == list(range(64))
    np.testing.assert_array_equal(graft["reward"], scores["reward"].groupby(scores.index // 3).max())
    pgraft = selected[selected["method"] == "pgraft"]
    assert sorted(pgraft["key"].dropna()) == sorted(set(scores["key"].dropna()))
    assert pgraft["copies"].sum() == 192
    for name, rows in selected.groupby("method"):
        np.testing.assert_array_equal(rows["reward"], scores.loc[rows["index"], "reward"], err_msg=name)


def test_branched_are_the_first_rollouts(finished):
    """The same states to the last bit, the same rewards; a sample is its own continuation, the last step draws none."""
    seed = finished.folder / FOLDER.format("own") / "seed0"
    branches, rollouts = TensorFile(seed / "branches.safetensors"), TensorFile(seed / "round1/base/shard0.safetensors")
    assert branches.tensor("levels").tolist() == [0, 0.25, 0.5, 1]
    for name in ("base.step0", "base.step2", "condition.atoms"):
        assert torch.equal(branches.tensor(name), rollouts.tensor(name)[:16]), name
    rewards, scores = branches.tensor("rewards").numpy(), finished.table(seed / "round1/base/scores0.csv")
    assert rewards.shape == (4, 16, 2)
    np.testing.assert_allclose(rewards[0], np.repeat(scores["reward"].to_numpy()[:16, None], 2, axis=1), rtol=1e-8)
    np.testing.assert_allclose(rewards[1, :, 0], rewards[1, :, 1], rtol=1e-6)
    assert (rewards[2:, :, 0] != rewards[2:, :, 1]).all()
    table = finished.table(TABLE).set_index(["setting", "method"])["fixed_share"]
    assert table["own", "graft"].iloc[0] == pytest.approx(1)
    assert table["own", "pgraft"].iloc[0] == pytest.approx(fixed_share(rewards[2], np.zeros(16)), rel=1e-6)


def test_the_score_shifts_above_the_cut_and_as_far_as_the_tuned_model_says(finished, cpu):
    """eps = (x_t - alpha x_0) / sigma of the last round's model less the base's, at the snapshots of the base."""
    seed = finished.folder / FOLDER.format("own") / "seed0"
    shifts = finished.table(seed / "score_shift.csv").set_index(["method", "level"])["mean"]
    assert sorted(shifts.index) == [
        *(("ddpo", level) for level in (0.25, 0.5, 1.0)),
        *(("graft", level) for level in (0.25, 0.5, 1.0)),
        ("pgraft", 1.0),
    ]
    branches = TensorFile(seed / "branches.safetensors")
    x, t, condition = branches.tensor("base.step2"), torch.full((16,), 0.5), branches.group("condition")
    networks = (TASK.load_network(seed / "round2/jobs0/tuned/graft"), TASK.load_network(seed.parent / "base"))
    tuned, base = (TASK.denoiser(network, condition)(x, t) for network in networks)
    # At t = 0.5 of the straight path alpha and sigma are equal.
    expected = (tuned - base).square().sum(dim=(1, 2)).mean().item()
    assert expected > 0
    assert shifts["graft", 0.5] == pytest.approx(expected, rel=1e-4)


def test_the_study_of_cuts_has_every_quantity_beside_the_tables_gains(finished):
    study, table = finished.table(STUDY), finished.table(TABLE)
    assert set(study["setting"]) == {"tiny", "sharded", "own"}
    own, gains = study[study["setting"] == "own"], table[(table["setting"] == "own") & (table["metric"] == "reward")]
    for rule in ("TopK(k=1, m=3)", "BestOf(n=4)"):
        of_rule = own[own["method"] == rule]
        for quantity in ("kl", "kl_plug_in", "pgraft_gain", "elbow"):
            assert of_rule.loc[of_rule["quantity"] == quantity, "level"].tolist() == [0, 0.25, 0.5, 1], quantity
        (suggested,) = of_rule.loc[of_rule["quantity"] == "suggested_cut", "mean"]
        assert suggested == of_rule.loc[of_rule["quantity"] == "elbow", "mean"].max()
    variances = own[own["quantity"] == "conditional_variance"].set_index("level")["mean"]
    assert variances[0.0] == 0 < variances[1.0]
    gains = gains.set_index("method")[["over_base", "cut"]]
    for name, row in own[own["quantity"] == "gain_over_base"].set_index("method").iterrows():
        assert (row["mean"], row["level"]) == tuple(gains.loc[name]), name
    (best,) = own.loc[own["quantity"] == "best_cut", "method"]
    assert best == "pgraft"  # the only one that is tuned as the paper does it


def test_a_second_run_does_nothing(finished):
    assert finished.planned(*TARGETS) == set()


def test_editing_a_rule_selects_again_and_draws_nothing_of_the_first_round_again(copy):
    source = copy.folder / "workflow/scripts/graft/rejection.py"
    edited = source.read_text().replace("ascending[:, self.m - self.k :]", "ascending[:, : self.k]")
    assert edited != source.read_text()
    source.write_text(edited)
    planned = copy.planned("table_molecules", config=tiny())
    assert planned == {"select_rollouts", "fine_tune", "draw_rollouts", "evaluate_models", "table_molecules"}
    assert copy.planned(SCORES.format("tiny"), config=tiny()) == set()


def test_editing_the_users_reward_scores_again_and_draws_nothing_again(copy):
    copy.reward(COMPACTNESS.replace("-np.sqrt", "-2 * np.sqrt"))
    assert copy.planned(SELECTED.format("own")) == {"score_rollouts", "select_rollouts"}


def test_a_policy_gradient_waits_for_no_rollouts_but_its_own(tmp_path):
    alone, others = (f"{FOLDER.format('own')}/seed0/round1/{group}/cost.json" for group in ("jobs1", "jobs0"))
    before = {"fetch_asset", "prepare_data", "train_base", "fine_tune"}
    checkout = RewardCheckout(tmp_path)
    assert checkout.planned(alone) == before
    assert checkout.planned(others) == before | {"draw_rollouts", "score_rollouts", "select_rollouts"}


def test_the_tuning_is_one_target_for_each_settings_own_seed(finished):
    done = finished.run("tune", arguments=["--dry-run"])
    assert done.returncode == 0, done.stderr
    for name in ("tiny", "sharded", "own"):
        assert f"output: {FOLDER.format(name)}/seed1000/evaluation.json" in done.stdout
    assert "output: results/demo/tuning/molecules.yaml" in done.stdout


def test_a_cut_between_two_steps_is_a_configuration_error(finished):
    done = finished.run("all", config=tiny(methods={"pgraft": {"cut": 0.3}}), arguments=["--dry-run"])
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: configuration:"))
    assert "molecules.settings.tiny.methods.pgraft.cut" in line
    assert "0.3 of 4 sampler steps" in line


def test_an_empty_acceptance_ends_the_selection(copy):
    high = tiny(methods={"pgraft": {"rule": {"c": 99.0}}})
    failing(copy, SELECTED.format("tiny"), high, "method pgraft", "none of 192 rollouts", "relax the rule")


def test_a_reward_that_does_not_import_ends_the_scoring(copy):
    copy.reward("import no_such_package\n")
    config = tiny(reward={"function": "my_reward:compactness"})
    failing(copy, SCORES.format("tiny"), config, "my_reward:compactness", "cannot be imported", "no_such_package")


PICKY = """
def picky(positions, atomic_numbers):
    if (atomic_numbers == 8).any():
        raise ValueError("no oxygen, please")
    return len(atomic_numbers)
"""


def test_failed_rewards_end_the_job_above_the_allowed_share_and_are_left_out_below(copy):
    copy.reward(PICKY)
    reward = {"function": "my_reward:picky", "max_failed": 0.01}
    failing(copy, SCORES.format("tiny"), tiny(reward=reward), "of 192 samples", "max_failed = 1.0%")
    (log,) = (copy.folder / "results/demo/logs/score_rollouts").glob("*_tiny_seed0_round1_base_0.log")
    assert "no oxygen, please" in log.read_text()
    done = copy.run(SELECTED.format("tiny"), config=tiny(reward={**reward, "max_failed": 0.99}))
    assert done.returncode == 0, done.stderr
    scores, selected = copy.table(SCORES.format("tiny")), copy.table(SELECTED.format("tiny"))
    clouds = copy.clouds(SCORES.format("tiny").replace("scores0.csv", "shard0.safetensors"), "base")
    failed = [bool((numbers == 8).any()) for _, numbers in clouds]
    assert 0 < sum(failed) < 192
    assert scores["reward"].isna().tolist() == failed
    assert selected.loc[selected["method"] == "self", "index"].tolist() == np.flatnonzero(~np.array(failed)).tolist()
    assert selected["reward"].notna().all()


def test_a_base_of_another_shape_is_refused(copy, tmp_path):
    other = Molecules(["H", "C"], 9, 1.0).build_network({"width": 8, "depth": 1, "heads": 2}, seed=0, run=0)
    other.save_pretrained(tmp_path / "other")
    config = tiny(base={"pretrained": str(tmp_path / "other")})
    failing(copy, f"{FOLDER}/base".format("tiny"), config, "other", "(9, 5, 5)", "(6, 6, 6)")


def test_molecules_that_are_refused(tmp_path):
    """Frames of a user's .xyz files: one too large, one of another element, one that ends too early."""
    refused = {
        "large": (WATER + "8\nlong\n" + "C 0 0 0\n" * 8, "mine.xyz: frame 2", "8 atoms, not 1 to 6"),
        "other": (WATER + "2\nchloride\nH 0 0 0\nCl 1.3 0 0\n", "mine.xyz: frame 2", "Cl", "elements"),
        "short": (WATER[:-10], "mine.xyz: frame 1", "not a readable XYZ frame"),
    }
    checkout, config = RewardCheckout(tmp_path), configured(**dict.fromkeys(refused, OWN))
    assets = yaml.safe_load((tmp_path / "my_assets.yaml").read_text())
    for name, (text, *_) in refused.items():
        (tmp_path / f"my_files/{name}").mkdir()
        (tmp_path / f"my_files/{name}/mine.xyz").write_text(text)
        file = {"name": "mine.xyz", "mirror": f"{name}/mine.xyz", "sha256": None}
        assets[name] = {"licence": "mine", "formats": [{"reader": "xyz", "files": [file]}]}
        config["molecules"]["settings"][name] = {**OWN, "data": {"asset": name, "shards": 1}}
    (tmp_path / "my_assets.yaml").write_text(yaml.safe_dump(assets))
    targets = [f"{FOLDER.format(name)}/data" for name in refused]
    done = checkout.run(*targets, config=config, arguments=["--keep-going"])
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for _, *messages in refused.values():
        assert any(all(message in line for message in messages) for line in lines), done.stderr[-3000:]
    assert not any((tmp_path / target).exists() for target in targets)

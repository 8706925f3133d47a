"""Text to image as its users run it: the whole chain on tiny budgets, and the tuned LoRA in a plain pipeline."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from test_workflow import TINY_DDPO, TINY_TEXT_MODELS, Checkout, alone, finished_run, merged

from graft.adapter_switch import BaseBelowCut
from graft.compositions import correct, parse
from graft.files import read_json
from graft.metrics.judges import load_judge
from graft.metrics.vqascore import vqascore
from graft.shards import TensorFile
from graft.tasks.text_to_image import TextToImage, digit_classifier, prompt_table

REJECTION = {"rule": None, "cut": 0.0, "deduplicate": False, "learning_rate": 1e-2}
SETTING = {
    "data": {"asset": "digit_compositions", "shards": 1},
    "points": {
        "image_size": 16,
        "latent_channels": 4,
        "downsampling": 2,
        "guidance": 2.0,
        "rollouts_per_condition": 4,
        "prompt_dropout": 0.1,
        "guided_loss": False,
    },
    **TINY_TEXT_MODELS,
    "sampler": {"steps": 4, "shift": 1.0, "eta": 1.0, "batch_size": 64},
    "reward": {"function": "vqascore", "max_failed": 0.0},
    "rollouts": {"samples": 64, "shards": 1, "rounds": 2},
    "fine_tuning": {
        "jobs": 1,
        "training": {"steps": 3, "batch_size": 16, "ema_decay": 0.0},
        "adapter": {"rank": 2, "alpha": 6},
    },
    "methods": {
        "self": REJECTION,
        "graft": {**REJECTION, "rule": {"type": "TopK", "k": 1, "m": 4}},
        "pgraft_25": {**REJECTION, "rule": {"type": "TopK", "k": 1, "m": 4}, "cut": 0.25},
        "ddpo": {**TINY_DDPO, "clip": 0.2, "learning_rate": 1e-3},
    },
    "tuning": {"seed": 1000, "learning_rates": [1e-3]},
    "evaluation": {"samples": 64, "shards": 1, "branched": 16, "branches": 2, "levels": [1.0]},
}
FOLDER = "results/demo/text_to_image/tiny"
SEED = f"{FOLDER}/seed0"
TARGETS = ("table_text_to_image", "figure_text_to_image")


class TextCheckout(Checkout):
    """A checkout that runs one text-to-image setting, with changed blocks."""

    def run(self, *targets, arguments=(), judges=None, **blocks):
        setting = merged(SETTING, blocks)
        setting["judges"] = {**setting["judges"], "pretrained": judges}
        return super().run(*targets, config=alone("text_to_image", {"tiny": setting}), arguments=arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(TextCheckout(tmp_path_factory.mktemp("finished")), *TARGETS)


def test_the_table_has_every_method_with_scores_and_true_accuracy(finished):
    table = pd.read_csv(finished.folder / "results/demo/tables/text_to_image.csv")
    assert set(table["method"]) == {"base", *SETTING["methods"]}
    kinds = {"vqascore_single", "vqascore_left_of", "vqascore_above"}
    assert {"reward", "vqascore", "accuracy", *kinds} == set(table["metric"])
    scores = table[table["metric"] == "vqascore"].set_index("method")
    relative = 100 * scores.loc["graft", "over_base"] / scores.loc["base", "mean"]
    assert scores.loc["graft", "over_base_percent"] == pytest.approx(relative, rel=1e-6)
    assert (scores.loc[list(SETTING["methods"]), "reward_calls"] == 128).all()


def test_reward_score_and_accuracy_are_those_of_the_kept_pictures(finished):
    """Each under its own judge, over the pictures that the shards hold."""
    folder, task = finished.folder / FOLDER, TextToImage(**SETTING["points"])
    samples = task.load_samples([folder / "seed0/final/base/shard0.safetensors"], "base", folder / "data")
    found = {}
    for name, kind in (("reward", "reward"), ("vqascore", "evaluation")):
        judge = load_judge(folder / "judges" / kind, "cpu", 64)
        found[name] = vqascore(samples.images, samples.captions, judge).double().mean().item()
    classify = digit_classifier(folder / "judges/truth", torch.device("cpu"))
    compositions = [parse(caption) for caption in samples.captions]
    found["accuracy"] = correct(samples.images.numpy(), compositions, classify).mean()
    table = pd.read_csv(finished.folder / "results/demo/tables/text_to_image.csv")
    means = table.set_index(["method", "metric"])["mean"]["base"]
    # Judges of eight training steps are nearly sure of no: only relative differences say something.
    assert means[list(found)].to_dict() == pytest.approx(found, rel=1e-6, abs=0)
    assert found["reward"] != pytest.approx(found["vqascore"], rel=1e-4, abs=0), "two judges"


def test_the_benchmarks_measure_sampling_and_training(finished):
    finished.run("benchmarks")
    found = read_json(finished.folder / "results/demo/speed/text_to_image/stable_diffusion.json")
    rates = found["sampling"]["image_forwards_per_second"]
    assert set(rates) == {"bare", "base", "adapted", "first_time_across_a_cut"}
    assert all(rate > 0 for rate in [*rates.values(), found["training"]["images_per_second"]])
    assert found["sampling"]["graphs"] == {"before_the_cut": 0, "after_the_cut": 0}  # nothing is compiled on a CPU


def test_the_figure_and_its_pictures_are_there(finished):
    figure = Image.open(finished.folder / "results/demo/figures/text_to_image.png")
    assert min(figure.size) > 500
    assert {path.stem for path in (finished.folder / SEED / "pictures").glob("*.png")} == {"base", *SETTING["methods"]}


def test_no_prompt_both_trains_and_evaluates(finished):
    table = prompt_table(str(finished.folder / FOLDER / "data"))
    rollouts = TensorFile(finished.folder / SEED / "round1/base/shard0.safetensors").tensor("condition.prompt")
    final = TensorFile(finished.folder / SEED / "final/base/shard0.safetensors").tensor("condition.prompt")
    captions = [{table.captions[row] for row in rows.tolist()} for rows in (rollouts, final)]
    assert len(captions[0]) == 16
    assert not captions[0] & captions[1]
    assert not table.held_out[rollouts].any()
    assert table.held_out[final].all()


def test_pictures_are_kept_as_png_and_snapshots_in_half_precision(finished):
    file = TensorFile(finished.folder / SEED / "round1/base/shard0.safetensors")
    ends = file.tensor("base.png_ends").tolist()
    first = Image.open(io.BytesIO(file.tensor("base.png")[: ends[0]].numpy().tobytes()))
    assert (first.format, first.size, len(ends)) == ("PNG", (16, 16), 64)
    assert file.tensor("base.step1").dtype == torch.float16


def test_rewards_are_compared_within_a_prompt(finished):
    scores = pd.read_csv(finished.folder / SEED / "round1/base/scores0.csv")
    selected = pd.read_csv(finished.folder / SEED / "round1/jobs0/selected.csv")
    accepted = scores.loc[selected.loc[selected["method"] == "graft", "index"]]
    best = scores.groupby("group")["reward"].max()
    assert len(accepted) == 16
    np.testing.assert_allclose(accepted.set_index("group")["reward"].sort_index(), best.sort_index())


def test_a_tuned_lora_draws_in_a_plain_pipeline(finished):
    base, lora = finished.folder / FOLDER / "base", finished.folder / SEED / "round2/jobs0/tuned/pgraft_25"
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )

    def draw(callback=None):
        rng = torch.Generator().manual_seed(0)
        drawn = pipeline(
            "a red three",
            num_inference_steps=4,
            eta=1.0,
            generator=rng,
            callback_on_step_end=callback,
            output_type="pt",
        )
        return drawn.images

    before = draw()
    pipeline.load_lora_weights(lora)
    (config,) = pipeline.unet.peft_config.values()
    assert (config.r, config.lora_alpha) == (2, 6)
    tuned, with_cut = draw(), draw(BaseBelowCut(0.25))
    assert not tuned.equal(before)
    assert not with_cut.equal(tuned)


def test_judges_and_their_accuracies_are_recorded(finished):
    accuracy = read_json(finished.folder / FOLDER / "judges/accuracy.json")
    assert accuracy.keys() == {"reward", "evaluation", "truth"}


def test_a_finished_run_is_finished(finished):
    assert not finished.planned(*TARGETS)


def test_pretrained_base_and_judges_are_taken_over(finished, tmp_path):
    """What one run has trained serves another that trains neither base nor judges."""
    checkout = TextCheckout(tmp_path)
    own = finished.folder / FOLDER
    judges = {name: str(own / "judges" / name) for name in ("reward", "evaluation", "truth")}
    base = {"pretrained": str(own / "base")}
    done = checkout.run(f"{SEED}/round1/base/scores0.csv", judges=judges, base=base)
    assert done.returncode == 0, done.stderr[-5000:]
    assert not (checkout.folder / FOLDER / "judges").exists()
    scores = [pd.read_csv(folder / SEED / "round1/base/scores0.csv") for folder in (checkout.folder, finished.folder)]
    pd.testing.assert_frame_equal(*scores)


def test_a_hub_base_without_a_commit_is_one_line(tmp_path):
    done = TextCheckout(tmp_path).run(f"{FOLDER}/base", base={"pretrained": "owner/name"})
    assert done.returncode != 0
    message = "error: owner/name: neither a folder nor a hub repository with its commit, owner/name@40 hex digits"
    assert message in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("blocks", "complaint"),
    [
        ({"sampler": {"shift": 0.5}}, "sampler.shift: must be 1, Stable Diffusion's noising steps are whole"),
        ({"sampler": {"steps": 24}}, "sampler.steps: 24 does not divide Stable Diffusion's 1000 noising steps"),
        (
            {"points": {"rollouts_per_condition": 2}},
            "methods.graft.rule.m: 4 is more than points.rollouts_per_condition = 2",
        ),
        ({"points": {"downsampling": 3}}, "points.downsampling: does not divide the image_size 16"),
        ({"points": {"guidance": 0.5}}, "points.guidance: 0.5 is less than the minimum of 1"),
    ],
)
def test_what_stable_diffusion_cannot_do_is_refused_at_once(tmp_path, blocks, complaint):
    done = TextCheckout(tmp_path).run(*TARGETS, arguments=["--dry-run"], **blocks)
    assert done.returncode != 0
    assert f"text_to_image.settings.tiny.{complaint}" in done.stderr

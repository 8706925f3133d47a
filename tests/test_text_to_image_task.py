"""Text to image as a task of the chain: prompts, latents, pictures, losses."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from replicas import TINY_TEXT, TINY_UNET

from graft.errors import UserError
from graft.files import write_json
from graft.networks.stable_diffusion import AdaptedStableDiffusion
from graft.objectives import Anchor, FocusedTimes, noise_prediction, stratified_times
from graft.seeding import Draw
from graft.shards import write_tensors
from graft.tasks.text_to_image import Pictures, TextToImage, padded, pictures, png, prompt_table, scored, texts

TASK = TextToImage(
    image_size=16,
    latent_channels=4,
    downsampling=2,
    guidance=2.0,
    rollouts_per_condition=4,
    prompt_dropout=0.0,
    guided_loss=False,
)
NETWORK = {"unet": TINY_UNET, "text": TINY_TEXT}
TRAINING = ["a red three", "a blue seven left of a green two", "a yellow one", "a red three"]
HELD_OUT = ["a green nine above a red one", "a blue four"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared folder: four pictures that train (two of one caption) and two that do not."""
    folder = tmp_path_factory.mktemp("data")
    captions = [*TRAINING, *HELD_OUT]
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "captions": torch.from_numpy(padded(captions)),
        "kinds": torch.from_numpy(padded(["single", "left of", "single", "single", "above", "single"])),
        "held_out": torch.tensor([False] * 4 + [True] * 2),
        "images": torch.randint(256, (6, 3, 16, 16), generator=rng, dtype=torch.uint8),
    }
    write_tensors(folder / "shard0.safetensors", tensors, {})
    write_json(folder / "data.json", {"shards": 1, "count": 6})
    return folder


def test_prompts_that_are_too_long_are_counted_in_the_log(base, tmp_path, caplog):
    captions = [TRAINING[0], " ".join(TRAINING), HELD_OUT[0]]
    write_tensors(
        tmp_path / "shard0.safetensors",
        {
            "captions": torch.from_numpy(padded(captions)),
            "kinds": torch.from_numpy(padded(["single"] * 3)),
            "held_out": torch.tensor([False, False, True]),
        },
        {},
    )
    write_json(tmp_path / "data.json", {"shards": 1, "count": 3})
    base.save_pretrained(tmp_path / "base")
    TASK.load_network(tmp_path / "base", tmp_path)
    assert "1 of 3 prompts are longer than the text encoder reads and are cut" in caplog.text


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    network = TASK.build_network(NETWORK, seed=0, run=0, autoencoder=autoencoder)
    # Its last layer predicts something, as a trained one does.
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def base(saved, data):
    return TASK.load_network(saved, data)


def test_texts_survive_as_bytes():
    strings = ["a red three", "", "ein grünes Ü", "红色的三"]
    assert texts(padded(strings)) == strings
    assert padded(strings).dtype == np.uint8


def test_pictures_survive_as_png():
    images = torch.randint(256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    samples = Pictures(images, TRAINING[:3], ["single"] * 3)
    stored = TASK.stored(samples)
    assert pictures(stored["png"], stored["png_ends"]).equal(images)
    assert bytes(stored["png"][:8].tolist()) == b"\x89PNG\r\n\x1a\n"
    assert stored["png_ends"].tolist() == torch.tensor([len(png(image)) for image in images]).cumsum(0).tolist()


def test_the_prompts_of_a_folder_are_its_different_captions(data):
    table = prompt_table(str(data))
    assert table.captions == [*TRAINING[:3], *HELD_OUT]
    assert table.held_out.tolist() == [False] * 3 + [True] * 2
    assert table.kinds == ["single", "left of", "single", "above", "single"]


def prompts_of(data, stage, start, stop, seed=0):
    table = prompt_table(str(data))
    found = TASK.conditions(data, seed, Draw.CONDITION, stage, 1, start=start, stop=stop)["prompt"]
    return [table.captions[row] for row in found.tolist()]


def test_rollouts_take_training_prompts_and_the_evaluation_takes_the_others(data):
    assert set(prompts_of(data, Draw.ROLLOUT, 0, 64)) == set(TRAINING)
    assert set(prompts_of(data, Draw.POLICY, 0, 64)) == set(TRAINING)
    assert set(prompts_of(data, Draw.EVALUATION, 0, 64)) == set(HELD_OUT)


def test_consecutive_rollouts_share_a_prompt_whatever_the_batch(data):
    found = prompts_of(data, Draw.ROLLOUT, 0, 192)
    assert all(len(set(found[i : i + 4])) == 1 for i in range(0, 192, 4))
    assert found[4::8] == [TRAINING[1]] * 24, "every other prompt is of the other kind"
    assert len(set(found[0:16:8])) == 2, "all of a kind come before one comes again"
    assert found[0] != found[4]
    assert found[64:128] == prompts_of(data, Draw.ROLLOUT, 64, 128)
    orders = {tuple(prompts_of(data, Draw.ROLLOUT, 0, 16, seed)) for seed in range(20)}
    assert len(orders) == 2, "the two of one kind have two orders"


def test_training_data_hold_nothing_that_evaluates(data):
    [[images, captions]] = TASK.training_data(data)
    assert len(images) == 4
    assert texts(captions.numpy()) == TRAINING


def test_prompts_without_pictures_train_no_base(tmp_path):
    tensors = {name: torch.from_numpy(padded(["a red three"])) for name in ("captions", "kinds")}
    write_tensors(tmp_path / "shard0.safetensors", {**tensors, "held_out": torch.tensor([False])}, {})
    write_json(tmp_path / "data.json", {"shards": 1})
    with pytest.raises(UserError, match=r"prompts without pictures train no base; set base\.pretrained"):
        TASK.training_data(tmp_path)


def test_a_side_without_prompts_is_named(tmp_path):
    tensors = {name: torch.from_numpy(padded(["a red three"])) for name in ("captions", "kinds")}
    write_tensors(tmp_path / "shard0.safetensors", {**tensors, "held_out": torch.tensor([False])}, {})
    write_json(tmp_path / "data.json", {"shards": 1})
    with pytest.raises(UserError, match="no prompt is left to evaluate"):
        TASK.conditions(tmp_path, 0, Draw.CONDITION, Draw.EVALUATION, start=0, stop=64)


def test_a_base_of_other_latents_is_refused(saved):
    other = TextToImage(32, 4, 2, 1.0, 1, 0.0, guided_loss=False)
    with pytest.raises(UserError, match=r"latents \(4, 8, 8\) of images 16 pixels wide"):
        other.load_network(saved)


def test_the_bases_loss_trains_unet_and_text_encoder_and_leaves_the_autoencoder(autoencoder, data):
    network = TASK.build_network(NETWORK, seed=0, run=0, autoencoder=autoencoder)
    TASK.loss(network, *TASK.training_data(data)[0], torch.Generator().manual_seed(0)).backward()
    touched = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"unet", "text_encoder"}


@pytest.mark.parametrize("times", [None, FocusedTimes(0.6, 0.5, 0.2)], ids=["uniform", "focused"])
def test_without_dropout_the_loss_at_cut_zero_is_plain_noise_prediction(base, data, times):
    x_0 = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    condition = {"prompt": torch.tensor([0, 1, 2])}
    found = TASK.denoising_loss(base, x_0, 0.0, condition, torch.Generator().manual_seed(2), times)
    rng = torch.Generator().manual_seed(2)
    torch.rand(3, generator=rng)  # which prompts drop out
    noise, t = torch.randn(x_0.shape, generator=rng), stratified_times(x_0, rng, 0.0, times)
    x_t = TASK.path.alpha(t)[:, None, None, None] * x_0 + TASK.path.sigma(t)[:, None, None, None] * noise
    predicted = base(x_t, TASK.path.timestep(t), base.embeddings[:3])
    assert found.item() == pytest.approx((noise - predicted).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("anchored", [False, True])
def test_the_guided_loss_is_that_of_the_guided_prediction(base, anchored):
    """And so is that of the model that an anchored one is told from."""
    task = TextToImage(16, 4, 2, guidance=3.0, rollouts_per_condition=1, prompt_dropout=0.5, guided_loss=True)
    x_c, condition = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        {"prompt": torch.tensor([0, 1])},
    )
    odds, start = torch.tensor([0.0, 2.0]), AdaptedStableDiffusion.new(base, rank=2, alpha=4, seed=0, run=0)
    for parameter in start.adapter():
        parameter.data += 0.1  # another model than the base
    anchor = Anchor(start, odds) if anchored else None
    found = task.denoising_loss(base, x_c, 0.25, condition, torch.Generator().manual_seed(2), anchor=anchor)
    rng = torch.Generator().manual_seed(2)
    noise, t = torch.randn(x_c.shape, generator=rng), stratified_times(x_c, rng, 0.25)

    def predicting(model):
        return lambda x, t: model(x, task.path.timestep(t), base.embeddings[:2], 3.0)

    anchor = Anchor(predicting(start), odds) if anchored else None
    expected = noise_prediction(predicting(base), task.path, x_c, 0.25, noise, t, anchor)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_dropped_prompts_are_empty(base):
    task = TextToImage(16, 4, 2, guidance=1.0, rollouts_per_condition=1, prompt_dropout=1.0, guided_loss=False)
    x_c = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    losses = [
        task.denoising_loss(base, x_c, 0.0, {"prompt": torch.tensor(rows)}, torch.Generator().manual_seed(2)).item()
        for rows in ([0, 1], [2, 3])
    ]
    assert losses[0] == losses[1]


def test_the_denoiser_inverts_the_noise_that_is_predicted(base):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t, condition = torch.tensor([0.3, 0.9]), {"prompt": torch.tensor([0, 1])}
    x_0 = TASK.denoiser(base, condition)(x, t)
    alpha, sigma = (level(t)[:, None, None, None] for level in (TASK.path.alpha, TASK.path.sigma))
    predicted = base(x, TASK.path.timestep(t), base.embeddings[:2], TASK.guidance)
    assert torch.allclose(alpha * x_0 + sigma * predicted, x, atol=1e-5)


def test_velocity_is_turned_into_noise(base):
    x, t, condition = torch.randn(1, 4, 8, 8), torch.tensor([0.5]), {"prompt": torch.tensor([0])}
    base.predicts_velocity = True
    x_0 = TASK.denoiser(base, condition)(x, t)
    alpha, sigma = (level(t)[:, None, None, None] for level in (TASK.path.alpha, TASK.path.sigma))
    velocity = base(x, TASK.path.timestep(t), base.embeddings[:1], TASK.guidance)
    assert torch.allclose(x_0, alpha * x - sigma * velocity, atol=1e-5)


def test_only_the_adapter_is_tuned_and_a_second_round_goes_on_from_it(base, tmp_path):
    network = TASK.tunable(base, None, {"rank": 2, "alpha": 4}, seed=0, run=1)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for parameter in network.adapter():
            parameter.add_(0.1)
    network.save_pretrained(tmp_path)
    again = TASK.tunable(base, tmp_path, {"rank": 2, "alpha": 4}, seed=0, run=2)
    assert all(a.equal(b) for a, b in zip(network.adapter(), again.adapter(), strict=True))
    assert [p.requires_grad for p in again.adapter()] == [True] * len(again.adapter())
    assert isinstance(TASK.load_tuned(base, tmp_path), AdaptedStableDiffusion)


def test_a_prompt_sheet_has_a_caption_under_each_picture():
    images = torch.full((3, 3, 16, 16), 200, dtype=torch.uint8)
    sheet = TASK.picture(Pictures(images, TRAINING[:3], ["single"] * 3), 2)
    assert sheet.size == (256, 152)
    below = np.asarray(sheet)[128:, :128]
    assert below.min() < 50, "a caption is written"


def test_prompt_sets_join_without_overlap():
    def part(captions, held_out):
        return {"captions": padded(captions), "kinds": padded(["x"] * len(captions)), "held_out": np.array(held_out)}

    joined = TASK.join([part(["A cat", "a dog"], [False, False]), part(["a cat"], [True])])
    assert dict(zip(texts(joined["captions"]), joined["held_out"].tolist(), strict=True)) == {
        "a dog": False,
        "a cat": True,
    }


@dataclass(frozen=True)
class Judge:
    """Scores a picture by its first pixel, as many at a time as fit."""

    batch_size: int

    def answer_loss(self, images, texts):
        if len(images) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images])


def test_pictures_are_scored_in_as_large_batches_as_fit(cpu):
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    samples = Pictures(images, ["a red one"] * 40, ["single"] * 40)
    found = scored(samples, Judge(batch_size=128), replace(cpu, smaller_batches=True))
    torch.testing.assert_close(found, (-torch.arange(40) / 255).exp())
    with pytest.raises(torch.OutOfMemoryError):
        scored(samples, Judge(batch_size=128), cpu)

"""Stable Diffusion in the chain and in diffusers' pipeline: the same images, with and without a LoRA and a cut."""

import json
import shutil
from itertools import chain

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from replicas import TINY_TEXT, TINY_UNET
from torch import nn

from graft.adapter_switch import BaseBelowCut
from graft.compute import Compute
from graft.errors import UserError
from graft.networks.stable_diffusion import (
    AdaptedStableDiffusion,
    build_stable_diffusion,
    load_stable_diffusion,
    matching_scheduler,
    word_tokenizer,
)
from graft.objectives import noise_prediction
from graft.paths import StableDiffusionPath
from graft.rollouts import SamplerSettings, roll_out
from graft.sampling import uniform_times
from graft.tasks.text_to_image import TextToImage

WORDS = ["a", "red", "blue", "three", "seven", "left", "of"]
CAPTIONS = ["a red three", "a blue seven left of a red three"]
STEPS, GUIDANCE, CUT = 8, 2.5, 0.25

TEXT = {**TINY_TEXT, "max_position_embeddings": 12}


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.7,
    )
    return (
        build_stable_diffusion({"unet": TINY_UNET, "text": TEXT}, vae, WORDS, seed=1, run=0)
        .eval()
        .requires_grad_(False)
    )


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    base.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapted(base):
    """A LoRA that has learned something, with an alpha that is not its rank."""
    model = AdaptedStableDiffusion.new(base, rank=2, alpha=6, seed=3, run=1)
    with torch.no_grad():
        for parameter in model.adapter():
            nn.init.normal_(parameter, std=1.0, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.requires_grad_(False)


@pytest.mark.parametrize("steps", [8, 20, 50, 1000])
def test_the_path_is_where_ddim_goes(steps):
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    for dtype in (torch.float32, torch.float64):
        times, path = torch.tensor(uniform_times(steps)[:-1], dtype=dtype), StableDiffusionPath()
        assert path.timestep(times).equal(scheduler.timesteps)
        assert torch.allclose(path.alpha(times) ** 2, scheduler.alphas_cumprod[scheduler.timesteps].to(dtype))
        assert torch.allclose(path.alpha(times) ** 2 + path.sigma(times) ** 2, torch.ones(steps, dtype=dtype))
    assert path.sigma(torch.zeros(1)) == 0


def test_times_between_two_noising_steps_belong_to_the_later_one():
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    steps = StableDiffusionPath().timestep(1 - uniform)
    assert steps.min() == 0
    assert steps.max() == 999
    assert torch.bincount(steps, minlength=1000).double().std() < 12  # 10 for a uniform law


def test_the_smallest_time_has_noise_and_a_finite_loss():
    path, t = StableDiffusionPath(), torch.tensor([2.0**-24, 5e-7])
    assert path.timestep(t).tolist() == [0, 0]
    assert (path.sigma(t) > 0).all()
    x_0, noise = torch.ones(2, 1), torch.ones(2, 1)
    assert noise_prediction(lambda x, t: x, path, x_0, 0.0, noise, t).isfinite()


def latents_of_chain(models, cut, noise, generator):
    """What the workflow draws, from the same numbers as a pipeline that has this generator."""
    task = TextToImage(16, 4, 2, GUIDANCE, rollouts_per_condition=1, prompt_dropout=0.0, guided_loss=False)
    for model in models:
        model.know(CAPTIONS)
    draws = chain([noise], iter(lambda: torch.randn(noise.shape, generator=generator), None))
    settings, compute = SamplerSettings(STEPS, 1.0, 1.0, 64), Compute(torch.device("cpu"), "fp32", compiled=False)
    condition = {"prompt": torch.arange(len(noise))}
    return roll_out(task, *models, round(cut * STEPS), settings, condition, lambda: next(draws), compute)[0]


def images_of_pipeline(pipeline, noise, generator, callback=None):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        CAPTIONS,
        num_inference_steps=STEPS,
        eta=1.0,
        guidance_scale=GUIDANCE,
        latents=noise,
        generator=generator,
        callback_on_step_end=callback,
        output_type="pt",
    ).images


def as_uint8(images):
    return (images * 255).round().byte()


def test_pipeline_and_chain_give_the_same_image(base, folder):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    latents = latents_of_chain([base, base], CUT, noise, torch.Generator().manual_seed(6))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    images = images_of_pipeline(pipeline, noise, torch.Generator().manual_seed(6))
    assert (base.decode(latents).int() - as_uint8(images).int()).abs().max() <= 1


def test_p_graft_in_a_plain_pipeline_gives_the_chains_image_again_and_again(base, adapted, folder, tmp_path):
    adapted.save_pretrained(tmp_path)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    latents = latents_of_chain([adapted, base], CUT, noise, torch.Generator().manual_seed(6))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.load_lora_weights(tmp_path)
    for _ in range(2):  # the second image finds the LoRA switched on again
        images = images_of_pipeline(pipeline, noise, torch.Generator().manual_seed(6), BaseBelowCut(CUT))
        assert (base.decode(latents).int() - as_uint8(images).int()).abs().max() <= 1
    without_a_cut = images_of_pipeline(pipeline, noise, torch.Generator().manual_seed(6), BaseBelowCut(0.0))
    assert (as_uint8(without_a_cut).int() - as_uint8(images).int()).abs().max() > 3
    with pytest.raises(ValueError, match="between two of 8 steps"):
        images_of_pipeline(pipeline, noise, torch.Generator().manual_seed(6), BaseBelowCut(0.3))


@pytest.mark.parametrize("cut", [-0.1, 1.0])
def test_what_is_no_cut_is_refused(cut):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        BaseBelowCut(cut)


def predict(model, guidance=1.0):
    model.know(CAPTIONS)
    rng = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([10, 700])
    return model(x, t, model.embeddings, guidance)


def test_a_new_adapter_changes_nothing_and_shares_the_bases_weights(base):
    model = AdaptedStableDiffusion.new(base, rank=2, alpha=6, seed=3, run=1)
    assert predict(model).equal(predict(base))
    shared = {id(parameter) for parameter in base.parameters()}
    own = [parameter for parameter in model.parameters() if id(parameter) not in shared]
    assert {id(p) for p in own} == {id(p) for p in model.adapter()}
    assert not [name for name, _ in base.unet.named_modules() if "lora" in name]


def test_adapters_draw_their_weights_from_the_seed(base):
    def first(seed):
        return AdaptedStableDiffusion.new(base, rank=2, alpha=2, seed=seed, run=1).adapter()[0]

    assert first(3).equal(first(3))
    assert not first(3).equal(first(4))


def test_a_saved_adapter_comes_back_with_its_alpha(base, adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    loaded = AdaptedStableDiffusion.load(base, tmp_path)
    assert predict(loaded).equal(predict(adapted))
    loaded.save_pretrained(tmp_path / "again")
    assert predict(AdaptedStableDiffusion.load(base, tmp_path / "again")).equal(predict(adapted))
    assert not torch.allclose(predict(adapted), predict(base), atol=1e-2)


def test_guidance_goes_beyond_the_conditional_prediction(base):
    conditional, guided = predict(base), predict(base, 3.0)
    context = base.empty.expand(2, -1, -1)
    rng = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([10, 700])
    unconditional = base(x, t, context)
    assert torch.allclose(guided, unconditional + 3 * (conditional - unconditional), atol=1e-5)
    assert not torch.allclose(guided, conditional, atol=1e-4)


def test_each_word_is_one_token_and_no_text_is_longer_than_the_limit():
    tokenizer = word_tokenizer(WORDS, 8)
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=8, truncation=True)["input_ids"]
    assert len(ids[0]) == len(ids[1]) == 8
    assert tokenizer.convert_ids_to_tokens(ids[0])[1:4] == ["a</w>", "red</w>", "three</w>"]
    assert all(len(found) == 3 for found in tokenizer(WORDS)["input_ids"])  # the word between the two ends


def test_captions_over_the_limit_are_counted_and_cut(base):
    long = " ".join(["a red three"] * 5)
    assert base.too_long([CAPTIONS[0], long]) == 1
    pipeline = base.pipeline()
    ids = pipeline.tokenizer(long, padding="max_length", max_length=12, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(base.tokens([long]), ids)
    embedded, _ = pipeline.encode_prompt(long, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(base.embed(base.tokens([long])), embedded)


def test_a_folder_in_half_precision_is_loaded_in_float32(folder, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16, safety_checker=None)
    pipeline.save_pretrained(tmp_path)
    model = load_stable_diffusion(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.know(["a red three"])
    assert model(torch.zeros(1, 4, 8, 8), torch.tensor([500]), model.embeddings).isfinite().all()


def test_a_loaded_folder_predicts_as_what_was_saved(base, folder):
    assert predict(load_stable_diffusion(folder)).equal(predict(base))


@pytest.mark.parametrize("source", ["owner/name", "owner/name@main", "owner/name@" + "0" * 39, "no/such/folder"])
def test_a_hub_repository_needs_its_commit(source):
    with pytest.raises(UserError, match=r"neither a folder nor a hub repository with its commit"):
        load_stable_diffusion(source)


def test_a_folder_without_safetensors_is_refused_in_one_line(folder, tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(folder, copy)
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="no Stable Diffusion with safetensors weights") as caught:
        load_stable_diffusion(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"beta_end": 0.02}, {"beta_schedule": "linear"}, {"prediction_type": "sample"}])
def test_another_noise_schedule_is_refused(folder, tmp_path, change):
    copy = tmp_path / "base"
    shutil.copytree(folder, copy)
    file = copy / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match="base: trained with the schedule"):
        load_stable_diffusion(copy)


def test_velocity_prediction_is_known(base):
    trained = DDIMScheduler.from_config(base.scheduler.config, prediction_type="v_prediction")
    assert matching_scheduler(trained).config.prediction_type == "v_prediction"


def test_what_is_no_adapter_is_refused_in_one_line(base, tmp_path):
    with pytest.raises(UserError, match="no LoRA of this UNet in safetensors"):
        AdaptedStableDiffusion.load(base, tmp_path)

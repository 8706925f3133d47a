"""How fast Stable Diffusion 2's UNet, of random weights, samples without and with a LoRA, and trains one, in the chain.

On a CPU a network of 1 M parameters takes its place. Most of the minutes that it takes on a GPU are compilation.
"""

import json
import time

import torch
from diffusers import AutoencoderKL
from torch._dynamo.utils import counters

from graft.files import write_json
from graft.jobs import compute_of, run
from graft.networks.stable_diffusion import AdaptedStableDiffusion, build_stable_diffusion
from graft.rollouts import SamplerSettings, roll_out
from graft.seeding import ChunkedNormal, Draw
from graft.speed import seconds_per_call, seconds_per_step
from graft.tasks.text_to_image import TextToImage
from graft.training import TrainingSettings

BATCH, TRAINING_BATCH, TRAINING_STEPS = 64, 32, 60
LARGE = {
    "side": 64,
    "steps": 20,
    "unet": {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "text": {"max_position_embeddings": 77, "hidden_size": 1024},
}
SMALL = {
    "side": 8,
    "steps": 4,
    "unet": {
        "block_out_channels": [32, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
    },
    "text": {"max_position_embeddings": 16, "hidden_size": 64},
}
"""Sizes of latents, sampler, UNet and text encoder, of which the speed does not depend on the last."""


def main(job):
    compute = compute_of(job)
    on_gpu = compute.device.type == "cuda"
    sizes = LARGE if on_gpu else SMALL
    task = TextToImage(
        8 * sizes["side"], 4, 8, guidance=1.0, rollouts_per_condition=1, prompt_dropout=0.1, guided_loss=False
    )
    base, adapted = networks(sizes, compute.device)
    result = {
        "network": "Stable Diffusion 2's UNet" if on_gpu else "1 M parameters",
        "sampling": time_sampling(task, sizes["steps"], base, adapted, compute),
        "training": {
            "batch_size": TRAINING_BATCH,
            "images_per_second": TRAINING_BATCH / time_training(task, adapted, compute),
        },
    }
    if on_gpu:
        result |= {"gpu": torch.cuda.get_device_name(), "largest_gib": torch.cuda.max_memory_allocated() / 2**30}
    write_json(job.output[0], result)
    print(json.dumps(result, indent=2))


def networks(sizes, device):
    """The base and an adapted twin, with the prompt 'a' embedded."""
    autoencoder = AutoencoderKL(
        block_out_channels=[8] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8 * sizes["side"],
    )
    text = {"num_hidden_layers": 1, "num_attention_heads": 8, "intermediate_size": 128, **sizes["text"]}
    base = build_stable_diffusion({"unet": sizes["unet"], "text": text}, autoencoder, ["a"], seed=0, run=0)
    base.to(device).eval().requires_grad_(False).know(["a"])
    return base, AdaptedStableDiffusion.new(base, rank=16, alpha=16, seed=0, run=0).to(device)


def time_sampling(task, steps, base, adapted, compute):
    """Image-forwards a second of the bare network and of sampling, and the graphs compiled, none of them for a cut."""
    below, above = compute.compile(base), compute.compile(adapted)
    x = torch.randn(BATCH, *task.shape, generator=torch.Generator().manual_seed(0)).to(compute.device)
    t = torch.full((BATCH,), 500, device=compute.device)
    condition = {"prompt": torch.zeros(BATCH, dtype=torch.long, device=compute.device)}
    context = base.embeddings[condition["prompt"]]

    @torch.no_grad()
    def bare():
        with compute.autocast():
            below(x, t, context)

    def sampling(first, second, cut):
        normal = ChunkedNormal(0, Draw.NOISE, start=0, stop=BATCH, shape=task.shape, device=compute.device)
        settings = SamplerSettings(steps, 1.0, 1.0, BATCH)
        return lambda: roll_out(task, first, second, cut, settings, condition, normal, compute)

    forwards = {
        "bare": BATCH / seconds_per_call(bare, compute, repeats=10),
        "base": BATCH * steps / seconds_per_call(sampling(below, below, 0), compute, repeats=3),
        "adapted": BATCH * steps / seconds_per_call(sampling(above, above, 0), compute, repeats=3),
    }
    graphs = counters["stats"]["unique_graphs"]
    started = time.perf_counter()
    sampling(above, below, steps // 4)()
    compute.synchronize()
    return {
        "batch_size": BATCH,
        "image_forwards_per_second": {
            **forwards,
            "first_time_across_a_cut": BATCH * steps / (time.perf_counter() - started),
        },
        "graphs": {"before_the_cut": graphs, "after_the_cut": counters["stats"]["unique_graphs"]},
    }


def time_training(task, adapted, compute):
    """Seconds of a step of fine-tuning on random latents."""
    for parameter in adapted.adapter():
        parameter.requires_grad_(True)
    latents = torch.randn(256, *task.shape, generator=torch.Generator().manual_seed(1))

    def loss(model, x_0, prompt, generator):
        return task.denoising_loss(model, x_0, 0.0, {"prompt": prompt}, generator)

    settings = TrainingSettings(TRAINING_STEPS, TRAINING_BATCH, learning_rate=1e-4, ema_decay=0.99)
    return seconds_per_step(adapted, [latents, torch.zeros(256, dtype=torch.long)], loss, settings, compute)


run(main, snakemake)

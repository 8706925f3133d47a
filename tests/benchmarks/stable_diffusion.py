"""How fast Stable Diffusion 2's UNet samples, without and with a LoRA, and trains one, in the chain.

    PYTHONPATH=workflow/scripts python tests/benchmarks/stable_diffusion.py [sampling] [training]

By default both parts; on a GPU most of the minutes that each takes are compilation.
Random weights of the published sizes; bf16 and compiled on a GPU, a network of 1 M parameters without one. Prints
image-forwards a second of the bare network, of sampling (with the sampler's own work) and across P-GRAFT's cut, how
many graphs were compiled, to which the cut must add none, and images a second of LoRA training.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch._dynamo.utils import counters

from graft.compute import Compute
from graft.networks.stable_diffusion import AdaptedStableDiffusion, build_stable_diffusion
from graft.rollouts import SamplerSettings, roll_out
from graft.seeding import ChunkedNormal, Draw
from graft.speed import seconds_per_call
from graft.tasks.text_to_image import TextToImage
from graft.training import TrainingSettings, train

ON_GPU = torch.cuda.is_available()
SIDE, STEPS, BATCH = (64, 20, 64) if ON_GPU else (8, 4, 64)
TRAINING_BATCH = 32
UNET = (
    {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    }
    if ON_GPU
    else {
        "block_out_channels": [32, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
    }
)
TEXT = {"num_hidden_layers": 1, "num_attention_heads": 8, "max_position_embeddings": 77 if ON_GPU else 16}
TEXT |= {"hidden_size": 1024 if ON_GPU else 64, "intermediate_size": 128}


def networks(device):
    """The base and an adapted twin, with the prompt 'a' embedded."""
    autoencoder = AutoencoderKL(
        block_out_channels=[8] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8 * SIDE,
    )
    base = build_stable_diffusion({"unet": UNET, "text": TEXT}, autoencoder, ["a"], seed=0, run=0)
    base.to(device).eval().requires_grad_(False).know(["a"])
    return base, AdaptedStableDiffusion.new(base, rank=16, alpha=16, seed=0, run=0).to(device)


def main(parts):
    compute = Compute.of_job(threads=1, gpus=int(ON_GPU), precision="bf16" if ON_GPU else "fp32", compiled=ON_GPU)
    task = TextToImage(8 * SIDE, 4, 8, guidance=1.0, rollouts_per_condition=1, prompt_dropout=0.1, guided_loss=False)
    base, adapted = networks(compute.device)
    if "sampling" in parts:
        measure_sampling(task, base, adapted, compute)
    if "training" in parts:
        rate = TRAINING_BATCH / training_step(task, adapted, compute)
        print(f"LoRA training, batch {TRAINING_BATCH}: {rate:.1f} images/s")
    if ON_GPU:
        print(f"{torch.cuda.get_device_name()}, at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def measure_sampling(task, base, adapted, compute):
    """Print the speed of the base and of its adapted twin, alone and across a cut, and the graphs compiled."""
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
        settings = SamplerSettings(STEPS, 1.0, 1.0, BATCH)
        return lambda: roll_out(task, first, second, cut, settings, condition, normal, compute)

    forwards = {
        "bare network": BATCH / seconds_per_call(bare, compute, repeats=10),
        "sampling, base": BATCH * STEPS / seconds_per_call(sampling(below, below, 0), compute, repeats=3),
        "sampling, LoRA": BATCH * STEPS / seconds_per_call(sampling(above, above, 0), compute, repeats=3),
    }
    graphs = counters["stats"]["unique_graphs"]
    started = time.perf_counter()
    sampling(above, below, STEPS // 4)()
    compute.synchronize()
    forwards["the first time across a cut"] = BATCH * STEPS / (time.perf_counter() - started)
    for name, rate in forwards.items():
        print(f"{name}: {rate:.1f} image-forwards/s")
    print(f"graphs compiled: {graphs}, after the cut {counters['stats']['unique_graphs']}")


def training_step(task, adapted, compute):
    """Seconds of a step of fine-tuning on random latents."""
    for parameter in adapted.adapter():
        parameter.requires_grad_(True)
    latents = torch.randn(256, *task.shape, generator=torch.Generator().manual_seed(1))
    settings = TrainingSettings(60, TRAINING_BATCH, learning_rate=1e-4, ema_decay=0.99)

    def loss(model, x_0, prompt, generator):
        return task.denoising_loss(model, x_0, 0.0, {"prompt": prompt}, generator)

    with tempfile.TemporaryDirectory() as folder:
        log = train(
            adapted,
            [latents, torch.zeros(256, dtype=torch.long)],
            loss,
            settings,
            seed=0,
            run=0,
            compute=compute,
            checkpoint=Path(folder) / "checkpoint.safetensors",
            identity="",
        )
    return log.seconds_per_step


if __name__ == "__main__":
    main(sys.argv[1:] or ["sampling", "training"])

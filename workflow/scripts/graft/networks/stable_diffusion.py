"""Stable Diffusion as the chain takes it: a network that predicts the noise of latents, and LoRA adapters beside it."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from graft.errors import UserError, one_line
from graft.paths import StableDiffusionPath
from graft.seeding import drawn_weights

# Their bars for every file that is loaded would fill a job's output.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

ADAPTED = ["to_q", "to_k", "to_v", "to_out.0"]
"""The linear layers that get a LoRA: all projections of every attention, as is customary for Stable Diffusion."""

HUB = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
"""A hub repository with the commit that pins it."""

EMBEDDED = 256
"""Prompts that are embedded at a time."""

NONE_OF_THEM = {"safety_checker": None, "feature_extractor": None}
"""Parts of a pipeline that stay empty: they would judge images, which no method here asks for."""


class StableDiffusion(nn.Module):
    """The parts of a `StableDiffusionPipeline`, with a table of the embeddings of the prompts at hand.

    forward(x (B, C, h, w), timestep (B,) int64, context (B, L, D), guidance) -> the total noise in x, of its shape.
    context: rows of `embeddings`, or of `embed`. guidance: s in eps_u + s (eps_c - eps_u), with eps_u the prediction
    for the empty prompt; at 1, which is eps_c alone, the network is evaluated once and not twice.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        scheduler: DDIMScheduler,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.vae = unet, text_encoder, vae
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.predicts_velocity = scheduler.config.prediction_type == "v_prediction"
        self.register_buffer("empty", torch.empty(0), persistent=False)
        self.register_buffer("embeddings", torch.empty(0), persistent=False)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, guidance: float = 1.0) -> Tensor:
        if guidance == 1:
            return self.unet(x, timestep, context, return_dict=False)[0]
        context = torch.cat([self.empty.expand_as(context), context])
        both = self.unet(x.repeat(2, 1, 1, 1), timestep.repeat(2), context, return_dict=False)[0]
        unconditional, conditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (n, L) int64 on the CPU, padded and cut to the length that the text encoder takes."""
        length = self.tokenizer.model_max_length
        found = self.tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return found.input_ids

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (n, L, D) of token ids (n, L)."""
        return self.text_encoder(tokens)[0]

    @torch.no_grad()
    def know(self, captions: Sequence[str]) -> None:
        """Embed each caption once, into `embeddings` (n, L, D), and the empty prompt into `empty` (1, L, D)."""
        device = self.unet.device
        parts = [self.embed(part.to(device)) for part in self.tokens(["", *captions]).split(EMBEDDED)]
        self.empty, self.embeddings = torch.cat(parts).split([1, len(captions)])

    def too_long(self, captions: Sequence[str]) -> int:
        """How many of the captions have more tokens than the text encoder takes; their ends are cut off."""
        lengths = map(len, self.tokenizer(list(captions), truncation=False)["input_ids"])
        return sum(length > self.tokenizer.model_max_length for length in lengths)

    def encode(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) uint8, drawn from the autoencoder's posterior."""
        posterior = self.vae.encode(images.to(self.vae.dtype) / 127.5 - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 of latents (B, C, h, w)."""
        images = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte()

    def pipeline(self) -> StableDiffusionPipeline:
        """The same parts as diffusers' pipeline."""
        return StableDiffusionPipeline(
            self.vae,
            self.text_encoder,
            self.tokenizer,
            self.unet,
            self.scheduler,
            **NONE_OF_THEM,
            requires_safety_checker=False,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `StableDiffusionPipeline.from_pretrained` loads."""
        self.pipeline().save_pretrained(folder)


class AdaptedStableDiffusion(StableDiffusion):
    """A Stable Diffusion model with a LoRA on its UNet, that shares all other weights with `base`.

    Two modules rather than an adapter that is switched: each compiles to a graph of its own, and P-GRAFT's rollouts
    call the one above the cut and the other below it.
    """

    def __init__(self, base: StableDiffusion) -> None:
        tensors = [*base.unet.parameters(), *base.unet.buffers()]
        unet = copy.deepcopy(base.unet, {id(tensor): tensor for tensor in tensors})
        super().__init__(unet, base.text_encoder, base.vae, base.tokenizer, base.scheduler)
        self.empty, self.embeddings = base.empty, base.embeddings

    @classmethod
    def new(cls, base: StableDiffusion, rank: int, alpha: float, seed: int, run: int) -> AdaptedStableDiffusion:
        """A LoRA that changes nothing yet; its first factors are drawn from (seed, run)."""
        model = cls(base)
        with drawn_weights(seed, run):
            model.unet.add_adapter(
                LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=ADAPTED)
            )
        return model

    @classmethod
    def load(cls, base: StableDiffusion, folder: str | Path) -> AdaptedStableDiffusion:
        """A LoRA that `save_pretrained`, or another trainer of diffusers, wrote. Raises UserError if there is none."""
        model = cls(base)
        try:
            state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
                folder, use_safetensors=True, local_files_only=True, return_lora_metadata=True
            )
            StableDiffusionPipeline.load_lora_into_unet(state, alphas, model.unet, metadata=metadata)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"{folder}: no LoRA of this UNet in safetensors ({one_line(error)})") from error
        return model

    def adapter(self) -> list[nn.Parameter]:
        """The parameters of the LoRA."""
        return [parameter for name, parameter in self.unet.named_parameters() if "lora_" in name]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the LoRA, with its metadata, as `StableDiffusionPipeline.load_lora_weights` reads it."""
        ((name, config),) = self.unet.peft_config.items()
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet, adapter_name=name))
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=layers, unet_lora_adapter_metadata=config.to_dict()
        )


def load_stable_diffusion(source: str | Path) -> StableDiffusion:
    """The model of a folder, or of a hub repository as `owner/name@commit`, in float32, ready to be evaluated.

    Raises UserError if there is none, if a hub repository comes without its 40-digit commit, if the weights are not in
    safetensors, or if the model was trained with another noise schedule than `StableDiffusionPath`.
    """
    # By itself transformers takes a text encoder's precision from the folder, and diffusers does not.
    pipeline = load_pipeline(
        source, StableDiffusionPipeline, dtype=torch.float32, **NONE_OF_THEM, requires_safety_checker=False
    )
    model = StableDiffusion(
        pipeline.unet, pipeline.text_encoder, pipeline.vae, pipeline.tokenizer, matching_scheduler(pipeline.scheduler)
    )
    return model.eval().requires_grad_(False)


def load_pipeline(
    source: str | Path, kind: type[DiffusionPipeline] = DiffusionPipeline, **arguments: Any
) -> DiffusionPipeline:
    """diffusers' pipeline of a folder, or of a hub repository as `owner/name@commit`; its own kind if none is given.

    arguments: of `from_pretrained`. Raises UserError if there is none, if a hub repository comes without its 40-digit
    commit, or if the weights are not in safetensors.
    """
    name, revision = str(source), None
    if not Path(source).is_dir():
        if not HUB.fullmatch(name):
            raise UserError(
                f"{source}: neither a folder nor a hub repository with its commit, owner/name@40 hex digits"
            )
        name, revision = name.split("@")
    try:
        return kind.from_pretrained(
            name, revision=revision, local_files_only=revision is None, use_safetensors=True, **arguments
        )
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        wanted = "Stable Diffusion" if kind is StableDiffusionPipeline else "pipeline"
        raise UserError(
            f"{source}: no {wanted} with safetensors weights, saved by diffusers ({one_line(error)})"
        ) from error


def matching_scheduler(trained: Any) -> DDIMScheduler:
    """DDIM on the noise schedule that a model was trained with, at the times that `StableDiffusionPath` knows.

    Raises UserError for another schedule, and for a network that predicts neither noise nor velocity.
    """
    scheduler = DDIMScheduler.from_config(
        trained.config,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        rescale_betas_zero_snr=False,
    )
    kept = StableDiffusionPath().alpha(torch.arange(1, StableDiffusionPath.STEPS + 1) / StableDiffusionPath.STEPS) ** 2
    same = scheduler.alphas_cumprod.shape == kept.shape and torch.allclose(scheduler.alphas_cumprod, kept, rtol=1e-4)
    if not same or scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"base: trained with the schedule {trained.config.beta_schedule!r} from {trained.config.beta_start} to "
            f"{trained.config.beta_end} and {scheduler.config.prediction_type!r} as its prediction; Stable Diffusion's "
            "'scaled_linear' from 0.00085 to 0.012 with 'epsilon' or 'v_prediction' is needed"
        )
    return scheduler


def build_stable_diffusion(
    settings: dict[str, Any], vae: AutoencoderKL, words: Sequence[str], seed: int, run: int
) -> StableDiffusion:
    """A small Stable Diffusion to be trained from its start, with weights drawn from (seed, run).

    settings: `unet`, arguments of UNet2DConditionModel, and `text`, of CLIPTextConfig. vae: stays as it is. words: all
    that captions are made of, a token each.
    """
    text = settings["text"]
    tokenizer = word_tokenizer(words, text["max_position_embeddings"])
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with drawn_weights(seed, run):
        text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **ends, **text))
        unet = UNet2DConditionModel(
            sample_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1),
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            cross_attention_dim=text["hidden_size"],
            **settings["unet"],
        )
    scheduler = DDIMScheduler(
        beta_start=StableDiffusionPath.BETA_START,
        beta_end=StableDiffusionPath.BETA_END,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,
    )
    return StableDiffusion(unet, text_encoder, vae.eval().requires_grad_(False), tokenizer, scheduler)


def word_tokenizer(words: Sequence[str], length: int) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary in which each of `words` (lower case) is a token, at most `length` a text."""
    letters = sorted(set("".join(words)))
    merges: list[tuple[str, str]] = []
    for word in words:
        # What earlier words needed comes first, also within this one; a merge that comes last changes none of them.
        while len(parts := merged([*word[:-1], f"{word[-1]}</w>"], merges)) > 1:
            merges.append((parts[0], parts[1]))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    vocabulary = dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)}, merges=merges, model_max_length=length
    )


def merged(parts: list[str], merges: Sequence[tuple[str, str]]) -> list[str]:
    """The parts of a word after byte-pair encoding: each merge in turn, wherever its two parts stand side by side."""
    for left, right in merges:
        place = 0
        while place < len(parts) - 1:
            if (parts[place], parts[place + 1]) == (left, right):
                parts = [*parts[:place], left + right, *parts[place + 2 :]]
            place += 1
    return parts

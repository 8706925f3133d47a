"""Text to image: latents of a Stable Diffusion model, conditioned on prompts."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from torch import Tensor, nn

from graft import prompt_formats
from graft.compositions import WORDS, correct, parse
from graft.compute import Compute
from graft.errors import UserError
from graft.metrics.judges import load_judge
from graft.metrics.vqascore import VisualQuestionModel, vqascore
from graft.networks.classifier import ImageClassifier
from graft.networks.saved import load_saved
from graft.networks.stable_diffusion import (
    AdaptedStableDiffusion,
    StableDiffusion,
    build_stable_diffusion,
    load_stable_diffusion,
)
from graft.objectives import Anchor, FocusedTimes, noise_prediction, stratified_times
from graft.paths import StableDiffusionPath
from graft.picture_judges import Composed, train_picture_judges
from graft.rewards import load_reward, per_sample
from graft.sampling import Denoiser
from graft.seeding import Draw, generator
from graft.shards import ShardedTensor, TensorFile, load_prepared

logger = logging.getLogger(__name__)

Condition = dict[str, Tensor]
"""What a sample is conditioned on: `prompt` (B,) int64, its number in the `PromptTable` of the data."""

PIXELS = 2**21
"""Of pictures that an autoencoder decodes at a time: 8 of 512 x 512, which take it some 20 GB."""

PICTURE, CAPTION = 128, 24
"""Pixels of a picture in a figure, and of the line of text under it."""


@dataclass(frozen=True)
class PromptTable:
    """The different prompts of a prepared folder: captions, their kinds, and which of them only evaluate."""

    captions: list[str]
    kinds: list[str]
    held_out: Tensor


@dataclass(frozen=True)
class Pictures:
    """Images (B, 3, H, W) uint8 with the captions they should show, and the kinds of these."""

    images: Tensor
    captions: list[str]
    kinds: list[str]


@dataclass(frozen=True)
class TextToImage:
    """How pictures and their captions become points of a diffusion and back.

    A point (latent_channels, s, s), s = `image_size` / `downsampling`, is a latent of the base's autoencoder. guidance:
    the scale s >= 1 of classifier-free guidance, in rollouts and evaluation. rollouts_per_condition: so many rollouts
    in a row share a prompt. prompt_dropout: share of the training samples whose prompt is emptied. guided_loss:
    fine-tune the guided prediction, and not the conditional one with dropout: what draws guided rollouts is then what
    learns their law, so that without a selection that law stays as it is, and guidance is not compounded.
    """

    image_size: int
    latent_channels: int
    downsampling: int
    guidance: float
    rollouts_per_condition: int
    prompt_dropout: float
    guided_loss: bool

    path = StableDiffusionPath()
    precision = torch.float16
    lower_is_better = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w), the shape of a point."""
        side = self.image_size // self.downsampling
        return self.latent_channels, side, side

    def read(self, folder: Path, reader: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Prompts, and the pictures that show them where the asset has some.

        `captions` (n, W) and `kinds` (n, V) uint8, UTF-8 padded with zeros; `held_out` (n,) bool; `images` (n, 3, S, S)
        uint8.
        """
        found = prompt_formats.READERS[reader](folder, self.image_size)
        return arrays_of(prompt_formats.without_overlap([found])), {}

    def join(self, parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Several sets of prompts without pictures as one, in which nothing trains that evaluates."""
        sets = [prompt_formats.Prompts(texts(p["captions"]), texts(p["kinds"]), p["held_out"], None) for p in parts]
        return arrays_of(prompt_formats.without_overlap(sets))

    def training_data(self, folder: str | Path) -> list[list[Tensor]]:
        """Pictures and captions that may train. Raises UserError if the set has no pictures."""
        chosen = ~load_prepared(folder, "held_out")[:]
        try:
            images = load_prepared(folder, "images")
        except KeyError as error:
            raise UserError(f"{folder}: prompts without pictures train no base; set base.pretrained") from error
        return [[array[:][chosen] for array in (images, load_prepared(folder, "captions"))]]

    def build_network(self, settings: dict[str, Any], seed: int, run: int, autoencoder: str | Path) -> StableDiffusion:
        """See `graft.networks.stable_diffusion.build_stable_diffusion`; autoencoder: a folder of an AutoencoderKL."""
        vae = load_saved(autoencoder, {"AutoencoderKL": AutoencoderKL})
        return self._checked(build_stable_diffusion(settings, vae, WORDS, seed, run), autoencoder)

    def load_network(
        self, folder: str | Path, data: str | Path | None = None, device: torch.device | str = "cpu"
    ) -> StableDiffusion:
        """The base (see `load_stable_diffusion`) on a device; with `data`, the prompts of that folder are embedded."""
        network = self._checked(load_stable_diffusion(folder), folder).to(device)
        if data is not None:
            captions = prompt_table(str(data)).captions
            if long := network.too_long(captions):
                logger.warning(
                    "%d of %d prompts are longer than the text encoder reads and are cut", long, len(captions)
                )
            network.know(captions)
        return network

    def load_tuned(self, base: StableDiffusion, folder: str | Path) -> AdaptedStableDiffusion:
        """A fine-tuned model: a LoRA beside the base, whose weights it shares."""
        device = base.unet.device
        return AdaptedStableDiffusion.load(base, folder).to(device).eval().requires_grad_(False)

    def tunable(
        self, base: StableDiffusion, previous: str | Path | None, adapter: dict[str, Any], seed: int, run: int
    ) -> AdaptedStableDiffusion:
        """A model to fine-tune: a new LoRA of `adapter` (rank, alpha), or the one that was tuned before."""
        if previous is None:
            network = AdaptedStableDiffusion.new(base, **adapter, seed=seed, run=run)
        else:
            network = AdaptedStableDiffusion.load(base, previous)
        network.to(base.unet.device).requires_grad_(False)
        for parameter in network.adapter():
            parameter.requires_grad_(True)
        return network

    def _checked(self, network: StableDiffusion, source: str | Path) -> StableDiffusion:
        side, channels = network.unet.config.sample_size, network.unet.config.in_channels
        factor = 2 ** (len(network.vae.config.block_out_channels) - 1)
        if (channels, side, side) != self.shape or factor != self.downsampling:
            raise UserError(
                f"{source}: latents {(channels, side, side)} of images {side * factor} pixels wide, the configured "
                f"points are {self.shape} of {self.image_size}; set image_size, latent_channels and downsampling"
            )
        return network

    def loss(
        self,
        network: nn.Module,
        images: Tensor,
        captions: Tensor,
        generator: torch.Generator,
        times: FocusedTimes | None = None,
    ) -> Tensor:
        """Noise prediction at all times, for pictures (B, 3, S, S) uint8 and captions (B, W) as bytes; a scalar."""
        tokens = network.tokens(["", *texts(captions.cpu().numpy())]).to(images.device)
        empty, context = network.embed(tokens).split([1, len(images)])
        context = self._with_dropout(context, empty, generator)
        with torch.no_grad():
            x_0 = network.encode(images, generator)
        return self._noise_loss(network, context, 1.0, x_0, 0.0, generator, times, None)

    def denoising_loss(
        self,
        network: nn.Module,
        x_c: Tensor,
        cut_time: float,
        condition: Condition,
        generator: torch.Generator,
        times: FocusedTimes | None = None,
        anchor: Anchor | None = None,
    ) -> Tensor:
        """Noise prediction above a cut (see `graft.objectives`) of snapshots x_c (B, C, h, w); a scalar.

        times: the law of the times above the cut, uniform without one. anchor: of the network that x_c came from.
        """
        context, guidance = network.embeddings[condition["prompt"]], self.guidance
        if not self.guided_loss:
            context, guidance = self._with_dropout(context, network.empty, generator), 1.0
        return self._noise_loss(network, context, guidance, x_c, cut_time, generator, times, anchor)

    def _noise_loss(
        self,
        network: nn.Module,
        context: Tensor,
        guidance: float,
        x_c: Tensor,
        cut_time: float,
        generator: torch.Generator,
        times: FocusedTimes | None,
        anchor: Anchor | None,
    ) -> Tensor:
        predicting = partial(self._noise_predictor, context=context, guidance=guidance)
        noise = torch.randn(x_c.shape, generator=generator, device=x_c.device)
        t = stratified_times(x_c.float(), generator, cut_time, times)
        start = None if anchor is None else anchor.predicting(predicting)
        return noise_prediction(predicting(network), self.path, x_c.float(), cut_time, noise, t, start)

    def _with_dropout(self, context: Tensor, empty: Tensor, generator: torch.Generator) -> Tensor:
        dropped = torch.rand(len(context), generator=generator, device=context.device) < self.prompt_dropout
        return torch.where(dropped[:, None, None], empty, context)

    def _noise_predictor(self, network: nn.Module, context: Tensor, guidance: float) -> Denoiser:
        """E[eps | x_t] for x (B, C, h, w) and t (B,), with guidance."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            out = network(x, self.path.timestep(t), context, guidance).float()
            if not network.predicts_velocity:
                return out
            alpha, sigma = self._levels(t)
            return alpha * out + sigma * x

        return predict

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.path.alpha(t)[:, None, None, None], self.path.sigma(t)[:, None, None, None]

    def denoiser(self, network: Callable[..., Tensor], condition: Condition) -> Denoiser:
        """E[x_0 | x_t] = (x_t - sigma eps) / alpha, with the guided prediction eps."""
        predict = self._noise_predictor(network, network.embeddings[condition["prompt"]], self.guidance)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = self._levels(t)
            return (x - sigma * predict(x, t)) / alpha

        return denoise

    def conditions(
        self, folder: str | Path, seed: int, draw: Draw, stage: int, *index: int, start: int, stop: int
    ) -> Condition:
        """Conditions of the samples [start, stop): of each kind of prompt in turn the next, in a random order.

        After the last prompt of a kind comes its first again. Rollouts take training prompts, `rollouts_per_condition`
        samples each; the evaluation held-out ones, one each. Raises UserError if there are no such prompts.
        """
        table, evaluation = prompt_table(str(folder)), stage == Draw.EVALUATION
        rows = (table.held_out if evaluation else ~table.held_out).nonzero().squeeze(1)
        if not len(rows):
            raise UserError(f"{folder}: no prompt is left {'to evaluate' if evaluation else 'to train on'}; add some")
        shuffled = rows[torch.randperm(len(rows), generator=generator(seed, draw, int(stage), *index))].tolist()
        orders: dict[str, list[int]] = {table.kinds[row]: [] for row in rows.tolist()}
        for row in shuffled:
            orders[table.kinds[row]].append(row)
        kinds = list(orders.values())
        turns = (number // (1 if evaluation else self.rollouts_per_condition) for number in range(start, stop))
        places = ((kinds[turn % len(kinds)], turn // len(kinds)) for turn in turns)
        return {"prompt": torch.tensor([order[place % len(order)] for order, place in places])}

    def group(self, condition: Condition) -> Tensor:
        """(B,) int64: within which samples rewards are compared; those of one prompt."""
        return condition["prompt"]

    def describe(self, condition: Condition) -> dict[str, float]:
        """What a table notes of a set of samples: nothing; every method is given the same prompts."""
        return {}

    def project(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, C, h, w) as it is: every latent is a point."""
        return x

    def decode(self, x_0: Tensor, condition: Condition, data: str | Path, network: StableDiffusion) -> Pictures:
        """Points (B, C, h, w) as pictures, through the network's autoencoder, on the CPU."""
        device = network.vae.device
        images = [network.decode(part.to(device)).cpu() for part in x_0.split(max(1, PIXELS // self.image_size**2))]
        return pictures_of(torch.cat(images), condition, data)

    def stored(self, samples: Pictures) -> dict[str, Tensor]:
        """What a shard keeps of samples beside their points: every picture as PNG, end to end, and where they end."""
        # Of large pictures a GPU draws several in the time that one takes to be compressed.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            files = list(pool.map(png, samples.images))
        return {"png": torch.cat(files), "png_ends": torch.tensor([len(file) for file in files]).cumsum(dim=0)}

    def load_samples(self, paths: Sequence[str | Path], name: str, data: str | Path) -> Pictures:
        """The samples of a model from the shards that `stored` filled."""
        files = [TensorFile(path) for path in paths]
        images = torch.cat([pictures(file.tensor(f"{name}.png"), file.tensor(f"{name}.png_ends")) for file in files])
        return pictures_of(images, {"prompt": ShardedTensor(paths, "condition.prompt")[:]}, data)

    def rewards(self, samples: Pictures, reward: dict[str, Any], compute: Compute) -> np.ndarray:
        """Reward (B,) float64 of each picture, NaN where the function fails; see `graft.rewards.per_sample`.

        A user's function takes a PIL image and its caption.
        """
        if reward["function"] == "vqascore":
            judge = load_judge(reward["judge"], compute.device, reward["batch_size"])
            return scored(samples, judge, compute).double().numpy()
        images = (Image.fromarray(image) for image in samples.images.permute(0, 2, 3, 1).numpy())
        function = load_reward(reward["function"], known=("vqascore",))
        return per_sample(function, zip(images, samples.captions, strict=True))

    def sample_keys(self, samples: Pictures) -> list[str | None]:
        """What makes two samples the same; no two pictures are."""
        return [None] * len(samples.captions)

    def train_judges(
        self, data: str | Path, network: dict, training: dict, seed: int, compute: Compute, fit: Callable
    ) -> dict[str, Any]:
        """Train a scorer for the reward, another for evaluation, and a digit classifier; see `train_picture_judges`."""
        images, captions, held_out = (load_prepared(data, name)[:] for name in ("images", "captions", "held_out"))
        pictures = Composed(images, [parse(caption) for caption in texts(captions.numpy())], held_out)
        return train_picture_judges(pictures, network, training, seed, compute, fit)

    def reference(self, data: str | Path, judges: dict[str, Any], compute: Compute) -> dict[str, Any]:
        """What `metrics` measures with: the evaluating scorer, the classifier of digits where there is one, on what."""
        truth = judges.get("truth")
        return {
            "scorer": load_judge(judges["evaluation"], compute.device, judges["batch_size"]),
            "classify": truth and digit_classifier(truth, compute.device),
            "compute": compute,
        }

    def real(self, data: str | Path, count: int, seed: int) -> dict[str, Pictures]:
        """Samples of the data themselves for rows of the table: none."""
        return {}

    def metrics(self, samples: Pictures, reference: dict[str, Any]) -> dict[str, float]:
        """Mean VQAScore, in all and by kind of prompt, and the share of pictures that truly show their caption."""
        scores = scored(samples, reference["scorer"], reference["compute"]).double()
        kinds = np.array(samples.kinds)
        measured = {"vqascore": scores.mean().item()}
        measured |= {
            f"vqascore_{kind.replace(' ', '_')}": scores[kinds == kind].mean().item() for kind in np.unique(kinds)
        }
        if reference["classify"]:
            compositions = [parse(caption) for caption in samples.captions]
            measured["accuracy"] = float(correct(samples.images.numpy(), compositions, reference["classify"]).mean())
        return measured

    def picture(self, samples: Pictures, count: int) -> Image.Image:
        """The first samples side by side, with their captions."""
        sheet = Image.new("RGB", (PICTURE * count, PICTURE + CAPTION), "white")
        draw = ImageDraw.Draw(sheet)
        for place in range(min(count, len(samples.captions))):
            image = Image.fromarray(samples.images[place].permute(1, 2, 0).numpy())
            sheet.paste(image.resize((PICTURE, PICTURE), Image.Resampling.NEAREST), (PICTURE * place, 0))
            words = samples.captions[place].split()
            lines = "\n".join(" ".join(part) for part in (words[: -(-len(words) // 2)], words[-(-len(words) // 2) :]))
            draw.multiline_text((PICTURE * place + 2, PICTURE), lines, fill="black", font_size=9, spacing=1)
        return sheet


def scored(samples: Pictures, judge: VisualQuestionModel, compute: Compute) -> Tensor:
    """VQAScores (B,) of pictures and their captions, in the judge's batches, or smaller ones where these do not fit."""
    return compute.fitting(
        lambda size: vqascore(samples.images, samples.captions, replace(judge, batch_size=size)), judge.batch_size
    )


def digit_classifier(folder: str | Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from grey tiles (m, 1, s, s) uint8 to their digits (m,), by a saved `ImageClassifier`."""
    network = load_saved(folder, {"ImageClassifier": ImageClassifier}, device)
    return lambda tiles: network(tiles.to(device)).argmax(dim=1).cpu()


def arrays_of(prompts: prompt_formats.Prompts) -> dict[str, np.ndarray]:
    """The arrays of a prepared folder, from what a reader found."""
    arrays = {
        "captions": padded(prompts.captions),
        "kinds": padded(prompts.kinds),
        "held_out": np.asarray(prompts.held_out, dtype=bool),
    }
    return arrays if prompts.images is None else {**arrays, "images": prompts.images}


def padded(strings: Sequence[str]) -> np.ndarray:
    """UTF-8 bytes (n, W) uint8, padded with zeros to the longest."""
    found = [text.encode() for text in strings]
    width = max(map(len, found), default=1)
    return np.array([list(text.ljust(width, b"\0")) for text in found], dtype=np.uint8)


def texts(array: np.ndarray) -> list[str]:
    """The strings of `padded` bytes (n, W)."""
    return [bytes(row).rstrip(b"\0").decode() for row in array]


@cache
def prompt_table(folder: str) -> PromptTable:
    """The different prompts of a prepared folder, in the order in which they first come."""
    captions = texts(load_prepared(folder, "captions")[:].numpy())
    kinds = texts(load_prepared(folder, "kinds")[:].numpy())
    held_out = load_prepared(folder, "held_out")[:]
    first = {caption: row for row, caption in reversed(list(enumerate(captions)))}
    rows = sorted(first.values())
    return PromptTable([captions[row] for row in rows], [kinds[row] for row in rows], held_out[rows])


def pictures_of(images: Tensor, condition: Condition, data: str | Path) -> Pictures:
    """Images with the captions of their prompts."""
    table, rows = prompt_table(str(data)), condition["prompt"].tolist()
    return Pictures(images, [table.captions[row] for row in rows], [table.kinds[row] for row in rows])


def png(image: Tensor) -> Tensor:
    """An image (3, H, W) uint8 as the bytes (n,) of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def pictures(files: Tensor, ends: Tensor) -> Tensor:
    """Images (n, 3, H, W) uint8 of PNG files that stand one after the other, with their ends (n,)."""
    found = np.split(files.numpy(), ends[:-1].tolist())
    images = [np.asarray(Image.open(io.BytesIO(file.tobytes())).convert("RGB")) for file in found]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

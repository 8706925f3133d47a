"""A small network that says how likely a picture is to show a caption, over a closed vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import softplus

from graft.errors import UserError

GRID = 4
"""Places along each side of a picture that the convolutions end in: enough to tell left from right."""

CERTAIN = 3.0
"""At the start, the log-odds of yes to a caption of which every word is certain."""


class QuestionScorer(ModelMixin, ConfigMixin):
    """Reads the words of a caption off a picture, and tells from their likelihoods whether the picture shows a text.

    Each entry of `widths` is a stage of two 3 x 3 convolutions, with a halving of the resolution between stages; then
    pooling to GRID x GRID places and a hidden layer of `features` units that sees them all. It predicts each of the
    `length` words of the caption among `vocabulary`, or that there is none. The logit of yes is linear in the
    log-likelihoods of a text's words, so that a single wrong word suffices for no.
    """

    @register_to_config
    def __init__(
        self, image_size: int, vocabulary: Sequence[str], length: int, widths: Sequence[int], features: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((3, *widths), widths, strict=False)):
            layers += [nn.MaxPool2d(2)] if number else []
            layers += _convolution(before, after) + _convolution(after, after)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(GRID * GRID * widths[-1], features), nn.SiLU())
        self.words = nn.Linear(features, length * (len(vocabulary) + 1))
        self.answer = nn.Linear(length, 1)
        nn.init.ones_(self.answer.weight)
        nn.init.constant_(self.answer.bias, CERTAIN)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Captions as `forward` takes them: (n, length) int64 on the CPU, numbers of words from 1, 0 behind the last.

        Raises UserError for a word outside the vocabulary, or a caption of more than `length` words.
        """
        numbers = {word: number for number, word in enumerate(self.config.vocabulary, 1)}
        rows = torch.zeros(len(captions), self.config.length, dtype=torch.long)
        for row, caption in zip(rows, captions, strict=True):
            words = caption.split()
            if unknown := [word for word in words if word not in numbers]:
                known = ", ".join(numbers)
                raise UserError(f"caption {caption!r}: the scorer does not know the word {unknown[0]!r}, only {known}")
            if len(words) > len(row):
                raise UserError(f"caption {caption!r}: {len(words)} words, but the scorer reads {len(row)}; shorten it")
            row[: len(words)] = torch.tensor([numbers[word] for word in words])
        return rows

    def log_likelihoods(self, images: Tensor, words: Tensor) -> Tensor:
        """Log-probabilities (B, k, length), <= 0, of the words (B, k, length) of k captions of each picture.

        images are uint8 (B, 3, image_size, image_size), words as `tokens` gives them.
        """
        hidden = self.hidden(self.body(images.float() / 127.5 - 1))
        predicted = self.words(hidden).unflatten(1, (self.config.length, -1)).log_softmax(dim=2)
        return predicted.gather(2, words.mT).mT

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """Logits (B,) that pictures (B, 3, image_size, image_size) uint8 show their captions, words (B, length)."""
        return self.answer(self.log_likelihoods(images, words[:, None])).flatten()


def question_loss(
    network: QuestionScorer, images: Tensor, words: Tensor, contradicted: Tensor, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of yes to pictures with their captions and no to wrong ones, plus that of the captions' words.

    images are uint8 (B, 3, S, S), words (B, length) their captions, contradicted (B, k, length) k wrong captions of
    each, which together weigh as much as the right one. Nothing is random. Returns a scalar, in nats.
    """
    likelihoods = network.log_likelihoods(images, torch.cat([words[:, None], contradicted], dim=1))
    logits = network.answer(likelihoods)
    return softplus(-logits[:, 0]).mean() + softplus(logits[:, 1:]).mean() - likelihoods[:, 0].mean()


@dataclass(frozen=True)
class ScorerModel:
    """A scorer as a `graft.metrics.vqascore.VisualQuestionModel`, so that a score is the probability of yes."""

    network: QuestionScorer
    batch_size: int

    @torch.no_grad()
    def answer_loss(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """-log of the probability (b,) of yes, in nats, given RGB images and their texts.

        Raises UserError if an image does not have the size that the scorer was trained on, and as `tokens` does.
        """
        size = self.network.config.image_size
        if other := [image.size for image in images if image.size != (size, size)]:
            width, height = other[0]
            raise UserError(
                f"the scorer takes images of {size} x {size} pixels, not of {width} x {height}; resize them"
            )
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
        device = next(self.network.parameters()).device
        return softplus(-self.network(pixels.to(device), self.network.tokens(texts).to(device)))


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.SiLU()]

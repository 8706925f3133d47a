"""A small network that says how likely a picture is to show a caption, over a closed vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from graft.errors import UserError

GRID = 4
"""Places along a side of the picture, in each of which the last layer tells what is there."""


class QuestionScorer(ModelMixin, ConfigMixin):
    """Reads a picture as the words of a caption, and tells from their likelihoods whether it shows a given caption.

    Each entry of `widths` is a stage of two 3 x 3 convolutions, with a halving of the resolution between stages; then
    pooling to GRID x GRID places and a hidden layer of `features` units for all of them. Out of it each of the `length`
    words of a caption is predicted, among `vocabulary` and, behind the last one, nothing. An answer of yes weighs how
    likely every single word of the caption is, so that one wrong word suffices for no.
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

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Captions as `forward` takes them: (n, length) int64, numbers of words from 1, 0 behind the last.

        Raises UserError for a word outside the vocabulary, or a caption of more than `length` words.
        """
        numbers = {word: number for number, word in enumerate(self.config.vocabulary, 1)}
        rows = torch.zeros(len(captions), self.config.length, dtype=torch.long)
        for row, caption in zip(rows, captions, strict=True):
            words = caption.split()
            if unknown := [word for word in words if word not in numbers]:
                raise UserError(
                    f"caption {caption!r}: the scorer does not know {unknown[0]!r}, only {', '.join(numbers)}"
                )
            if len(words) > len(row):
                raise UserError(f"caption {caption!r}: {len(words)} words, but the scorer reads at most {len(row)}")
            row[: len(words)] = torch.tensor([numbers[word] for word in words])
        return rows

    def log_likelihoods(self, images: Tensor, words: Tensor) -> Tensor:
        """Log-probability, <= 0, of every word of k captions of each picture: (B, k, length).

        images are uint8 (B, 3, image_size, image_size), words (B, k, length) int64.
        """
        hidden = self.hidden(self.body(images.float() / 127.5 - 1))
        likelihoods = self.words(hidden).unflatten(1, (self.config.length, -1)).log_softmax(dim=2)
        return likelihoods.gather(2, words.mT).mT

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """Logits (B,) that each picture (B, 3, image_size, image_size) uint8 shows its caption, words (B, length)."""
        return self.answer(self.log_likelihoods(images, words[:, None]))[:, 0, 0]


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.SiLU()]

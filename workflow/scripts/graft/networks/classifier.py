"""A small image classifier, whose last hidden layer is the feature space of the Frechet distance."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class ImageClassifier(ModelMixin, ConfigMixin):
    """Convolutional classifier of uint8 images (B, in_channels, H, W).

    Each entry of `widths` is a stage of two 3 x 3 convolutions, with a halving of the resolution between stages; then
    pooling to 2 x 2 and a hidden layer of `features` units. There is no normalisation: it would hide from the Frechet
    distance a contrast that is wrong in every sample.
    """

    @register_to_config
    def __init__(self, in_channels: int, classes: int, widths: tuple[int, ...], features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            layers += [nn.MaxPool2d(2)] if number else []
            layers += _convolution(before, after) + _convolution(after, after)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(4 * widths[-1], features), nn.SiLU())
        self.head = nn.Linear(features, classes)
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Scale the features to unit variance, on average over units, on these images (n, C, H, W)."""
        self.scale.copy_(self._penultimate(images).var(dim=0).mean().sqrt())

    def features(self, images: Tensor) -> Tensor:
        """Last hidden layer (B, features) of uint8 images (B, C, H, W), over `scale`."""
        return self._penultimate(images) / self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, classes)."""
        return self.head(self._penultimate(images))

    def _penultimate(self, images: Tensor) -> Tensor:
        return self.hidden(self.body(images.float() / 127.5 - 1))


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.SiLU()]

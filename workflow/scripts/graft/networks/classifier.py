"""A small image classifier, whose last hidden layer is the feature space of the Frechet distance."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class ImageClassifier(ModelMixin, ConfigMixin):
    """Convolutional classifier of uint8 images (B, in_channels, H, W).

    Each entry of `widths` is a stage of two 3 x 3 convolutions, with a halving of the resolution between stages; then
    global average pooling and a hidden layer of `features` units.
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

    def features(self, images: Tensor) -> Tensor:
        """Last hidden layer (B, features) of uint8 images (B, C, H, W)."""
        return self.hidden(self.body(images.float() / 127.5 - 1))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, classes)."""
        return self.head(self.features(images))


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(min(8, after), after), nn.SiLU()]

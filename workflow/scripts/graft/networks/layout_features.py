"""The network whose features the Frechet distance of layouts is measured on, and which tells real pages."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

DISTURBED = 0.5
"""Share of the pages, and of the boxes of such a page, that are disturbed in training."""

DISTURBANCE = (0.01, 0.1)
"""Smallest and largest standard deviation, in page sizes, of a disturbed page's boxes."""

HIDDEN = 0.25
"""Share of the elements whose class is hidden in training."""


class LayoutFeatures(ModelMixin, ConfigMixin):
    """A transformer over a page's boxes and classes with a page token, whose final state is the page's features.

    Trained to tell pages from pages with disturbed boxes, as the layout networks of LayoutGAN++ (Kikuchi et al. 2021)
    are, and to name classes that are hidden from it. Distances on its features are comparable with each other only.
    """

    @register_to_config
    def __init__(self, classes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.enter = nn.Linear(4 + classes + 1, width)
        self.page = nn.Parameter(0.02 * torch.randn(width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.real = nn.Linear(width, 1)
        self.name = nn.Linear(width, classes)

    def forward(self, boxes: Tensor, classes: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, width) of pages and states (B, N, width) of their elements.

        boxes (B, N, 4), centre and size in [0, 1]; classes (B, N) int64, 0 for no element; hidden (B, N) bool, which
        classes the network does not see.
        """
        known = one_hot(classes, self.config.classes + 1)[..., 1:] * ~hidden[..., None]
        elements = self.enter(torch.cat([2 * boxes - 1, known, hidden[..., None]], dim=-1).to(boxes.dtype))
        sequence = torch.cat([self.page.expand(len(boxes), 1, -1), elements], dim=1)
        absent = torch.cat([torch.zeros_like(hidden[:, :1]), classes == 0], dim=1)
        states = self.norm(self.body(sequence, src_key_padding_mask=absent))
        return states[:, 0], states[:, 1:]

    @torch.no_grad()
    def realism_of(self, boxes: Tensor, classes: Tensor, batch_size: int) -> Tensor:
        """Log-odds (n,) float32 on the CPU, in nats, that pages are real and not disturbed, `batch_size` at a time."""
        features = self.features_of(boxes, classes, batch_size)
        return self.real(features.to(self.page.device)).flatten().cpu()

    @torch.no_grad()
    def features_of(self, boxes: Tensor, classes: Tensor, batch_size: int) -> Tensor:
        """Features (n, width) float32 on the CPU of pages, `batch_size` at a time."""
        parts = []
        for some, kinds in zip(boxes.split(batch_size), classes.split(batch_size), strict=True):
            kinds = kinds.long().to(self.page.device)
            parts.append(self(some.float().to(kinds.device), kinds, torch.zeros_like(kinds, dtype=torch.bool))[0].cpu())
        return torch.cat(parts)


def disturb(boxes: Tensor, classes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pages of which half are disturbed: boxes (B, N, 4), and whether each page (B,) is still as it was.

    Each box of a disturbed page is moved with a chance of DISTURBED, by Gaussian noise of a standard deviation that is
    drawn for the page from DISTURBANCE, evenly in its logarithm.
    """

    def chosen(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=boxes.device) < DISTURBED

    low, high = DISTURBANCE
    moved = chosen(len(boxes), 1) & chosen(*classes.shape) & (classes > 0)
    size = low * (high / low) ** torch.rand(len(boxes), 1, 1, generator=generator, device=boxes.device)
    noise = torch.randn(boxes.shape, generator=generator, device=boxes.device)
    return boxes + moved[..., None] * size * noise, ~moved.any(dim=1)


def layout_features_loss(network: LayoutFeatures, boxes: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy of real against disturbed pages (see `disturb`), plus that of hidden classes, in nats; a scalar.

    boxes (B, N, 4), centre and size in [0, 1]; classes (B, N), 0 for no element.
    """
    classes = classes.long()
    boxes, untouched = disturb(boxes, classes, generator)
    hidden = torch.rand(classes.shape, generator=generator, device=boxes.device) < HIDDEN
    hidden &= classes > 0
    features, states = network(boxes, classes, hidden)
    real = binary_cross_entropy_with_logits(network.real(features).flatten(), untouched.to(features.dtype))
    named = cross_entropy(network.name(states)[hidden], classes[hidden] - 1, reduction="sum")
    return real + named / hidden.sum().clamp(min=1)


@torch.no_grad()
def tells_disturbed(
    network: LayoutFeatures, boxes: Tensor, classes: Tensor, generator: torch.Generator
) -> dict[str, float | None]:
    """Shares of pages (n, N, 4), (n, N) that the network takes for what they are, half of them disturbed.

    None where there are no such pages.
    """
    classes = classes.long()
    boxes, untouched = disturb(boxes, classes, generator)
    real = network.real(network(boxes, classes, torch.zeros_like(classes, dtype=torch.bool))[0]).flatten() > 0
    found = {"real_recognised": real[untouched], "disturbed_recognised": ~real[~untouched]}
    return {name: right.double().mean().item() if len(right) else None for name, right in found.items()}

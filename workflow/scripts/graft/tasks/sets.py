"""What tasks on sets share: elements with coordinates and a class each, noised and denoised together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from graft.errors import UserError
from graft.networks.saved import load_saved
from graft.networks.set_transformer import SetTransformer
from graft.objectives import Anchor, FocusedTimes, denoising, stratified_times
from graft.paths import StraightPath
from graft.sampling import Denoiser
from graft.seeding import drawn_weights

Condition = dict[str, Tensor]
"""What a sample is conditioned on: tensors (B, ...) by name."""


class SetTask:
    """Points (N, D + K): the D coordinates, in model units, and the one-hot class of each of at most N elements.

    One-hot classes are scaled by `class_scale`, and rows beyond a set's elements are zero. A subclass says D
    (`coordinates`), whether the first three are positions in space (`spatial`, see `SetTransformer`), N
    (`max_elements`), K (`classes`, 0 where they are given and not denoised) and what a condition makes of a point
    (`mask`, `project`).
    """

    coordinates: ClassVar[int]
    spatial: ClassVar[bool]
    max_elements: int
    class_scale: float = 1.0
    path = StraightPath()
    precision = torch.float32
    lower_is_better: ClassVar[tuple[str, ...]] = ()

    @property
    def classes(self) -> int:
        """K, how many channels of a point are classes."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D + K), the shape of a point."""
        return self.max_elements, self.coordinates + self.classes

    @property
    def in_channels(self) -> int:
        """Channels that the network reads of each element: those of a point, unless a condition adds to them."""
        return self.shape[1]

    def mask(self, condition: Condition) -> Tensor:
        """(B, N) bool: which rows are elements."""
        raise NotImplementedError

    def project(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, N, D + K) in the subspace that points live in."""
        raise NotImplementedError

    def augment(self, x_c: Tensor, generator: torch.Generator) -> Tensor:
        """Points (B, N, D + K) as training sees them: under a random symmetry of the data, where there is one."""
        return x_c

    def network_input(self, x: Tensor, condition: Condition) -> Tensor:
        """What the network reads of scaled points x (B, N, D + K): (B, N, in_channels)."""
        return x

    def build_network(self, settings: dict[str, Any], seed: int, run: int) -> SetTransformer:
        """A `SetTransformer` of the sizes in settings (width, depth, heads), its weights drawn from (seed, run).

        Raises UserError if the heads do not divide the width.
        """
        count, channels = self.shape
        if settings["width"] % settings["heads"]:
            raise UserError(f"network: {settings['heads']} heads do not divide the width {settings['width']}")
        with drawn_weights(seed, run):
            return SetTransformer(
                in_channels=self.in_channels,
                out_channels=channels,
                max_elements=count,
                spatial=self.spatial,
                **settings,
            )

    def load_network(
        self, folder: str | Path, data: str | Path | None = None, device: torch.device | str = "cpu"
    ) -> SetTransformer:
        """A `SetTransformer` saved by `save_pretrained`, on a device; it needs nothing of the `data`.

        Raises UserError if there is none, or one for other points.
        """
        network = load_saved(folder, {"SetTransformer": SetTransformer}, device)
        config, (count, channels) = network.config, self.shape
        found = (config.max_elements, config.in_channels, config.out_channels)
        if found != (count, self.in_channels, channels):
            raise UserError(
                f"{folder}: a SetTransformer of (elements, channels in, channels out) = {found}, the configured points "
                f"need {(count, self.in_channels, channels)}"
            )
        if config.spatial != self.spatial:
            raise UserError(f"{folder}: a SetTransformer with spatial = {config.spatial}, this task needs the other")
        return network

    def load_tuned(self, base: SetTransformer, folder: str | Path) -> SetTransformer:
        """A fine-tuned model, which is a network of its own beside the base."""
        return self.load_network(folder, device=next(base.parameters()).device)

    def tunable(
        self, base: SetTransformer, previous: str | Path | None, adapter: None, seed: int, run: int
    ) -> SetTransformer:
        """A model to fine-tune: a copy of the base, or what was tuned before; all of it, without an adapter."""
        return (copy.deepcopy(base) if previous is None else self.load_tuned(base, previous)).requires_grad_(True)

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
        """Denoising above a cut (`graft.objectives.denoising`) of snapshots x_c (B, N, D + K); a scalar.

        The mean is over all of N, whether x_c has all its rows or only the first ones, the others being padding.

        times: the law of the times above the cut, uniform without one. anchor: of the network that x_c came from.
        """
        x_c = self.augment(x_c, generator)
        noise = self.project(torch.randn(x_c.shape, generator=generator, device=x_c.device), condition)
        t = stratified_times(x_c, generator, cut_time, times)
        denoise = partial(self.denoiser, condition=condition)
        start = None if anchor is None else anchor.predicting(denoise)
        mean = denoising(denoise(network), self.weight, self.path, x_c, cut_time, noise, t, start)
        # Sets that come without their padding count as much as others.
        return mean * (x_c.shape[1] / self.max_elements)

    def denoiser(self, network: Callable[..., Tensor], condition: Condition) -> Denoiser:
        """E[x_0 | x_t] under a `SetTransformer`.

        Coordinates are preconditioned as in EDM (Karras et al. 2022), for data of unit variance: c_skip x_t + c_out F
        with c_skip = alpha / (alpha^2 + sigma^2), c_out = sigma / sqrt(alpha^2 + sigma^2), and inputs scaled by
        1 / sqrt(alpha^2 + sigma^2). Classes are softmax probabilities, scaled.
        """
        whole, dimensions = self.mask(condition), self.coordinates

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            mask = whole[:, : x.shape[1]]
            alpha, sigma = self.path.alpha(t)[:, None, None], self.path.sigma(t)[:, None, None]
            scale = (alpha**2 + sigma**2).rsqrt()
            out = network(self.network_input(x * scale, condition), t, mask).float()
            coordinates = alpha * scale**2 * x[..., :dimensions] + sigma * scale * out[..., :dimensions]
            classes = self.class_scale * functional.softmax(out[..., dimensions:], dim=-1)
            return self.project(torch.cat([coordinates, classes], dim=-1), condition)

        return denoise

    def stored(self, samples: Any) -> dict[str, Tensor]:
        """What a shard keeps of samples beside their points: nothing."""
        return {}

    def real(self, data: str | Path, count: int, seed: int) -> dict[str, Any]:
        """Samples of the data themselves, as many as `count`, for rows of the table by their names: none."""
        return {}

    def weight(self, t: Tensor) -> Tensor:
        """Weight (B, 1, D + K) of the squared error in x_0: 1 / c_out^2 for coordinates, one for probabilities."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        coordinates = ((alpha**2 + sigma**2) / sigma**2)[:, None].expand(-1, self.coordinates)
        classes = torch.full((len(t), self.classes), self.class_scale**-2, device=t.device)
        return torch.cat([coordinates, classes], dim=1)[:, None]

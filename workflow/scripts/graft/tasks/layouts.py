"""Page layouts: boxes of text, titles, lists, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import one_hot

from graft import layout_formats
from graft.compute import Compute
from graft.errors import UserError
from graft.layout_formats import CLASSES
from graft.metrics.frechet import frechet_distance
from graft.metrics.layouts import alignment, maximum_iou, overlap
from graft.networks.layout_features import LayoutFeatures, layout_features_loss, tells_disturbed
from graft.networks.saved import load_saved
from graft.objectives import FocusedTimes
from graft.rewards import load_reward, per_sample
from graft.seeding import Draw, chunked_rows, drawn_weights, generator
from graft.shards import ShardedTensor, load_prepared
from graft.tasks.sets import Condition, SetTask

EDGE_SCALE = 4.0
"""Model units in a page's width or height, about its middle: edges get a standard deviation of about one."""

GRID = 127
"""Two pages are the same if their edges are on a grid of so many steps, that of PubLayNet's text format."""

COLOURS = {"text": "#f67088", "title": "#ad9c31", "list": "#33b07a", "table": "#38a8c5", "figure": "#cc79f4"}
"""Those of LayoutGAN++'s figures (Kikuchi et al. 2021): as many evenly spaced hues of HUSL as there are classes."""

JUDGES_RUNS = {"features": 1, "reward": 2}
"""Numbers of the judges' streams of random numbers."""

PICTURE = (106, 150)
"""Width and height in pixels of a drawn page, in the proportions of paper."""


@dataclass(frozen=True)
class Layouts(SetTask):
    """How page layouts become points of a diffusion and back.

    A point (N, 4 + K) holds the left, top, right and bottom edges, in model units, of each of at most N =
    `max_elements` boxes and its one-hot class out of K; rows beyond the page's elements are zero. Edges and not centres
    and sizes, since edges are what is aligned. Classes are noised with the edges and denoised as probabilities, like
    the elements of molecules: one Gaussian chain, whose law above a cut is known.

    Without `rollouts_per_condition` the condition is the number of elements, drawn from the data's histogram, and all
    pages are compared with one another. With it the classes are given: they are the condition, those of pages of the
    data, with so many rollouts of each, which are compared with one another; and a point is (N, 4), the edges alone.
    """

    max_elements: int
    rollouts_per_condition: int | None

    coordinates, spatial = 4, False
    lower_is_better = ("alignment_x100", "overlap", "fd_layout_network")

    @property
    def given_classes(self) -> bool:
        """Whether the classes are the condition."""
        return self.rollouts_per_condition is not None

    @property
    def classes(self) -> int:
        """K; 0 where the classes are given."""
        return 0 if self.given_classes else len(CLASSES)

    @property
    def in_channels(self) -> int:
        """The edges and the classes, noised or given."""
        return self.coordinates + len(CLASSES)

    def read(self, folder: Path, reader: str) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """`boxes` (n, N, 4) float32, `classes` (n, N) uint8, `held_out` (n,); what was left out, by reason."""
        found = layout_formats.READERS[reader](folder, self.max_elements)
        return {"boxes": found.boxes, "classes": found.classes, "held_out": found.held_out}, found.counts

    def training_data(self, folder: str | Path) -> list[list[Tensor]]:
        """Boxes and classes of the pages that are not held out."""
        return [list(pages(str(folder), held_out=False))]

    def loss(
        self,
        network: nn.Module,
        boxes: Tensor,
        classes: Tensor,
        generator: torch.Generator,
        times: FocusedTimes | None = None,
    ) -> Tensor:
        """Denoising at all times; see `encode` and `denoising_loss` for the arguments."""
        condition = self.condition_of(classes.long())
        return self.denoising_loss(network, self.encode(boxes, classes), 0.0, condition, generator, times)

    def condition_of(self, classes: Tensor) -> Condition:
        """The condition of pages of classes (B, N) int64, 0 for no element."""
        return {"classes": classes} if self.given_classes else {"elements": (classes > 0).sum(dim=1)}

    def conditions(
        self, folder: str | Path, seed: int, draw: Draw, stage: int, *index: int, start: int, stop: int
    ) -> Condition:
        """Conditions of the samples [start, stop), from the training pages; in the evaluation from held-out ones.

        Given classes are those of the pages in a random order, `rollouts_per_condition` samples each, in the evaluation
        one each; after the last page comes the first again. `page` numbers them. Numbers of elements are drawn.
        """
        evaluation = stage == Draw.EVALUATION
        classes = pages(str(folder), held_out=evaluation and self.given_classes)[1].long()
        if not self.given_classes:
            rows = chunked_rows(len(classes), seed, draw, int(stage), *index, start=start, stop=stop)
            return self.condition_of(classes[rows])
        order = torch.randperm(len(classes), generator=generator(seed, draw, int(stage), *index))
        turns = torch.arange(start, stop) // (1 if evaluation else self.rollouts_per_condition)
        rows = order[turns % len(classes)]
        return {**self.condition_of(classes[rows]), "page": rows}

    def group(self, condition: Condition) -> Tensor:
        """(B,) int64: within which samples rewards are compared; those of the same given classes, or all."""
        if self.given_classes:
            return condition["page"]
        return torch.zeros(len(condition["elements"]), dtype=torch.long)

    def describe(self, condition: Condition) -> dict[str, float]:
        """What a table notes of a set of samples that no cut can move: the mean number of elements."""
        return {"mean_elements": self.mask(condition).sum(dim=1).double().mean().item()}

    def mask(self, condition: Condition) -> Tensor:
        """(B, N) bool: which rows are elements."""
        if self.given_classes:
            return condition["classes"] > 0
        elements = condition["elements"]
        return torch.arange(self.max_elements, device=elements.device) < elements[:, None]

    def project(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, N, 4 + K) with nothing beyond the page's elements."""
        return x * self.mask(condition)[..., None]

    def network_input(self, x: Tensor, condition: Condition) -> Tensor:
        """Scaled points (B, N, 4 + K), with the given classes beside the edges."""
        if not self.given_classes:
            return x
        given = one_hot(condition["classes"], len(CLASSES) + 1)[..., 1:]
        return torch.cat([x, given.to(x.dtype)], dim=-1)

    def encode(self, boxes: Tensor, classes: Tensor) -> Tensor:
        """Points (B, N, 4 + K) of pages: boxes (B, N, 4), centre and size in [0, 1]; classes (B, N), 0 for none."""
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        edges = EDGE_SCALE * (torch.cat([centre - half, centre + half], dim=-1) - 0.5)
        parts = [edges] if self.given_classes else [edges, one_hot(classes.long(), len(CLASSES) + 1)[..., 1:].float()]
        return self.project(torch.cat(parts, dim=-1), self.condition_of(classes.long()))

    def decode(
        self, x_0: Tensor, condition: Condition, data: str | Path | None = None, network: nn.Module | None = None
    ) -> Pages:
        """Points (B, N, 4 + K) as pages: edges in their order, cut off where the page ends."""
        mask = self.mask(condition)
        edges = (x_0[..., :4].float() / EDGE_SCALE + 0.5).clamp(0, 1)
        near, far = torch.minimum(edges[..., :2], edges[..., 2:]), torch.maximum(edges[..., :2], edges[..., 2:])
        found = condition["classes"] if self.given_classes else x_0[..., 4:].argmax(dim=-1) + 1
        return Pages(torch.cat([(near + far) / 2, far - near], dim=-1) * mask[..., None], found * mask)

    def load_samples(self, paths: Sequence[str | Path], name: str, data: str | Path) -> Pages:
        """The samples of a model from shards of rollouts."""
        key = "classes" if self.given_classes else "elements"
        condition = {key: ShardedTensor(paths, f"condition.{key}")[:]}
        return self.decode(ShardedTensor(paths, f"{name}.step0")[:], condition)

    def rewards(self, samples: Pages, reward: dict[str, Any], compute: Compute) -> np.ndarray:
        """Reward (B,) float64 of each page, NaN where the function fails; see `graft.rewards.per_sample`.

        `tidiness` is -(a 100 alignment + o overlap) + r realism with the `weights` a, o and r, realism being the
        log-odds, under the judge of the reward, that the page is a real one (`LayoutFeatures.realism_of`). A user's
        function takes the boxes (n, 4), centre and size, and the names of the classes of a page's n elements.
        """
        if reward["function"] == "tidiness":
            weights = reward["weights"]
            untidy = weights["alignment"] * 100 * alignment(samples.boxes, samples.mask)
            tidy = -(untidy + weights["overlap"] * overlap(samples.boxes, samples.mask)).double()
            if weights["realism"]:
                judge = load_judge(reward["judge"], compute.device)
                tidy += weights["realism"] * judge.realism_of(*samples, batch_size=reward["batch_size"]).double()
            return tidy.numpy()
        arguments = (
            (boxes[classes > 0], [CLASSES[number - 1] for number in classes[classes > 0]])
            for boxes, classes in zip(samples.boxes.numpy(), samples.classes.numpy(), strict=True)
        )
        return per_sample(load_reward(reward["function"], known=("tidiness",)), arguments)

    def sample_keys(self, samples: Pages) -> list[str | None]:
        """What makes two samples the same: the classes and the edges on a grid."""
        centre, half = samples.boxes[..., :2], samples.boxes[..., 2:] / 2
        edges = torch.cat([centre - half, centre + half], dim=-1)
        rounded = torch.cat([samples.classes[..., None], (edges * GRID).round().long()], dim=-1)
        return [str(sorted(page[page[:, 0] > 0].tolist())) for page in rounded]

    def train_judges(
        self, data: str | Path, network: dict, training: dict, seed: int, compute: Compute, fit: Callable
    ) -> dict[str, dict[str, float | None]]:
        """Train the network whose features FD is on, and apart from it the one that rewards realism, on the training
        pages; what each tells of the held-out ones.
        """
        accuracy = {}
        for name, run in JUDGES_RUNS.items():
            with drawn_weights(seed, run):
                judge = LayoutFeatures(classes=len(CLASSES), **network)
            fit(name, judge, list(pages(data, held_out=False)), layout_features_loss, training, run=run)
            held_out = (part.to(compute.device) for part in pages(data, held_out=True))
            accuracy[name] = tells_disturbed(judge, *held_out, generator(seed, Draw.REFERENCE, device=compute.device))
        return accuracy

    def reference(self, data: str | Path, judges: dict[str, Any], compute: Compute) -> dict[str, Any]:
        """What `metrics` measures against: the held-out pages, and the network whose features FD is on.

        Raises UserError if there are too few pages for FD, or the network is for another number of classes.
        """
        network = load_judge(judges["features"], compute.device)
        held_out = Pages(*pages(str(data), held_out=True))
        if len(held_out.boxes) < 2:
            raise UserError(f"{data}: FD needs two held-out pages or more, there is one; add some")
        features = network.features_of(*held_out, batch_size=judges["batch_size"])
        return {"pages": held_out, "network": network, "features": features, "batch_size": judges["batch_size"]}

    def real(self, data: str | Path, count: int, seed: int) -> dict[str, Pages]:
        """Rows of a table that are no model's: as many training pages, and the held-out pages themselves."""
        boxes, classes = pages(str(data), held_out=False)
        rows = torch.randperm(len(boxes), generator=generator(seed, Draw.SUBSET))[:count]
        return {"data_train": Pages(boxes[rows], classes[rows]), "data_test": Pages(*pages(str(data), held_out=True))}

    def metrics(self, samples: Pages, reference: dict[str, Any]) -> dict[str, float]:
        """Alignment x 100, overlap, maximum IoU and FD on the layout network; the two last not of the reference.

        No maximum IoU either where no sample has the classes of a held-out page.
        """
        tidy = {
            "alignment_x100": 100 * alignment(samples.boxes, samples.mask).mean().item(),
            "overlap": overlap(samples.boxes, samples.mask).mean().item(),
        }
        real: Pages = reference["pages"]
        if torch.equal(samples.boxes, real.boxes):
            return tidy
        features = reference["network"].features_of(*samples, batch_size=reference["batch_size"])
        similar = maximum_iou(tuple(samples), tuple(real))
        return {
            **tidy,
            **({} if math.isnan(similar) else {"maximum_iou": similar}),
            "fd_layout_network": frechet_distance(features, reference["features"]),
        }

    def picture(self, samples: Pages, count: int) -> Image.Image:
        """The first pages side by side, each class in its colour."""
        width, height = PICTURE
        sheet = Image.new("RGB", (width * count, height), "white")
        draw = ImageDraw.Draw(sheet, "RGBA")
        for place in range(min(count, len(samples.boxes))):
            draw.rectangle((place * width + 3, 3, (place + 1) * width - 4, height - 4), outline="#bbbbbb")
            shown = samples.mask[place]
            for (x, y, w, h), number in zip(
                samples.boxes[place, shown].tolist(), samples.classes[place, shown].tolist(), strict=True
            ):
                colour = COLOURS[CLASSES[number - 1]]
                left, top = place * width + 3 + (x - w / 2) * (width - 7), 3 + (y - h / 2) * (height - 7)
                box = (left, top, left + w * (width - 7), top + h * (height - 7))
                draw.rectangle(box, fill=colour + "66", outline=colour)
        return sheet


@dataclass(frozen=True)
class Pages:
    """Layouts: boxes (B, N, 4), centre and size in [0, 1] of the page; classes (B, N) int64, 0 for no element."""

    boxes: Tensor
    classes: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, N) bool: which rows are elements."""
        return self.classes > 0

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.boxes, self.classes))


@cache
def load_judge(folder: str | Path, device: torch.device) -> LayoutFeatures:
    """The judge that `train_judges` or a user saved. Raises UserError if it is for another number of classes."""
    network = load_saved(folder, {"LayoutFeatures": LayoutFeatures}, device)
    if network.config.classes != len(CLASSES):
        raise UserError(f"{folder}: for {network.config.classes} classes, pages have {len(CLASSES)}")
    return network


@cache
def pages(folder: str, held_out: bool) -> tuple[Tensor, Tensor]:
    """Boxes (n, N, 4) and classes (n, N) uint8 of one split of a prepared folder.

    Raises UserError if the split is empty.
    """
    chosen = load_prepared(folder, "held_out")[:] == held_out
    if not chosen.any():
        raise UserError(
            f"{folder}: no page is {'held out to evaluate on' if held_out else 'left to train on'}; add some"
        )
    return load_prepared(folder, "boxes")[:][chosen], load_prepared(folder, "classes")[:][chosen]

"""Pictures of coloured digits and the sentences that describe them: data for small text-to-image models.

A picture holds one digit, or two of which one is left of or above the other, in four colours on black. The vocabulary
is closed, so what a sentence asks for is known exactly and a picture can be checked against it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from graft.errors import UserError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
}
"""RGB, 0 to 255, by name."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

RELATIONS = ("left of", "above")

KIND_SHARES = {"single": 1 / 4, "left of": 3 / 8, "above": 3 / 8}
"""How often each kind of composition is drawn."""

HELD_OUT_SHARE = 0.15

DARKEST = 64
"""A place whose brightest pixel (0 to 255, the largest channel counts) is below this holds no object."""


@dataclass(frozen=True)
class Composition:
    """objects: one or two of (colour, digit), a key of COLOURS and 0 to 9. relation: of the first to the second.

    The relation is one of RELATIONS, or None for a single object.
    """

    objects: tuple[tuple[str, int], ...]
    relation: str | None

    @property
    def caption(self) -> str:
        """The sentence: 'a red three', 'a blue seven left of a green two'."""
        return f" {self.relation} ".join(f"a {colour} {DIGITS[digit]}" for colour, digit in self.objects)

    @property
    def kind(self) -> str:
        """A key of KIND_SHARES: the relation, or 'single'."""
        return self.relation or "single"

    def places(self, size: int) -> tuple[tuple[int, int], ...]:
        """(top, left) in pixels of each object's tile, of side size / 2, on a square canvas of side `size`.

        A single tile is in the middle; two fill the left and right, or the top and bottom halves, and are centred in
        the other direction. Raises ValueError unless `size` is a multiple of 4.
        """
        if size % 4:
            raise ValueError(
                f"a canvas of side {size} has no tiles of half its side in its middle: use a multiple of 4"
            )
        middle, half = size // 4, size // 2
        return {
            "single": ((middle, middle),),
            "left of": ((middle, 0), (middle, half)),
            "above": ((0, middle), (half, middle)),
        }[self.kind]


WORDS = ["a", *COLOURS, *DIGITS, *" ".join(RELATIONS).split()]
"""All that captions are made of: the vocabulary of a base, and of judges, that are trained here."""

OBJECTS = tuple(product(COLOURS, range(len(DIGITS))))

SINGLES = [Composition((single,), None) for single in OBJECTS]

PAIRS = [Composition(pair, relation) for relation in RELATIONS for pair in product(OBJECTS, repeat=2)]

COMPOSITIONS = {composition.caption: composition for composition in SINGLES + PAIRS}
"""All that there are, 40 single objects and 1,600 pairs in each relation, by caption."""


def parse(caption: str) -> Composition:
    """The composition that a sentence describes. Raises UserError if it describes none."""
    if caption not in COMPOSITIONS:
        raise UserError(
            f"prompt {caption!r}: no sentence about coloured digits; write it like 'a red three', 'a blue seven left "
            f"of a green two' or 'a red one above a yellow four' (colours: {', '.join(COLOURS)})"
        )
    return COMPOSITIONS[caption]


def _of_kind(kind: str) -> list[Composition]:
    return [composition for composition in COMPOSITIONS.values() if composition.kind == kind]


def _lowest_hashes(compositions: list[Composition]) -> list[Composition]:
    def digest(composition: Composition) -> bytes:
        return hashlib.sha256(composition.caption.encode()).digest()

    return sorted(compositions, key=digest)[: round(HELD_OUT_SHARE * len(compositions))]


HELD_OUT = frozenset(composition for kind in KIND_SHARES for composition in _lowest_hashes(_of_kind(kind)))


def held_out(composition: Composition) -> bool:
    """Whether a composition is kept from training: HELD_OUT_SHARE of each kind, those whose captions hash lowest."""
    return composition in HELD_OUT


@cache
def _pool(kind: str, side: bool) -> list[Composition]:
    return [composition for composition in _of_kind(kind) if held_out(composition) == side]


def draw_compositions(rng: np.random.Generator, count: int, held_out: bool) -> list[Composition]:
    """`count` compositions of one side, their kinds drawn in KIND_SHARES, each kind uniformly, with replacement."""
    kinds = rng.choice(list(KIND_SHARES), count, p=list(KIND_SHARES.values()))
    pools = (_pool(kind, held_out) for kind in kinds)
    return [pool[rng.integers(len(pool))] for pool in pools]


def contradiction(composition: Composition, rng: np.random.Generator) -> Composition:
    """A composition that differs in one thing: a colour, a digit, colours or objects swapped, or the relation.

    Which thing is drawn uniformly among those that make a difference, then how it is changed. What is in training is
    contradicted by what is in training: else held-out sentences would be known to a scorer as false ones only.
    """

    def allowed(other: Composition) -> bool:
        return other != composition and (held_out(composition) or not held_out(other))

    changes = [list(filter(allowed, change)) for change in _changes(composition)]
    changes = [change for change in changes if change]
    change = changes[rng.integers(len(changes))]
    return change[rng.integers(len(change))]


def _changes(composition: Composition) -> list[list[Composition]]:
    """For each thing that can be changed, what may come out; the composition itself may be among it."""
    objects, relation = composition.objects, composition.relation

    def with_object(place: int, new: tuple[str, int]) -> Composition:
        return Composition((*objects[:place], new, *objects[place + 1 :]), relation)

    recoloured = [with_object(i, (new, digit)) for i, (_, digit) in enumerate(objects) for new in COLOURS]
    renumbered = [with_object(i, (colour, new)) for i, (colour, _) in enumerate(objects) for new in range(len(DIGITS))]
    if relation is None:
        return [recoloured, renumbered]
    (first, left), (second, right) = objects
    colours_swapped = Composition(((second, left), (first, right)), relation)
    objects_swapped = Composition(((second, right), (first, left)), relation)
    related = [Composition(objects, new) for new in RELATIONS]
    return [recoloured, renumbered, [colours_swapped], [objects_swapped], related]


def render(composition: Composition, tiles: np.ndarray, size: int) -> np.ndarray:
    """The picture, (3, size, size) uint8: each of `tiles`, (objects, size / 2, size / 2) in [0, 1], in its colour.

    Raises ValueError unless there is one tile for each object.
    """
    image = np.zeros((3, size, size), np.uint8)
    side = size // 2
    for (colour, _), (top, left), tile in zip(composition.objects, composition.places(size), tiles, strict=True):
        rgb = np.array(COLOURS[colour])[:, None, None]
        image[:, top : top + side, left : left + side] = np.rint(rgb * tile)
    return image


def object_crops(images: np.ndarray, compositions: Sequence[Composition]) -> tuple[Tensor, list[str]]:
    """What is where objects should be in images (n, 3, S, S) uint8, S a multiple of 4 and n at least 1.

    Returns, of all m objects, image by image, the grey tiles (m, 1, S / 2, S / 2) uint8, each pixel its largest
    channel, and the names of their colours.
    """
    side = images.shape[-1] // 2
    crops = np.stack(
        [
            image[:, top : top + side, left : left + side]
            for image, composition in zip(images, compositions, strict=True)
            for top, left in composition.places(images.shape[-1])
        ]
    )
    return torch.from_numpy(crops.max(axis=1, keepdims=True)), [colour_of(crop) for crop in crops]


def colour_of(tile: np.ndarray) -> str:
    """The colour of COLOURS that is nearest in direction to the mean RGB of a tile (3, s, s) uint8, by the angle.

    The mean is weighted with the brightness, each pixel's largest channel. Of a black tile the name means nothing.
    """
    mean = (tile * tile.max(axis=0).astype(float)).mean(axis=(1, 2))
    colours = np.array(list(COLOURS.values()))
    return list(COLOURS)[(colours @ mean / np.linalg.norm(colours, axis=1)).argmax()]


def correct(
    images: np.ndarray, compositions: Sequence[Composition], classify: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Whether each of the images (n, 3, S, S) uint8 shows its composition, (n,) bool.

    It does if at each object's place there is something (see DARKEST), of the right colour and the right digit.
    `classify` gives the digits (m,) of grey tiles (m, 1, S / 2, S / 2) uint8. S is a multiple of 4, n at least 1.
    """
    tiles, colours = object_crops(images, compositions)
    found = zip(colours, classify(tiles).tolist(), strict=True)
    wanted = [(i, each) for i, composition in enumerate(compositions) for each in composition.objects]
    bright = (tiles.amax(dim=(1, 2, 3)) >= DARKEST).tolist()
    shown = np.ones(len(compositions), bool)
    for seen, (i, each), lit in zip(found, wanted, bright, strict=True):
        shown[i] &= lit and seen == each
    return shown

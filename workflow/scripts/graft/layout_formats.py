"""Readers of page layouts: every format that an asset can have, and synthetic pages, into one padded array of boxes.

A reader takes the asset's folder and the largest number of elements of a page, and returns `Layouts`. It raises
UserError, naming the file and the line or entry, if that is damaged, and if no page is left to train or to evaluate on.

Boxes without an area, pages with no element or too many, and training pages that are held out as well are left out and
counted, because the published files hold them all. Anything else that is wrong with a file is an error.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from graft.errors import UserError
from graft.files import reading, tar_members
from graft.progress import progress

logger = logging.getLogger(__name__)

CLASSES = ("text", "title", "list", "table", "figure")
"""Class number 1 is the first of them, as in PubLayNet; 0 means no element."""

LTRB_TRAINING = "publaynet_ltrb_valid.txt"
LTRB_HELD_OUT = "publaynet_ltrb_test.txt"
LTRB_ELEMENT = re.compile(r"(\S+) +(-?\d+) +(-?\d+) +(-?\d+) +(-?\d+)", re.ASCII)
LTRB_LARGEST = 127

COCO_ARCHIVE = "labels.tar.gz"
COCO_TRAINING = "train.json"
COCO_HELD_OUT = "val.json"
COCO_OVERHANG = 1.0
"""How far, in pixels, a box may reach beyond its page: pages of fractional sizes were rendered in whole pixels."""

RESOLUTION = 10_000
"""Edges are the same if they are so on a grid of so many steps across the page."""

SYNTHETIC_PAGES = 12_000
SYNTHETIC_HELD_OUT_PAGES = 2_000
FEWEST_SYNTHETIC_ELEMENTS = 3
PAGES_SEED = 251002692
"""The synthetic pages are data and do not depend on the run's seeds."""

CLASS_SHARES = (0.58, 0.17, 0.09, 0.07, 0.09)
"""How often synthetic elements are drawn from each class; lists, tables and figures oftener than in PubLayNet."""

CLASS_HEIGHTS = np.array([0.0, 1.0, 0.0, 1.2, 2.0, 2.5])
"""By class number, how synthetic elements share a column's height; titles take a line each."""

ACROSS = np.array([[2, 1], [5, 1], [1, 4]])
"""What stands above both columns: title and text, figure and caption, caption and table."""

LINE = 0.016
"""Height of a title, and largest gap, in page heights, on a page that is not crowded."""


@dataclass(frozen=True)
class Layouts:
    """n pages of at most N elements, the reader's `max_elements`; rows beyond a page's elements are zero.

    boxes: (n, N, 4) float32, centre x, centre y, width, height, in [0, 1] of the page's width and height. classes:
    (n, N) uint8, see CLASSES. held_out: (n,) bool, whether a page is for evaluation only. counts: what was left out,
    boxes (`outside_boxes`, `degenerate_boxes`) and pages (`empty_pages`, `too_many_elements`, `duplicates`).

    A page's elements are sorted by class number, then from top to bottom, then from left to right.
    """

    boxes: np.ndarray
    classes: np.ndarray
    held_out: np.ndarray
    counts: dict[str, int]


class Pages(NamedTuple):
    """A split as read: where from, the number of its pages, and the elements of all of them, end to end.

    elements: (m, 6) float64, page number, class number, left, top, right and bottom edges in [0, 1], NaN for the edges
    of a box that lies outside its page.
    """

    source: str
    count: int
    elements: np.ndarray


def read_publaynet_ltrb(folder: Path, max_elements: int) -> Layouts:
    """PubLayNet in the text format of LayoutDiffusion: trains on `publaynet_ltrb_valid.txt`, `_test` is held out.

    A page a line, elements joined by ' | ', each 'class left top right bottom' in whole numbers from 0 to 127, of which
    127 is the page's width or height. An empty line is an empty page.
    Source: microsoft/LayoutGeneration; Zhang et al., LayoutDiffusion (2023), who keep pages of at most 20 elements.
    """
    training, held_out = _ltrb_pages(folder / LTRB_TRAINING), _ltrb_pages(folder / LTRB_HELD_OUT)
    return _layouts(training, held_out, max_elements)


def _ltrb_pages(path: Path) -> Pages:
    with reading(path, "UTF-8 text file"), path.open(encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    elements = [
        (number - 1, *_ltrb_element(element.strip(), f"{path}: line {number}"))
        for number, line in enumerate(lines, 1)
        if line
        for element in line.split("|")
    ]
    return Pages(str(path), len(lines), np.array(elements, np.float64).reshape(-1, 6))


def _ltrb_element(text: str, place: str) -> tuple[float, ...]:
    """Class number, left, top, right and bottom in [0, 1]."""
    found = LTRB_ELEMENT.fullmatch(text)
    if found is None:
        raise UserError(f"{place}: {text[:60]!r} is not 'class left top right bottom'; mend or remove the line")
    name, *edges = found.groups()
    left, top, right, bottom = map(int, edges)
    if name not in CLASSES:
        raise UserError(f"{place}: {name!r} is none of {', '.join(CLASSES)}; mend or remove the line")
    if min(left, top, right, bottom) < 0 or max(left, top, right, bottom) > LTRB_LARGEST:
        raise UserError(f"{place}: {text!r} reaches outside the page, 0 to {LTRB_LARGEST}; mend or remove the line")
    if left > right or top > bottom:
        raise UserError(f"{place}: {text!r} has its edges in the wrong order; mend or remove the line")
    return CLASSES.index(name) + 1, *(edge / LTRB_LARGEST for edge in (left, top, right, bottom))


def read_publaynet_coco(folder: Path, max_elements: int) -> Layouts:
    """PubLayNet as published: `labels.tar.gz`, of which `train.json` trains and `val.json` is held out.

    335,703 and 11,245 pages; the labels of PubLayNet's own test split are not in the archive. Each is a JSON file of
    COCO's object detection: `images` (id, width, height in pixels), `annotations` (id, image_id, category_id, bbox:
    left, top, width, height in pixels) and `categories` (id, name; the names are those of CLASSES). Boxes that reach
    beyond the page by at most a pixel, as rounding makes them, are cut off there; others are left out and counted.
    Pages that are wider than high stay, which other readers of PubLayNet leave out.
    Nothing is unpacked to disk; `train.json`, 1.5 GB, takes about 5 GB of memory and a minute.
    Source: Zhong et al., PubLayNet: largest dataset ever for document layout analysis, ICDAR 2019.
    """
    path = folder / COCO_ARCHIVE
    splits = {}
    for name, content in tar_members(path):
        file = PurePosixPath(name).name
        if file in (COCO_TRAINING, COCO_HELD_OUT):
            splits[file] = _coco_pages(content, f"{path}:{name}")
    if missing := [file for file in (COCO_TRAINING, COCO_HELD_OUT) if file not in splits]:
        raise UserError(f"{path}: holds no {missing[0]}; replace the archive by the published one")
    return _layouts(splits[COCO_TRAINING], splits[COCO_HELD_OUT], max_elements)


def _coco_pages(content: bytes, name: str) -> Pages:
    logger.info("%s: parsing %d MB", name, len(content) / 1e6)
    with reading(name, "JSON file"):
        labels = json.loads(content, object_hook=_without_outline)
    classes = _by_id(_coco_entries(labels, "categories", name), _coco_class, f"{name}: category")
    images = _by_id(_coco_entries(labels, "images", name), _coco_page, f"{name}: image")
    pages = {key: (number, *size) for number, (key, size) in enumerate(images.items())}
    annotations = _coco_entries(labels, "annotations", name)
    elements = (_coco_element(entry, pages, classes, name) for entry in progress(annotations, "reading annotations"))
    return Pages(name, len(pages), np.fromiter(elements, np.dtype((np.float64, 6)), len(annotations)))


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """An annotation without its polygon, which is dropped while parsing because it is most of the file."""
    entry.pop("segmentation", None)
    return entry


def _coco_entries(labels: Any, key: str, name: str) -> list[dict[str, Any]]:
    entries = labels.get(key) if isinstance(labels, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{name}: has no list of objects {key!r}; replace the archive by the published one")
    return entries


def _by_id(entries: list[dict[str, Any]], value: Callable[[dict[str, Any]], Any], kind: str) -> dict[Any, Any]:
    """`value` of each entry by the entry's id."""
    found: dict[Any, Any] = {}
    for entry in entries:
        with reading(f"{kind} {entry.get('id')}", "COCO entry", TypeError):
            (key,) = _fields(entry, "id")
            if key in found:
                raise ValueError("there is another one of this id")
            found[key] = value(entry)
    return found


def _fields(entry: dict[str, Any], *names: str) -> list[Any]:
    if missing := [name for name in names if name not in entry]:
        raise ValueError(f"it has no {missing[0]}")
    return [entry[name] for name in names]


def _coco_class(category: dict[str, Any]) -> int:
    (name,) = _fields(category, "name")
    if name not in CLASSES:
        raise ValueError(f"its name {name!r} is none of {', '.join(CLASSES)}")
    return CLASSES.index(name) + 1


def _coco_page(image: dict[str, Any]) -> tuple[float, float]:
    """Width and height in pixels."""
    width, height = map(float, _fields(image, "width", "height"))
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise ValueError(f"it is {width:g} x {height:g} pixels")
    return width, height


def _coco_element(
    annotation: dict[str, Any],
    pages: dict[Any, tuple[int, float, float]],
    classes: dict[Any, int],
    name: str,
) -> tuple[float, ...]:
    """Page number, class number, left, top, right and bottom in [0, 1]; NaN for the edges of a box outside its page."""
    with reading(f"{name}: annotation {annotation.get('id')}", "COCO entry", TypeError):
        image, category, box = _fields(annotation, "image_id", "category_id", "bbox")
        if image not in pages or category not in classes:
            raise ValueError(f"it is of image {image} and category {category}, which are not both in the file")
        page, page_width, page_height = pages[image]
        left, top, width, height = map(float, box)
        right, bottom = left + width, top + height
        if not (width >= 0 and height >= 0):
            raise ValueError(f"its box {box} has a width or height that is not 0 or more")
        if not np.isfinite([left, top, right, bottom]).all():
            raise ValueError(f"its box {box} is not finite")
        beyond = max(-left, -top, right - page_width, bottom - page_height)
        if beyond > COCO_OVERHANG:
            return page, classes[category], *[np.nan] * 4
        horizontal, vertical = _shares(left, right, page_width), _shares(top, bottom, page_height)
        return page, classes[category], horizontal[0], vertical[0], horizontal[1], vertical[1]


def _shares(start: float, end: float, length: float) -> tuple[float, float]:
    """Two positions in [0, 1] of a length, cut off where it ends."""
    return min(max(start / length, 0.0), 1.0), min(max(end / length, 0.0), 1.0)


def read_synthetic_pages(folder: Path, max_elements: int) -> Layouts:
    """14,000 synthetic pages, 2,000 of them held out, always the same; the folder is not looked at.

    They are drawn by rules and come from no document: 3 to `max_elements` elements in one column or in two, above which
    two elements may stand across the page. Each is as wide as its column and below the one before it, so that nothing
    overlaps and edges are aligned. Raises UserError if `max_elements` is below 3.
    """
    if max_elements < FEWEST_SYNTHETIC_ELEMENTS:
        raise UserError(
            f"max_elements is {max_elements}: synthetic pages have {FEWEST_SYNTHETIC_ELEMENTS} or more; raise it"
        )
    rng = np.random.default_rng(np.random.SeedSequence(PAGES_SEED))
    training = _synthetic_pages(rng, SYNTHETIC_PAGES, max_elements)
    held_out = _synthetic_pages(rng, SYNTHETIC_HELD_OUT_PAGES, max_elements)
    return _layouts(training, held_out, max_elements)


def _synthetic_pages(rng: np.random.Generator, pages: int, max_elements: int) -> Pages:
    """The elements of three columns a page: what stands across it, the left column and the right one."""
    counts, two_columns = _synthetic_counts(rng, pages, max_elements)
    columns = _synthetic_columns(rng, counts[:, 0] > 0, two_columns)
    filled = counts > 0
    page = np.repeat(np.arange(pages), counts.sum(axis=1))
    column = np.repeat(np.arange(filled.sum()), counts[filled])
    classes = _synthetic_classes(rng, column)
    across = (two_columns[:, None] & filled & (np.arange(3) == 0))[filled][column]
    classes[across] = ACROSS[rng.integers(len(ACROSS), size=across.sum() // 2)].ravel()
    left, top, right, bottom = columns[filled].T
    starts, ends = _synthetic_stack(rng, classes, column, top, bottom)
    return Pages("synthetic pages", pages, np.stack([page, classes, left[column], starts, right[column], ends], axis=1))


def _synthetic_counts(rng: np.random.Generator, pages: int, max_elements: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of elements across, left and right (pages, 3), and whether pages have two columns (pages,).

    All elements of a page of one column stand across it.
    """
    total = rng.integers(FEWEST_SYNTHETIC_ELEMENTS, max_elements + 1, (2, pages)).mean(axis=0).astype(int)
    two_columns = rng.random(pages) < 0.85
    across = np.where(two_columns, 2 * ((rng.random(pages) < 0.6) & (total > 3)), total)
    left = two_columns + rng.binomial(np.maximum(total - across - 2, 0), 0.5)
    return np.stack([across, left, total - across - left], axis=1), two_columns


def _synthetic_columns(rng: np.random.Generator, across: np.ndarray, two_columns: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom edges (pages, 3, 4) of what stands across pages, left and right.

    `across` (pages,): whether something does. `two_columns` (pages,): whether something stands left and right.
    """
    pages = len(across)
    margin, gutter = rng.uniform(0.06, 0.12, pages), rng.uniform(0.03, 0.05, pages)
    top, bottom = rng.uniform(0.05, 0.1, pages), rng.uniform(0.9, 0.95, pages)
    middle = np.where(across, top + rng.uniform(0.15, 0.45, pages) * (bottom - top), top)
    below = middle + across * LINE
    # The last column of one page in four ends early, as the last page of a document does.
    early = np.where(rng.random(pages) < 0.25, rng.uniform(0.0, 0.4, pages), 0.0)
    foot = bottom - early * (bottom - np.where(two_columns, below, top))
    edges = [
        [margin, top, 1 - margin, np.where(two_columns, middle, foot)],
        [margin, below, 0.5 - gutter / 2, bottom],
        [0.5 + gutter / 2, below, 1 - margin, foot],
    ]
    return np.moveaxis(np.array(edges), -1, 0)


def _synthetic_classes(rng: np.random.Generator, column: np.ndarray) -> np.ndarray:
    """Class numbers (m,) of elements by the number of their column (m,); nothing but text, … follows a title."""
    classes = rng.choice(len(CLASSES), len(column), p=CLASS_SHARES) + 1
    text, title = CLASSES.index("text") + 1, CLASSES.index("title") + 1
    entitled = np.append((column[1:] == column[:-1]) & (classes[1:] != title), False)
    classes[(classes == title) & ~entitled] = text
    return classes


def _synthetic_stack(
    rng: np.random.Generator, classes: np.ndarray, column: np.ndarray, top: np.ndarray, bottom: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tops and bottoms (m,) of elements, one below the other with gaps, so that they fill their columns.

    classes, column: (m,), their class numbers and the numbers of their columns, ascending. top, bottom: of the columns.
    """
    last = np.append(column[1:] != column[:-1], True)
    line = np.minimum(LINE, (bottom - top) / (4 * np.bincount(column)))[column]
    gaps = np.where(last, 0, rng.uniform(0.5, 1, len(column)) * line)
    weights = rng.uniform(0.3, 1, len(column)) * CLASS_HEIGHTS[classes]
    titles = np.where(weights == 0, line, 0)
    free = bottom - top - np.bincount(column, titles + gaps)
    heights = titles + weights * (free / np.bincount(column, weights))[column]
    ends = np.cumsum(heights + gaps)  # as if all columns were one
    column_starts = np.append(0, ends[last][:-1])
    starts = top[column] + ends - heights - gaps - column_starts[column]
    return starts, starts + heights


def _layouts(training: Pages, held_out: Pages, max_elements: int) -> Layouts:
    """Both splits in one, in their order, without the boxes and pages that the docstring of `Layouts` counts."""
    elements = np.concatenate([training.elements, held_out.elements])
    elements[len(training.elements) :, 0] += training.count
    out = np.arange(training.count + held_out.count) >= training.count
    _, _, left, top, right, bottom = elements.T
    outside, proper = np.isnan(left), (left < right) & (top < bottom)
    elements = elements[proper]
    page = elements[:, 0].astype(int)
    size = np.bincount(page, minlength=len(out))
    fitting = (size > 0) & (size <= max_elements)
    boxes, keys = _padded(elements[fitting[page]], max_elements)
    out = out[fitting]
    duplicate = _duplicates(keys, out)
    counts = {
        "outside_boxes": int(outside.sum()),
        "degenerate_boxes": int((~proper & ~outside).sum()),
        "empty_pages": int((size == 0).sum()),
        "too_many_elements": int((size > max_elements).sum()),
        "duplicates": int(duplicate.sum()),
    }
    for split, kept in ((training, ~out & ~duplicate), (held_out, out)):
        if not kept.any():
            raise UserError(
                f"{split.source}: no page of 1 to {max_elements} elements is left; replace it or raise max_elements"
            )
    logger.info("%s, %s: %d pages, left out: %s", training.source, held_out.source, (~duplicate).sum(), counts)
    return Layouts(boxes[~duplicate], keys[~duplicate, :, 0].astype(np.uint8), out[~duplicate], counts)


def _padded(elements: np.ndarray, max_elements: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, N, 4) and keys (n, N, 5), class number and edges on a grid, of the n pages that the elements are of."""
    page, classes, edges = elements[:, 0], elements[:, 1], elements[:, 2:]
    grid = np.rint(edges * RESOLUTION)
    left, top, right, bottom = grid.T
    # The network tells elements apart by an embedding of their index, so the index must mean something that can be
    # learnt; the order of the files does not. On the grid, so that columns whose tops differ by rounding stay in order.
    order = np.lexsort((right, bottom, left, top, classes, page))
    _, first, row = np.unique(page[order], return_index=True, return_inverse=True)
    place = row, np.arange(len(order)) - first[row]
    boxes = np.zeros((len(first), max_elements, 4), np.float32)
    keys = np.zeros((len(first), max_elements, 5), np.int16)
    near, far = edges[order, :2], edges[order, 2:]
    boxes[place] = np.concatenate([(near + far) / 2, far - near], axis=1)
    keys[place] = np.concatenate([classes[order, None], grid[order]], axis=1)
    return boxes, keys


def _duplicates(keys: np.ndarray, out: np.ndarray) -> np.ndarray:
    """(n,) bool: which pages are to train on but are held out (`out`) as well."""
    held_out = {key.tobytes() for key in keys[out]}
    return np.array([key.tobytes() in held_out for key in keys], bool) & ~out


READERS: dict[str, Callable[[Path, int], Layouts]] = {
    "publaynet_coco": read_publaynet_coco,
    "publaynet_ltrb": read_publaynet_ltrb,
    "synthetic_pages": read_synthetic_pages,
}

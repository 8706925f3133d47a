"""Readers of prompt sets: every format that an asset of sentences can have, with pictures or without.

A reader takes the asset's folder and the wanted image size, which only readers of pictures look at, and returns
`Prompts`. It raises UserError, naming the file and the line or entry, if that is damaged or if there are no prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graft.compositions import DIGITS, draw_compositions, render
from graft.errors import UserError
from graft.files import reading
from graft.image_formats import ImageSet, read_digits, read_idx
from graft.progress import progress

GENAI_BENCH = "genai_image_527.json"
GENEVAL = "geneval_metadata.jsonl"

DIGIT_PICTURES = 20_000
MNIST_PICTURES = 30_000
HELD_OUT_PICTURES = 2_000
"""How many of these pictures show held-out compositions; they come last."""

PICTURES_SEED = 251002692
"""The pictures are data and do not depend on the run's seeds."""


@dataclass(frozen=True)
class Prompts:
    """n sentences: `captions`, the `kinds` to report them by, and whether they are kept from training.

    held_out: (n,) bool. images: (n, 3, size, size) uint8, a picture of each caption, or None.
    """

    captions: list[str]
    kinds: list[str]
    held_out: np.ndarray
    images: np.ndarray | None


def read_digit_compositions(folder: Path, size: int) -> Prompts:
    """20,000 pictures of 16 x 16 pixels, composed of scikit-learn's handwritten digits; see `_composed`."""
    _check_size(size, 16, folder)
    return _composed(read_digits(folder, 8, 1), size, DIGIT_PICTURES, folder)


def read_mnist_compositions(folder: Path, size: int) -> Prompts:
    """30,000 pictures of 64 x 64 pixels, composed of MNIST's training digits, padded to 32 x 32; see `_composed`."""
    _check_size(size, 64, folder)
    return _composed(read_idx(folder, 32, 1), size, MNIST_PICTURES, folder)


def _check_size(size: int, expected: int, folder: Path) -> None:
    if size != expected:
        raise UserError(
            f"{folder}: its pictures are {expected} x {expected} pixels, not {size}; set image_size to {expected}"
        )


def _composed(digits: ImageSet, size: int, count: int, folder: Path) -> Prompts:
    """`count` pictures of compositions, the last of them held out, always the same.

    Picture i takes its tiles, at random, from half i % 2 of each class (in the order of the set: the first half for
    even i), so that what is trained on even pictures and on odd ones has no handwriting in common.
    """
    rng = np.random.default_rng(np.random.SeedSequence(PICTURES_SEED))
    halves = _halves(digits.labels, folder)
    compositions = draw_compositions(rng, count - HELD_OUT_PICTURES, held_out=False)
    compositions += draw_compositions(rng, HELD_OUT_PICTURES, held_out=True)
    images = np.empty((count, 3, size, size), np.uint8)
    for i, composition in enumerate(progress(compositions, "composing pictures")):
        rows = [rng.choice(halves[i % 2][digit]) for _, digit in composition.objects]
        images[i] = render(composition, digits.images[rows, 0] / 255, size)
    return Prompts(
        captions=[composition.caption for composition in compositions],
        kinds=[composition.kind for composition in compositions],
        held_out=np.arange(count) >= count - HELD_OUT_PICTURES,
        images=images,
    )


def _halves(labels: np.ndarray, folder: Path) -> list[list[np.ndarray]]:
    """The rows of each digit in the first, and in the second half of its class."""
    classes = [np.flatnonzero(labels == digit) for digit in range(len(DIGITS))]
    if scarce := [digit for digit, rows in enumerate(classes) if len(rows) < 2]:
        raise UserError(f"{folder}: fewer than two pictures of the digit {scarce[0]}; replace it by the whole set")
    return [[rows[: len(rows) // 2] for rows in classes], [rows[len(rows) // 2 :] for rows in classes]]


def read_genai_bench(folder: Path, size: int) -> Prompts:
    """GenAI-Bench, `genai_image_527.json`: entries with a `prompt` by their ids; for evaluation only, so held out."""
    path = folder / GENAI_BENCH
    with reading(path, "JSON file"):
        entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise UserError(f"{path}: not an object of entries by their ids; replace it")
    return _evaluation(
        [_prompt(entry, f"{path}: entry {key!r}") for key, entry in entries.items()], "GenAI-Bench", path
    )


def read_geneval(folder: Path, size: int) -> Prompts:
    """GenEval, `geneval_metadata.jsonl`: an object with a `prompt` a line; for evaluation only, so held out."""
    path = folder / GENEVAL
    captions = []
    for number, line in _lines(path):
        with reading(f"{path}: line {number}", "JSON object"):
            entry = json.loads(line)
        captions.append(_prompt(entry, f"{path}: line {number}"))
    return _evaluation(captions, "GenEval", path)


def _prompt(entry: Any, place: str) -> str:
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{place} has no prompt; mend or replace the file")
    return prompt.strip()


def _evaluation(captions: list[str], kind: str, path: Path) -> Prompts:
    if not captions:
        raise UserError(f"{path}: no prompts in it; replace it")
    return Prompts(captions, [kind] * len(captions), np.ones(len(captions), bool), None)


def read_t2i_compbench(folder: Path, size: int) -> Prompts:
    """T2I-CompBench: a prompt a line in `KIND_train.txt` and, held out, in `KIND_val.txt`; 'color', for one kind."""
    paths = sorted([*folder.glob("*_train.txt"), *folder.glob("*_val.txt")])
    if not paths:
        raise UserError(f"{folder}: no files *_train.txt or *_val.txt; mend the asset list")
    found = [(path, line) for path in paths for line in _prompt_lines(path)]
    return Prompts(
        captions=[line for _, line in found],
        kinds=[path.stem.rpartition("_")[0] for path, _ in found],
        held_out=np.array([path.stem.endswith("_val") for path, _ in found]),
        images=None,
    )


def _prompt_lines(path: Path) -> list[str]:
    lines = [line for _, line in _lines(path)]
    if not lines:
        raise UserError(f"{path}: no prompts in it; replace it")
    return lines


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1."""
    with reading(path, "UTF-8 text file"):
        lines = path.read_text(encoding="utf-8").split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def without_overlap(parts: Sequence[Prompts]) -> Prompts:
    """Several sets in one, in their order, in which no training caption is also held out, but for case and punctuation.

    Without images, captions that come again on the same side are left out as well; with images they are other pictures.
    Raises UserError if some sets have images and others none, or images of another size.
    """
    if len({None if part.images is None else part.images.shape[1:] for part in parts}) != 1:
        raise UserError("prompt sets with images of one size, and sets without, do not mix; take the one or the other")
    whole = Prompts(
        captions=[caption for part in parts for caption in part.captions],
        kinds=[kind for part in parts for kind in part.kinds],
        held_out=np.concatenate([part.held_out for part in parts]),
        images=None if parts[0].images is None else np.concatenate([part.images for part in parts]),
    )
    return _rows(whole, _without_overlap(whole))


def _without_overlap(prompts: Prompts) -> list[int]:
    """The rows to keep."""
    keys = [" ".join(re.findall(r"\w+", caption.casefold())) for caption in prompts.captions]
    held_out = {key for key, out in zip(keys, prompts.held_out, strict=True) if out}
    kept = [i for i, key in enumerate(keys) if prompts.held_out[i] or key not in held_out]
    if prompts.images is not None:
        return kept
    first: dict[str, int] = {}
    for i in kept:
        first.setdefault(keys[i], i)  # a key that is kept stands on one side only
    return list(first.values())


def _rows(prompts: Prompts, rows: list[int]) -> Prompts:
    return Prompts(
        captions=[prompts.captions[i] for i in rows],
        kinds=[prompts.kinds[i] for i in rows],
        held_out=prompts.held_out[rows],
        images=None if prompts.images is None else prompts.images[rows],
    )


READERS: dict[str, Callable[[Path, int], Prompts]] = {
    "digit_compositions": read_digit_compositions,
    "mnist_compositions": read_mnist_compositions,
    "genai_bench": read_genai_bench,
    "t2i_compbench": read_t2i_compbench,
    "geneval": read_geneval,
}

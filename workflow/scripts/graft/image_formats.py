"""Readers of image sets: every format that an asset can have, into one array of uint8 images.

A reader takes the asset's folder, the wanted image size and the wanted number of channels, and returns an
`ImageSet`. It raises UserError, naming the file, if that is damaged, if there are no images or if they do not fit.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from graft.errors import UserError
from graft.files import reading, tar_members
from graft.progress import progress

ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Piece = tuple[str, Callable[[], bytes]]
"""The file of one image: its name in messages, and how to read it."""


@dataclass(frozen=True)
class ImageSet:
    """images: (n, channels, size, size) uint8. labels: (n,) int64, or None where the set has no classes."""

    images: np.ndarray
    labels: np.ndarray | None


def read_digits(folder: Path, size: int, channels: int) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 with grey levels 0 to 16, scaled to 0 to 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSet(_fitting(images, size, channels, folder), digits.target.astype(np.int64))


def read_idx(folder: Path, size: int, channels: int) -> ImageSet:
    """MNIST's own format: gzipped idx files of images and labels; 28 x 28 images are padded with black to `size`."""
    images = _idx(folder / "train-images-idx3-ubyte.gz", magic=2051)[:, None]
    labels = _idx(folder / "train-labels-idx1-ubyte.gz", magic=2049).astype(np.int64)
    _check_labels(len(images), labels, folder / "train-*-ubyte.gz")
    margin = size - images.shape[-1]
    if margin > 0:
        before, after = margin // 2, margin - margin // 2
        images = np.pad(images, ((0, 0), (0, 0), (before, after), (before, after)))
    return ImageSet(_fitting(images, size, channels, folder), labels)


def _idx(path: Path, magic: int) -> np.ndarray:
    with reading(path, "gzip file"):
        content = gzip.decompress(path.read_bytes())
    dimensions = magic % 256
    header = 4 + 4 * dimensions
    if len(content) < header or int.from_bytes(content[:4], "big") != magic:
        raise UserError(f"{path}: not an idx file of magic number {magic}; replace it")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    values = np.frombuffer(content, np.uint8, offset=header)
    if values.size != math.prod(shape):
        raise UserError(f"{path}: holds {values.size} bytes where its header promises {math.prod(shape)}; replace it")
    return values.reshape(shape)


def read_cifar_binary(folder: Path, size: int, channels: int) -> ImageSet:
    """CIFAR-10's binary archive: the five training batches of 10,000 records, a label and 3,072 bytes each."""
    path = _only(folder, ".tar.gz")
    batches = {name: data for name, data in tar_members(path) if Path(name).name.startswith("data_batch_")}
    records = np.concatenate([np.frombuffer(batches[name], np.uint8) for name in sorted(batches)] or [np.empty(0)])
    if records.size == 0 or records.size % 3073:
        raise UserError(f"{path}: {records.size} bytes of training batches are no whole number of 3,073-byte records")
    records = records.reshape(-1, 3073)
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return ImageSet(_fitting(images, size, channels, path), records[:, 0].astype(np.int64))


def read_jpeg_npz(folder: Path, size: int, channels: int) -> ImageSet:
    """An .npz of n JPEG files end to end (`jpeg`, uint8), their bounds (`offset`, n + 1) and classes (`label`, n)."""
    path = _only(folder, ".npz")
    with reading(path, ".npz file"), np.load(path, allow_pickle=False) as arrays:
        jpeg, offset, labels = arrays["jpeg"], arrays["offset"], arrays["label"].astype(np.int64)
    _check_labels(len(offset) - 1, labels, path)
    pieces = [(f"{path}[{i}]", jpeg[start:stop].tobytes) for i, (start, stop) in enumerate(pairwise(offset))]
    return ImageSet(_decoded(pieces, size, channels, path), labels)


def read_folder(folder: Path, size: int, channels: int) -> ImageSet:
    """All images below a folder, in the order of their paths, centre-cropped to a square and resized."""
    # os.walk, because the asset may be a link to the folder and Path.rglob does not follow links.
    found = (Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    pieces = [(str(path), path.read_bytes) for path in sorted(found) if _is_image(path.name)]
    return ImageSet(_decoded(pieces, size, channels, folder), None)


def read_archive(folder: Path, size: int, channels: int) -> ImageSet:
    """All images in a .zip or .tar archive, in the order of their names, centre-cropped to a square and resized."""
    path = _only(folder, *ARCHIVE_SUFFIXES)
    if path.suffix != ".zip":
        members = sorted((name, data) for name, data in tar_members(path) if _is_image(name))
        pieces = [(f"{path}:{name}", partial(bytes, data)) for name, data in members]
        return ImageSet(_decoded(pieces, size, channels, path), None)
    with reading(path, "zip archive"):
        archive = zipfile.ZipFile(path)
    with archive:
        names = sorted(name for name in archive.namelist() if _is_image(name))
        pieces = [(f"{path}:{name}", partial(archive.read, name)) for name in names]
        return ImageSet(_decoded(pieces, size, channels, path), None)


def _only(folder: Path, *suffixes: str) -> Path:
    found = [path for path in folder.iterdir() if path.name.endswith(suffixes)]
    if len(found) != 1:
        wanted = " or ".join(suffixes)
        raise UserError(f"{folder}: holds {len(found)} {wanted} files where its reader needs one; mend the asset list")
    return found[0]


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _check_labels(images: int, labels: np.ndarray, source: Path) -> None:
    if images != len(labels):
        raise UserError(f"{source}: {images} images, but {len(labels)} labels; replace what is not whole")


def _decoded(pieces: Sequence[Piece], size: int, channels: int, source: Path) -> np.ndarray:
    images = np.empty((len(pieces), channels, size, size), np.uint8)
    for i, (name, read) in enumerate(progress(pieces, "decoding images")):
        with reading(name, "image", SyntaxError, Image.DecompressionBombError):
            image = Image.open(io.BytesIO(read())).convert("RGB" if channels == 3 else "L")
        if min(image.size) < size:
            raise UserError(f"{name}: {image.width} x {image.height} pixels, smaller than the configured {size}")
        images[i] = np.atleast_3d(np.asarray(_square(image, size))).transpose(2, 0, 1)
    return _fitting(images, size, channels, source)


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)


def _fitting(images: np.ndarray, size: int, channels: int, source: Path) -> np.ndarray:
    if not len(images):
        raise UserError(f"{source}: no images found")
    if images.shape[1:] != (channels, size, size):
        found = " x ".join(map(str, images.shape[1:]))
        raise UserError(f"{source}: images are {found} (channels x height x width), not {channels} x {size} x {size}")
    return images


READERS: dict[str, Callable[[Path, int, int], ImageSet]] = {
    "digits": read_digits,
    "idx": read_idx,
    "cifar_binary": read_cifar_binary,
    "jpeg_npz": read_jpeg_npz,
    "folder": read_folder,
    "archive": read_archive,
}

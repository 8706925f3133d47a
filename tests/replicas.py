"""Small files in the formats of the public assets, and the asset list that names them."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image


def idx(values):
    """Bytes of an idx file of uint8 values."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


def write_mnist(folder, count, rng):
    """MNIST's training files with `count` random digits; returns the images (count, 28, 28)."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count) % 10
    for name, values in (("train-images-idx3-ubyte.gz", images), ("train-labels-idx1-ubyte.gz", labels)):
        (folder / name).write_bytes(gzip.compress(idx(values)))
    return images


def write_cifar(path, count, rng):
    """CIFAR-10's binary archive with `count` random records in each of five batches; returns images and labels."""
    labels, images = rng.integers(0, 10, 5 * count), rng.integers(0, 256, (5 * count, 3072), np.uint8)
    with tarfile.open(path, "w:gz") as archive:
        for batch in range(5):
            rows = slice(batch * count, (batch + 1) * count)
            content = np.concatenate([labels[rows, None].astype(np.uint8), images[rows]], axis=1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{batch + 1}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return images.reshape(-1, 3, 32, 32), labels


def png(image):
    """PNG bytes of an (H, W, 3) array."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def smooth_images(count, size, rng):
    """Colour images (count, size, size, 3) without sharp edges."""
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in coarse]


def write_photographs(mirror, count, rng):
    """CelebA-HQ as a folder, LSUN-Church as a zip archive, of 256 x 256 PNGs (and wider ones in the folder)."""
    (mirror / "celeba_hq_256").mkdir(parents=True)
    for number, image in enumerate(smooth_images(count, 256, rng)):
        (mirror / "celeba_hq_256" / f"{number:05d}.png").write_bytes(png(image))
    with zipfile.ZipFile(mirror / "lsun_church_256.zip", "w") as archive:
        for number, image in enumerate(smooth_images(count, 256, rng)):
            archive.writestr(f"church/{number:05d}.png", png(image))


def write_inception(path):
    """InceptionV3 weights under the published key names, with random values."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    with (
        torch.random.fork_rng(devices=[]),
        mock.patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", return_value={}),
        mock.patch.object(Inception, "load_state_dict"),
    ):
        torch.manual_seed(0)
        torch.save(Inception("inception-v3-compat", ["2048"]).state_dict(), path)


def write_assets(assets, mirror, path):
    """The asset list with the checksums of the replicas in `mirror`, and no public address."""
    for asset in assets.values():
        for form in asset["formats"]:
            for file in form["files"]:
                place = mirror / file.get("mirror", file["name"])
                file.pop("url", None)
                if file["sha256"] and place.exists():
                    content = place.read_bytes()
                    if file.get("checksum_of") == "content":
                        content = gzip.decompress(content)
                    file["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(yaml.safe_dump(assets))

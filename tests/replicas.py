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


def write_tar(path, files):
    """A tar archive of `files`, contents by name, compressed as its suffix says: .tar, .gz or .bz2."""
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_cifar(path, count, rng):
    """CIFAR-10's binary archive with `count` random records in each of five batches; returns images and labels."""
    labels, images = rng.integers(0, 10, 5 * count), rng.integers(0, 256, (5 * count, 3072), np.uint8)
    batches = np.split(np.concatenate([labels[:, None].astype(np.uint8), images], axis=1), 5)
    write_tar(path, {f"cifar-10-batches-bin/data_batch_{i}.bin": rows.tobytes() for i, rows in enumerate(batches, 1)})
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


def mathematica(number):
    """A number as QM9 writes it: small ones are 4.*^-6."""
    return f"{number:.10f}" if abs(number) > 1e-4 or number == 0 else f"{number:.7e}".replace("e", "*^")


def qm9_files(molecules):
    """QM9's file of each molecule by its name; `molecules` are atoms (symbol, x, y, z), in Angstrom, by index."""
    files = {}
    for index, atoms in molecules.items():
        lines = [str(len(atoms)), f"gdb {index}\t157.7118\t157.70997\t0.\t6.469"]
        lines += ["\t".join([symbol, *map(mathematica, position), "-0.535689"]) for symbol, *position in atoms]
        lines += ["1341.307\t1341.3284", "C\tC\t", "InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"]
        files[f"dsgdb9nsd_{index:06}.xyz"] = "\n".join(lines).encode()
    return files


def write_qm9(folder, molecules, uncharacterised):
    """QM9's two published files: an archive of `molecules` as `qm9_files` takes them, in their order, and the list.

    `uncharacterised` are the indices on the list, at least one, for there is no empty list; the archive may lack them.
    """
    write_tar(folder / "dsgdb9nsd.xyz.tar.bz2", qm9_files(molecules))
    rule = "=" * 80
    rows = [f"{index:8}   NC(=N)C#N   NC(=N)C#N   [NH]C(=[NH2])C#N   6.036217" for index in uncharacterised]
    lines = ["", "", "List of molecules among the 133885 GDB9 molecules", rule, "#  Index  SMILES", rule, *rows, rule]
    (folder / "uncharacterized.txt").write_text("\n".join(lines) + "\n")


def write_assets(assets, mirror, path):
    """The asset list with the checksums of the replicas in `mirror`, and no public address."""
    for asset in assets.values():
        for form in asset["formats"]:
            for file in form["files"]:
                place = mirror / file.get("mirror", file["name"])
                file.pop("url", None)
                algorithm = "md5" if "md5" in file else "sha256"
                if file[algorithm] and place.exists():
                    content = place.read_bytes()
                    if file.get("checksum_of") == "content":
                        content = gzip.decompress(content)
                    file[algorithm] = hashlib.new(algorithm, content).hexdigest()
    path.write_text(yaml.safe_dump(assets))

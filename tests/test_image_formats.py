import gzip
import io
import os
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image
from replicas import write_tar
from sklearn.datasets import load_digits

from graft.assets import fetch_asset, read_description
from graft.errors import UserError
from graft.image_formats import READERS


def pictures(count, channels, size, seed=0):
    """Random uint8 images (count, channels, size, size)."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def encoded(image, form="PNG", **options):
    """An image (channels, height, width) as the bytes of a file."""
    buffer = io.BytesIO()
    pixels = image.transpose(1, 2, 0)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, form, **options)
    return buffer.getvalue()


def write_idx(folder, images, labels, cut=None, repack=gzip.compress):
    """The two files of MNIST; `cut` bytes of each idx file are kept."""
    head = struct.pack(">IIII", 2051, len(images), *images.shape[-2:])
    (folder / "train-images-idx3-ubyte.gz").write_bytes(repack((head + images.tobytes())[:cut]))
    content = struct.pack(">II", 2049, len(labels)) + np.asarray(labels, np.uint8).tobytes()
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(repack(content))


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_cifar(folder, images, labels, batches=5, cut=None):
    records = np.concatenate([np.asarray(labels, np.uint8)[:, None], images.reshape(len(images), -1)], axis=1)
    files = {
        f"cifar-10-batches-bin/data_batch_{i + 1}.bin": part.tobytes()[:cut]
        for i, part in enumerate(np.split(records, batches))
    }
    # The order within the archive is not the one of the batches, as in the published file.
    files = {"cifar-10-batches-bin/readme.html": b"<html>", **dict(reversed(files.items()))}
    files["cifar-10-batches-bin/test_batch.bin"] = bytes(3073)
    write_tar(folder / "cifar-10-binary.tar.gz", files)


def write_jpeg_npz(folder, files, labels):
    offset = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    np.savez(folder / "set.npz", jpeg=jpeg, offset=offset, label=np.asarray(labels, np.uint8))


def test_digits_are_scaled_to_bytes(tmp_path):
    found = READERS["digits"](tmp_path, 8, 1)
    digits = load_digits()
    assert found.images.shape == (1797, 1, 8, 8)
    assert found.images.dtype == np.uint8
    assert np.abs(found.images[:, 0] / 255 - digits.images / 16).max() <= 0.5 / 255
    assert found.images.max() == 255
    assert np.array_equal(found.labels, digits.target)


def test_digits_have_one_size(tmp_path):
    with pytest.raises(UserError, match=r"1 x 8 x 8 .* not 3 x 8 x 8"):
        READERS["digits"](tmp_path, 8, 3)


def test_idx_files(tmp_path):
    images, labels = pictures(7, 1, 28), [3, 1, 4, 1, 5, 9, 2]
    write_idx(tmp_path, images, labels)
    found = READERS["idx"](tmp_path, 28, 1)
    assert found.images.dtype == np.uint8
    assert np.array_equal(found.images, images)
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == labels


def test_idx_images_are_padded_with_black(tmp_path):
    images = pictures(3, 1, 28)
    write_idx(tmp_path, images, [0, 1, 2])
    found = READERS["idx"](tmp_path, 32, 1).images
    assert found.shape == (3, 1, 32, 32)
    assert np.array_equal(found[:, :, 2:30, 2:30], images)
    assert found.sum(dtype=int) == images.sum(dtype=int)


@pytest.mark.parametrize("cut", [0, 3, 10, 15, 16, 500])
def test_truncated_idx_content_is_named(tmp_path, cut):
    write_idx(tmp_path, pictures(3, 1, 28), [0, 1, 2], cut=cut)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz"):
        READERS["idx"](tmp_path, 28, 1)


def damaged(content):
    return gzip.compress(content)[:10] + b"\x07" * 100


@pytest.mark.parametrize("repack", [lambda content: gzip.compress(content)[:-9], bytes, damaged])
def test_broken_gzip_file_is_named(tmp_path, repack):
    write_idx(tmp_path, pictures(3, 1, 28), [0, 1, 2], repack=repack)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz"):
        READERS["idx"](tmp_path, 28, 1)


def test_images_and_labels_of_different_counts_are_refused(tmp_path):
    write_idx(tmp_path, pictures(3, 1, 28), [0, 1])
    with pytest.raises(UserError, match="train-"):
        READERS["idx"](tmp_path, 28, 1)


def test_idx_files_in_each_others_place_are_named(tmp_path):
    write_idx(tmp_path, pictures(3, 1, 28), [0, 1, 2])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes((tmp_path / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz.*2051"):
        READERS["idx"](tmp_path, 28, 1)


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (28, 3)])
def test_idx_images_of_another_shape_are_refused(tmp_path, size, channels):
    write_idx(tmp_path, pictures(3, 1, 28), [0, 1, 2])
    with pytest.raises(UserError, match=f"1 x 28 x 28 .* not {channels} x {size} x {size}"):
        READERS["idx"](tmp_path, size, channels)


def test_cifar_binary_archive(tmp_path):
    """Five batches, in their order; colour planes one after the other; the test batch is left out."""
    images, labels = pictures(15, 3, 32), [*range(10), 9, 8, 7, 6, 5]
    write_cifar(tmp_path, images, labels)
    found = READERS["cifar_binary"](tmp_path, 32, 3)
    assert np.array_equal(found.images, images)
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == labels


def test_cifar_batch_that_is_cut_short_is_named(tmp_path):
    write_cifar(tmp_path, pictures(5, 3, 32), range(5), cut=3000)
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz"):
        READERS["cifar_binary"](tmp_path, 32, 3)


@pytest.mark.parametrize("kept", [20, 2000, 30_000])
def test_truncated_cifar_archive_is_named(tmp_path, kept):
    write_cifar(tmp_path, pictures(15, 3, 32), range(15))
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz"):
        READERS["cifar_binary"](tmp_path, 32, 3)


def test_cifar_archive_without_batches_is_named(tmp_path):
    write_tar(tmp_path / "cifar-10-binary.tar.gz", {"readme.html": b"<html>"})
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz"):
        READERS["cifar_binary"](tmp_path, 32, 3)


def test_cifar_images_have_one_size(tmp_path):
    write_cifar(tmp_path, pictures(5, 3, 32), range(5))
    with pytest.raises(UserError, match=r"3 x 32 x 32 .* not 1 x 64 x 64"):
        READERS["cifar_binary"](tmp_path, 64, 1)


def test_jpegs_in_an_npz_file(tmp_path):
    """Pixels as Pillow decodes each JPEG by itself."""
    files = [encoded(image, "JPEG", quality=90) for image in pictures(6, 3, 16)]
    write_jpeg_npz(tmp_path, files, [5, 4, 3, 2, 1, 0])
    found = READERS["jpeg_npz"](tmp_path, 16, 3)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file))).transpose(2, 0, 1) for file in files])
    assert np.array_equal(found.images, expected)
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [5, 4, 3, 2, 1, 0]


def test_jpeg_that_is_cut_short_is_named_by_its_number(tmp_path):
    files = [encoded(image, "JPEG") for image in pictures(3, 3, 16)]
    files[1] = files[1][: len(files[1]) // 2]
    write_jpeg_npz(tmp_path, files, [0, 1, 2])
    with pytest.raises(UserError, match=r"set\.npz\[1\]"):
        READERS["jpeg_npz"](tmp_path, 16, 3)


@pytest.mark.parametrize("kept", [10, 500, -30])
def test_truncated_npz_file_is_named(tmp_path, kept):
    write_jpeg_npz(tmp_path, [encoded(image, "JPEG") for image in pictures(3, 3, 16)], [0, 1, 2])
    path = tmp_path / "set.npz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"set\.npz"):
        READERS["jpeg_npz"](tmp_path, 16, 3)


@pytest.mark.parametrize("label", [[0, 1], [0, 1, 2, 3]])
def test_npz_file_of_which_labels_are_missing_is_named(tmp_path, label):
    write_jpeg_npz(tmp_path, [encoded(image, "JPEG") for image in pictures(3, 3, 16)], label)
    with pytest.raises(UserError, match=rf"set\.npz: 3 images, .*{len(label)} labels"):
        READERS["jpeg_npz"](tmp_path, 16, 3)


def test_npz_file_that_lacks_an_array_is_named(tmp_path):
    np.savez(tmp_path / "set.npz", jpeg=np.zeros(1, np.uint8), offset=np.arange(2))
    with pytest.raises(UserError, match=r"set\.npz.*label"):
        READERS["jpeg_npz"](tmp_path, 16, 3)


def test_npz_file_without_images_is_named(tmp_path):
    write_jpeg_npz(tmp_path, [], [])
    with pytest.raises(UserError, match=r"set\.npz: no images"):
        READERS["jpeg_npz"](tmp_path, 16, 3)


def write_folder(folder, files):
    for name, content in files.items():
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(content)


CONTAINERS = {
    "folder": ("folder", write_folder),
    "zip": ("archive", lambda folder, files: write_zip(folder / "images.zip", files)),
    "tar": ("archive", lambda folder, files: write_tar(folder / "images.tar", files)),
    "tar.gz": ("archive", lambda folder, files: write_tar(folder / "images.tar.gz", files)),
}


@pytest.fixture(params=CONTAINERS)
def container(request, tmp_path):
    """Reads `files` back, after they were put into a folder or an archive beside the description of the asset."""
    reader, write = CONTAINERS[request.param]

    def read(files, size, channels):
        (tmp_path / "asset.json").write_text("{}")
        write(tmp_path, files)
        return READERS[reader](tmp_path, size, channels)

    return read


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_the_order_of_their_names(container, channels):
    images = pictures(4, channels, 12)
    names = ["a/000.png", "a/001.PNG", "b/000.bmp", "b/deep/000.png"]
    forms = ["PNG", "PNG", "BMP", "PNG"]
    files = {name: encoded(image, form) for name, image, form in zip(names, images, forms, strict=True)}
    files = {"readme.txt": b"no image", **dict(reversed(files.items()))}
    found = container(files, 12, channels)
    assert found.images.dtype == np.uint8
    assert np.array_equal(found.images, images)
    assert found.labels is None


def test_images_are_cropped_at_the_centre_and_resized(container):
    """12 x 20 pixels: exact where only cropped, Pillow's Lanczos filter where resized."""
    wide = np.random.default_rng(0).integers(0, 256, (3, 12, 20), dtype=np.uint8)
    square = wide[:, :, 4:16]
    small = Image.fromarray(square.transpose(1, 2, 0)).resize((6, 6), Image.Resampling.LANCZOS)
    assert np.array_equal(container({"wide.png": encoded(wide)}, 12, 3).images[0], square)
    assert np.array_equal(container({"wide.png": encoded(wide)}, 6, 3).images[0], np.asarray(small).transpose(2, 0, 1))


def test_channels_are_converted(container):
    grey, colour = pictures(1, 1, 8), pictures(1, 3, 8)
    assert np.array_equal(container({"0.png": encoded(grey[0])}, 8, 3).images, grey.repeat(3, axis=1))
    expected = np.asarray(Image.fromarray(colour[0].transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(container({"0.png": encoded(colour[0])}, 8, 1).images[0, 0], expected)


def test_image_smaller_than_configured_is_named(container):
    files = {"0.png": encoded(pictures(1, 3, 16)[0]), "small.png": encoded(pictures(1, 3, 12)[0])}
    with pytest.raises(UserError, match=r"small\.png: 12 x 12 pixels, .*16"):
        container(files, 16, 3)


def test_no_images_are_an_error(container, tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}.*: no images"):
        container({"readme.txt": b"nothing here"}, 16, 3)


@pytest.mark.parametrize("damage", [lambda content: b"no image", lambda content: content[:100]], ids=["text", "cut"])
def test_unreadable_image_is_named(container, damage):
    files = {name: encoded(image) for name, image in zip(["0.png", "1.png"], pictures(2, 3, 16), strict=True)}
    files["1.png"] = damage(files["1.png"])
    with pytest.raises(UserError, match=r"1\.png: not a readable image"):
        container(files, 16, 3)


@pytest.mark.parametrize("name", ["images.zip", "images.tar", "images.tar.gz"])
def test_truncated_archive_is_named(tmp_path, name):
    files = {f"{i}.png": encoded(image) for i, image in enumerate(pictures(3, 3, 16))}
    path = tmp_path / name
    (write_zip if name.endswith("zip") else write_tar)(path, files)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        READERS["archive"](tmp_path, 16, 3)


def test_damaged_chunk_of_a_png_file_is_named(tmp_path):
    """Pillow raises SyntaxError where it is not the first one."""
    content = bytearray(encoded(pictures(1, 3, 200)[0]))
    later = content.find(b"IDAT", content.find(b"IDAT") + 4)
    assert later > 0
    content[later] = 1
    write_folder(tmp_path, {"0.png": bytes(content)})
    with pytest.raises(UserError, match=r"0\.png: not a readable image"):
        READERS["folder"](tmp_path, 16, 3)


@pytest.mark.parametrize("name", ["images.tar", "images.tar.gz"])
@pytest.mark.parametrize("damage", ["header", "end"])
def test_tar_archive_of_which_members_are_missing_is_named(tmp_path, name, damage):
    """tarfile itself takes a damaged header, or an end between two members, for the archive's end."""
    files = {f"{i}.png": encoded(image) for i, image in enumerate(pictures(3, 3, 16))}
    write_tar(tmp_path / "whole.tar", files)
    content = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "whole.tar").unlink()
    second = content.find(b"1.png")
    content = content[:second] + (b"" if damage == "end" else b"X" + content[second + 1 :])
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        READERS["archive"](tmp_path, 16, 3)


def test_checksum_of_a_gzipped_tar_archive_is_verified(tmp_path):
    """It stands behind the archive's end, where tarfile does not read."""
    write_tar(tmp_path / "images.tar.gz", {"0.png": encoded(pictures(1, 3, 16)[0])})
    content = bytearray((tmp_path / "images.tar.gz").read_bytes())
    content[-6] ^= 1
    (tmp_path / "images.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.tar\.gz.*CRC"):
        READERS["archive"](tmp_path, 16, 3)


@pytest.mark.parametrize("names", [[], ["a.zip", "b.tar"], ["a.rar"]])
def test_asset_needs_one_archive(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{tmp_path}.* needs one"):
        READERS["archive"](tmp_path, 16, 3)


def test_damaged_member_of_a_zip_archive_is_named(tmp_path):
    write_zip(tmp_path / "images.zip", {"0.png": encoded(pictures(1, 3, 16)[0])})
    content = bytearray((tmp_path / "images.zip").read_bytes())
    content[200:210] = bytes(10)
    (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.zip"):
        READERS["archive"](tmp_path, 16, 3)


def test_folder_of_a_mirror_is_read_through_its_link(tmp_path):
    """What `fetch_asset` puts into the asset's folder is a link to the folder of images."""
    images = pictures(2, 3, 16)
    write_folder(tmp_path / "mirror", {f"{i}.png": encoded(image) for i, image in enumerate(images)})
    formats = [{"reader": "folder", "files": [{"name": "images", "sha256": None}]}]
    fetch_asset("pictures", formats, os.fspath(tmp_path / "mirror"), tmp_path / "asset")
    reader = READERS[read_description(tmp_path / "asset")["reader"]]
    assert np.array_equal(reader(tmp_path / "asset", 16, 3).images, images)

import json

import numpy as np
import pytest
import yaml
from replicas import write_mnist
from sklearn.datasets import load_digits

import graft.prompt_formats
from graft.compositions import COLOURS, held_out, parse
from graft.configuration import check_config
from graft.errors import UserError
from graft.prompt_formats import HELD_OUT_PICTURES, READERS, Prompts, without_overlap


@pytest.fixture(scope="module")
def digit_compositions(tmp_path_factory):
    return READERS["digit_compositions"](tmp_path_factory.mktemp("digits"), 16)


def test_digit_compositions_have_their_captions_and_kinds(digit_compositions):
    found = digit_compositions
    assert found.images.shape == (20_000, 3, 16, 16)
    assert found.images.dtype == np.uint8
    assert len(found.captions) == len(found.kinds) == len(found.held_out) == 20_000
    assert found.kinds == [parse(caption).kind for caption in found.captions]


def test_two_thousand_pictures_show_what_is_held_out(digit_compositions):
    sides = [held_out(parse(caption)) for caption in digit_compositions.captions]
    assert digit_compositions.held_out.tolist() == sides
    assert sum(sides) == HELD_OUT_PICTURES == 2000


def tiles_of(image, caption):
    """Where each object should be: its digit, and its pixels (size / 2, size / 2) if their colour is the right one."""
    composition, side = parse(caption), image.shape[-1] // 2
    for (colour, digit), (top, left) in zip(composition.objects, composition.places(2 * side), strict=True):
        tile = image[:, top : top + side, left : left + side]
        assert np.array_equal(tile, tile.max(axis=0) * (np.array(COLOURS[colour]) > 0)[:, None, None])
        yield digit, tile.max(axis=0)


def halves_of(images, labels):
    """By digit, the contents of the first and of the second half of its class."""
    classes = {digit: [image.tobytes() for image in images[labels == digit]] for digit in range(10)}
    return {digit: (set(rows[: len(rows) // 2]), set(rows[len(rows) // 2 :])) for digit, rows in classes.items()}


def check_halves(prompts, halves, rows):
    for i in rows:
        for digit, tile in tiles_of(prompts.images[i], prompts.captions[i]):
            assert tile.tobytes() in halves[digit][i % 2]


def test_pictures_take_turns_between_the_halves_of_the_digits(digit_compositions):
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    check_halves(digit_compositions, halves_of(images, digits.target), [*range(1000), *range(19_000, 20_000)])


def test_nothing_but_the_objects_is_in_a_picture(digit_compositions):
    for image, caption in zip(digit_compositions.images[:500], digit_compositions.captions[:500], strict=True):
        assert image.max(axis=0).sum(dtype=int) == sum(tile.sum(dtype=int) for _, tile in tiles_of(image, caption))


def test_pictures_are_always_the_same(digit_compositions, tmp_path):
    again = READERS["digit_compositions"](tmp_path, 16)
    assert again.captions == digit_compositions.captions
    assert np.array_equal(again.images, digit_compositions.images)


@pytest.mark.parametrize(("reader", "size"), [("digit_compositions", 16), ("mnist_compositions", 64)])
def test_pictures_have_one_size(tmp_path, reader, size):
    with pytest.raises(UserError, match=f"{size} x {size} pixels, not 32; set image_size to {size}"):
        READERS[reader](tmp_path, 32)


def test_mnist_compositions(tmp_path, monkeypatch):
    """As those of scikit-learn's digits, with the digits in the middle of tiles of 32 x 32."""
    monkeypatch.setattr(graft.prompt_formats, "MNIST_PICTURES", 2100)
    images = write_mnist(tmp_path, 60, np.random.default_rng(0))
    found = READERS["mnist_compositions"](tmp_path, 64)
    assert found.images.shape == (2100, 3, 64, 64)
    assert found.held_out.sum() == 2000
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    check_halves(found, halves_of(padded, np.arange(60) % 10), range(0, 2100, 3))


def test_mnist_must_have_every_digit_twice(tmp_path):
    write_mnist(tmp_path, 19, np.random.default_rng(0))
    with pytest.raises(UserError, match=f"{tmp_path}: fewer than two pictures of the digit 9"):
        READERS["mnist_compositions"](tmp_path, 64)


def test_missing_mnist_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz"):
        READERS["mnist_compositions"](tmp_path, 64)


def write_genai_bench(folder, prompts):
    entries = {
        f"{i:05}": {"id": f"{i:05}", "prompt": prompt, "prompt in Chinese": "一", "models": {"SDXL_Base": [3, 2, 3]}}
        for i, prompt in enumerate(prompts, 1)
    }
    (folder / "genai_image_527.json").write_text(json.dumps(entries, indent=4), encoding="utf-8")


def write_geneval(folder, prompts):
    lines = [
        json.dumps({"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": prompt})
        for prompt in prompts
    ]
    (folder / "geneval_metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_t2i_compbench(folder, **prompts):
    """Each file as published: lines that end as on Windows, the last of them or none."""
    for name, lines in prompts.items():
        (folder / f"{name}.txt").write_bytes("\r\n".join(lines).encode())


EVALUATION = {"genai_bench": ("GenAI-Bench", write_genai_bench), "geneval": ("GenEval", write_geneval)}


@pytest.mark.parametrize("reader", EVALUATION)
def test_prompts_for_evaluation_are_held_out(tmp_path, reader):
    kind, write = EVALUATION[reader]
    write(tmp_path, ["A café at night.", "  a photo of a bench\n"])
    found = READERS[reader](tmp_path, 512)
    assert found.captions == ["A café at night.", "a photo of a bench"]
    assert found.kinds == [kind, kind]
    assert found.held_out.dtype == bool
    assert found.held_out.tolist() == [True, True]
    assert found.images is None


def test_t2i_compbench(tmp_path):
    """Kinds by file; blank lines are no prompts; prompts keep what only str.splitlines takes for the end of a line."""
    write_t2i_compbench(
        tmp_path,
        color_train=["a red bench", "", "a naïve\x85 car", " "],
        color_val=["a blue bench", ""],
        **{"3d_spatial_train": ["a dog behind a desk"]},
    )
    (tmp_path / "asset.json").write_text("{}")
    found = READERS["t2i_compbench"](tmp_path, 512)
    rows = list(zip(found.captions, found.kinds, found.held_out.tolist(), strict=True))
    assert rows == [
        ("a dog behind a desk", "3d_spatial", False),
        ("a red bench", "color", False),
        ("a naïve\x85 car", "color", False),
        ("a blue bench", "color", True),
    ]
    assert found.images is None


GENAI, GENEVAL = "genai_image_527.json", "geneval_metadata.jsonl"


@pytest.mark.parametrize(
    ("reader", "name", "content", "complaint"),
    [
        ("genai_bench", GENAI, None, r"genai_image_527\.json: not a readable"),
        ("genai_bench", GENAI, b'{"1": {"prompt": "a"},\n "2": ', r"genai_image_527\.json: not .*line 2"),
        ("genai_bench", GENAI, b'{"1": {"prompt": "\xff"}}', r"genai_image_527\.json: not .*utf-8"),
        ("genai_bench", GENAI, b"[]", r"genai_image_527\.json: not an object"),
        ("genai_bench", GENAI, b"{}", r"genai_image_527\.json: no prompts"),
        ("genai_bench", GENAI, b'{"1": {"prompt": "a"}, "2": {}}', r"genai_image_527\.json: entry '2' has no prompt"),
        ("genai_bench", GENAI, b'{"1": "a"}', r"genai_image_527\.json: entry '1' has no prompt"),
        ("genai_bench", GENAI, b'{"1": {"prompt": 3}}', r"genai_image_527\.json: entry '1' has no prompt"),
        ("genai_bench", GENAI, b'{"1": {"prompt": " "}}', r"genai_image_527\.json: entry '1' has no prompt"),
        ("geneval", GENEVAL, None, r"geneval_metadata\.jsonl: not a readable"),
        ("geneval", GENEVAL, b"\n\n", r"geneval_metadata\.jsonl: no prompts"),
        ("geneval", GENEVAL, b'{"prompt": "a"}\n\n{"prompt": ', r"geneval_metadata\.jsonl: line 3: not a readable"),
        ("geneval", GENEVAL, b'{"prompt": "a"}\n{"tag": "b"}', r"geneval_metadata\.jsonl: line 2 has no prompt"),
        ("t2i_compbench", "asset.json", b"{}", "no files .*_train.txt"),
        ("t2i_compbench", "color_train.txt", b" \r\n", r"color_train\.txt: no prompts"),
        ("t2i_compbench", "color_val.txt", b"a \xff bench", r"color_val\.txt: not a readable UTF-8 text file"),
    ],
)
def test_damaged_files_are_named(tmp_path, reader, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint) as refused:
        READERS[reader](tmp_path, 512)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_training_prompt_is_held_out_in_any_set(tmp_path):
    write_t2i_compbench(
        tmp_path,
        color_train=["a red car", "a green bench", "a Photo of  a bench", "a red car", "A RED car", "a blue cat"],
        color_val=["A green bench", "a white cat", "a white cat"],
        shape_train=["a blue cat", "a round table"],
    )
    write_geneval(tmp_path, ["a photo of a bench", "a white cat"])
    sets = [READERS[reader](tmp_path, 512) for reader in ("t2i_compbench", "geneval")]
    found = without_overlap(sets)
    rows = list(zip(found.captions, found.kinds, found.held_out.tolist(), strict=True))
    assert rows == [
        ("a red car", "color", False),
        ("a blue cat", "color", False),
        ("A green bench", "color", True),
        ("a white cat", "color", True),
        ("a round table", "shape", False),
        ("a photo of a bench", "GenEval", True),
    ]
    assert found.images is None


def pictured(captions, held, size=2):
    images = np.arange(len(captions) * 3 * size * size, dtype=np.uint8).reshape(-1, 3, size, size)
    return Prompts(list(captions), ["single"] * len(captions), np.array(held), images)


def test_pictures_of_one_caption_are_all_kept_unless_it_is_held_out():
    first, second = pictured("abac", [False] * 4), pictured("bd", [True, False])
    found = without_overlap([first, second])
    assert found.captions == ["a", "a", "c", "b", "d"]
    assert found.held_out.tolist() == [False, False, False, True, False]
    assert np.array_equal(found.images, np.concatenate([first.images[[0, 2, 3]], second.images]))


@pytest.mark.parametrize(
    "other", [pictured("a", [True], size=4), Prompts(["a"], ["single"], np.array([True]), None)], ids=["size", "none"]
)
def test_sets_with_other_images_do_not_mix(other):
    with pytest.raises(UserError, match="do not mix"):
        without_overlap([pictured("a", [True]), other])


@pytest.mark.parametrize("reader", READERS)
def test_asset_can_have_the_format_of_every_reader(repository, reader):
    assets = {"prompts": {"licence": "none", "formats": [{"reader": reader, "files": []}]}}
    check_config(assets, repository / "workflow" / "schemas" / "assets.yaml")


def test_listed_files_have_the_names_that_their_readers_look_for(repository):
    assets = yaml.safe_load((repository / "config" / "assets.yaml").read_text())
    names = {reader: [file["name"] for file in assets[reader]["formats"][0]["files"]] for reader in READERS}
    assert all(assets[reader]["formats"][0]["reader"] == reader for reader in READERS)
    assert (names["genai_bench"], names["geneval"], names["digit_compositions"]) == ([GENAI], [GENEVAL], [])
    assert names["mnist_compositions"] == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    kinds = ["3d_spatial", "color", "complex", "non_spatial", "numeracy", "shape", "spatial", "texture"]
    assert names["t2i_compbench"] == [f"{kind}_{side}.txt" for kind in kinds for side in ("train", "val")]

import json

import numpy as np
import pytest
from replicas import write_tar

from graft.errors import UserError
from graft.layout_formats import CLASSES, READERS

NOTHING = {"outside_boxes": 0, "degenerate_boxes": 0, "empty_pages": 0, "too_many_elements": 0, "duplicates": 0}
TEXT, TITLE, LIST, TABLE, FIGURE = range(1, 6)


def read(folder, reader, max_elements=3):
    return READERS[reader](folder, max_elements)


def edges_of(layouts):
    """Left, top, right and bottom (n, N, 4), float64."""
    centre, half = layouts.boxes[..., :2].astype(float), layouts.boxes[..., 2:].astype(float) / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def test_classes_are_numbered_as_in_publaynet():
    assert dict(enumerate(CLASSES, 1)) == {1: "text", 2: "title", 3: "list", 4: "table", 5: "figure"}


TRAINING, HELD_OUT = "publaynet_ltrb_valid.txt", "publaynet_ltrb_test.txt"
LINE = "table 0 0 127 63 | text 10 64 60 127"
OTHER = "figure 1 2 3 4"


def write_ltrb(folder, training, held_out=(OTHER,)):
    for name, lines in ((TRAINING, training), (HELD_OUT, held_out)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def test_lines_become_padded_boxes_of_both_splits(tmp_path):
    write_ltrb(tmp_path, [LINE, "list 0 0 127 127"])
    found = read(tmp_path, "publaynet_ltrb")
    assert found.boxes.dtype == np.float32
    assert found.classes.dtype == np.uint8
    assert found.held_out.tolist() == [False, False, True]
    assert found.classes.tolist() == [[TEXT, TABLE, 0], [LIST, 0, 0], [FIGURE, 0, 0]]
    assert np.array_equal(
        found.boxes[0],
        np.float32([[35 / 127, 95.5 / 127, 50 / 127, 63 / 127], [0.5, 31.5 / 127, 1, 63 / 127], [0] * 4]),
    )
    assert np.array_equal(found.boxes[1], np.float32([[0.5, 0.5, 1, 1], [0] * 4, [0] * 4]))
    assert np.array_equal(found.boxes[2, 0], np.float32([2 / 127, 3 / 127, 2 / 127, 2 / 127]))
    assert found.counts == NOTHING


def test_elements_are_sorted_by_class_then_downwards_then_rightwards(tmp_path):
    """Whatever their order in the file and their sizes, and by the top edge, not by the centre."""
    ordered = ["text 5 1 9 99", "text 3 2 4 4", "text 60 2 70 3", "title 0 0 1 1", "list 0 0 1 1", "table 0 0 1 1"]
    ordered.append("figure 0 0 1 1")
    write_ltrb(tmp_path, [" | ".join(ordered[i] for i in (4, 2, 6, 1, 0, 5, 3))])
    found = read(tmp_path, "publaynet_ltrb", 7)
    lines = [[CLASSES[c - 1], *edges] for c, edges in zip(found.classes[0], edges_of(found)[0] * 127, strict=True)]
    assert [f"{name} {left:.0f} {top:.0f} {r:.0f} {b:.0f}" for name, left, top, r, b in lines] == ordered


def test_boxes_without_area_are_dropped_and_counted(tmp_path):
    write_ltrb(tmp_path, ["text 5 1 5 9 | title 1 2 3 4 | list 1 9 3 9", LINE], ["figure 7 7 7 7 | text 1 1 2 2"])
    found = read(tmp_path, "publaynet_ltrb")
    assert found.classes.tolist() == [[TITLE, 0, 0], [TEXT, TABLE, 0], [TEXT, 0, 0]]
    assert found.counts == NOTHING | {"degenerate_boxes": 3}


def test_pages_without_elements_are_dropped_and_counted(tmp_path):
    """Empty lines, also at the end of a file, and pages of boxes without area."""
    write_ltrb(tmp_path, ["", LINE, "text 5 1 5 9"], [OTHER, "  "])
    found = read(tmp_path, "publaynet_ltrb")
    assert found.classes.tolist() == [[TEXT, TABLE, 0], [FIGURE, 0, 0]]
    assert found.held_out.tolist() == [False, True]
    assert found.counts == NOTHING | {"degenerate_boxes": 1, "empty_pages": 3}


def test_pages_with_too_many_elements_are_dropped_and_counted(tmp_path):
    """Boxes without area are no elements."""
    fitting = "title 1 2 3 4 | text 1 1 2 2 | text 5 1 5 9"
    write_ltrb(tmp_path, [fitting, "text 1 1 2 2 | text 1 1 2 3 | text 1 1 2 4"])
    found = read(tmp_path, "publaynet_ltrb", 2)
    assert found.classes.tolist() == [[TEXT, TITLE], [FIGURE, 0]]
    assert found.counts == NOTHING | {"degenerate_boxes": 1, "too_many_elements": 1}


def test_training_pages_that_are_held_out_are_dropped_and_counted(tmp_path):
    """In any order of their elements; what is repeated within a split stays, and so do pages that only resemble."""
    turned = " | ".join(reversed(LINE.split(" | ")))
    near = LINE.replace("60", "61")
    write_ltrb(tmp_path, [LINE, near, turned, near, LINE], [OTHER, LINE, OTHER])
    found = read(tmp_path, "publaynet_ltrb")
    assert found.classes.tolist() == [[TEXT, TABLE, 0]] * 2 + [[FIGURE, 0, 0], [TEXT, TABLE, 0], [FIGURE, 0, 0]]
    assert found.held_out.tolist() == [False, False, True, True, True]
    assert np.rint(edges_of(found)[:2, 0, 2] * 127).tolist() == [61, 61]
    assert found.counts == NOTHING | {"duplicates": 3}


WRONG_LINES = {
    "fields": ("text 1 2 3", "'text 1 2 3' is not 'class left top right bottom'"),
    "more fields": ("text 1 2 3 4 5", "'text 1 2 3 4 5' is not"),
    "no number": ("text 1 2 3 x", "'text 1 2 3 x' is not"),
    "fraction": ("text 1 2 3.5 4", "is not 'class"),
    "separator": ("text 1 2 3 4, title 1 2 3 4", "is not 'class"),
    "nothing after the separator": ("text 1 2 3 4 | ", "'' is not 'class"),
    "class": ("caption 1 2 3 4", "'caption' is none of text, title, list, table, figure"),
    "beyond": ("text 1 2 3 128", "'text 1 2 3 128' reaches outside the page, 0 to 127"),
    "before": ("text -1 2 3 4", "reaches outside the page"),
    "left and right": ("text 4 2 3 4", "'text 4 2 3 4' has its edges in the wrong order"),
    "top and bottom": ("text 1 5 3 4", "wrong order"),
}


@pytest.mark.parametrize("name", [TRAINING, HELD_OUT])
@pytest.mark.parametrize(("wrong", "message"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_wrong_line_is_named(tmp_path, name, wrong, message):
    write_ltrb(tmp_path, [LINE], [LINE])
    (tmp_path / name).write_text(f"{LINE}\n\n{OTHER} | {wrong}\n{LINE}\n")
    with pytest.raises(UserError, match=rf"{name}: line 3: .*{message}.*; mend or remove the line") as error:
        read(tmp_path, "publaynet_ltrb")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [TRAINING, HELD_OUT])
def test_missing_or_binary_text_file_is_named(tmp_path, name):
    write_ltrb(tmp_path, [LINE])
    (tmp_path / name).write_bytes(b"text \xff 1 1 1\n")
    with pytest.raises(UserError, match=f"{name}: not a readable UTF-8 text file"):
        read(tmp_path, "publaynet_ltrb")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: not a readable UTF-8 text file .*No such file"):
        read(tmp_path, "publaynet_ltrb")


@pytest.mark.parametrize("nothing", [[], ["", "text 1 1 1 1"], ["text 1 1 2 2 | text 1 1 2 3 | text 1 1 2 4"]])
def test_split_of_which_no_page_is_left_is_named(tmp_path, nothing):
    write_ltrb(tmp_path, nothing)
    with pytest.raises(UserError, match=rf"{TRAINING}: no page of 1 to 2 elements is left; replace it or raise"):
        read(tmp_path, "publaynet_ltrb", 2)
    write_ltrb(tmp_path, [LINE], nothing)
    with pytest.raises(UserError, match=rf"{HELD_OUT}: no page of 1 to 2 elements"):
        read(tmp_path, "publaynet_ltrb", 2)


def test_training_split_that_is_all_held_out_is_named(tmp_path):
    write_ltrb(tmp_path, [LINE], [LINE])
    with pytest.raises(UserError, match=f"{TRAINING}: no page"):
        read(tmp_path, "publaynet_ltrb")


CATEGORIES = [{"supercategory": "", "id": number, "name": name} for number, name in enumerate(CLASSES, 1)]


def annotation(number, image, category, *box):
    left, top, width, height = box
    outline = [[left, top, left + width, top, left + width, top + height]]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "segmentation": outline,
        "area": width * height,
        "iscrowd": 0,
    }


def image(number, width=600, height=800):
    return {"id": number, "width": width, "height": height, "file_name": f"PMC{number}_00001.jpg"}


def labels(images, annotations, categories=CATEGORIES):
    return {"images": images, "annotations": annotations, "categories": categories}


VALIDATION = labels([image(1)], [annotation(1, 1, FIGURE, 60, 80, 120, 160)])


def write_coco(folder, training, validation=VALIDATION):
    files = {"publaynet/train.json": training, "publaynet/val.json": validation}
    members = {"publaynet/README.txt": b"labels", "publaynet/._train.json": b"\x00"}
    members |= {name: json.dumps(content).encode() for name, content in files.items()}
    write_tar(folder / "labels.tar.gz", members)


def test_coco_labels_become_padded_boxes_of_both_splits(tmp_path):
    """Annotations stand in any order; pages keep the order of the images."""
    annotations = [
        annotation(5, 9, TITLE, 60, 80, 300, 8),
        annotation(6, 4, LIST, 0, 0, 400, 1000),
        annotation(7, 9, TEXT, 150.0, 200.0, 300.0, 400.0),
    ]
    write_coco(tmp_path, labels([image(9), image(4, 400, 1000)], annotations))
    found = read(tmp_path, "publaynet_coco")
    assert found.held_out.tolist() == [False, False, True]
    assert found.classes.tolist() == [[TEXT, TITLE, 0], [LIST, 0, 0], [FIGURE, 0, 0]]
    assert np.array_equal(found.boxes[0], np.float32([[0.5, 0.5, 0.5, 0.5], [0.35, 0.105, 0.5, 0.01], [0] * 4]))
    assert np.array_equal(found.boxes[1, 0], np.float32([0.5, 0.5, 1, 1]))
    assert np.allclose(found.boxes[2, 0], [0.2, 0.2, 0.2, 0.2], atol=1e-7)
    assert found.counts == NOTHING


def test_coco_classes_go_by_their_names(tmp_path):
    categories = [{"id": 10 + i, "name": name} for i, name in enumerate(reversed(CLASSES))]
    annotations = [annotation(i, 1, 10 + i, 0, 0, 10 + i, 10) for i in range(5)]
    write_coco(tmp_path, labels([image(1)], annotations, categories))
    found = read(tmp_path, "publaynet_coco", 5)
    assert found.classes[0].tolist() == [1, 2, 3, 4, 5]
    assert np.rint(600 * found.boxes[0, :, 2]).tolist() == [14, 13, 12, 11, 10]


def test_coco_pages_and_boxes_that_are_left_out_are_counted(tmp_path):
    """A box without height, as in the published files, an image without annotations, and one with three of two."""
    images = [image(1), image(2), image(3), image(4)]
    annotations = [annotation(1, 1, TEXT, 50.73, 89.65, 498.14, 0.0), annotation(2, 1, TITLE, 10, 10, 100, 10)]
    annotations += [annotation(3 + i, 3, TEXT, 10, 100 * i, 100, 10) for i in range(3)]
    annotations += [annotation(6, 4, FIGURE, 60.02, 80, 120, 160.02)]
    write_coco(tmp_path, labels(images, annotations))
    found = read(tmp_path, "publaynet_coco", 2)
    assert found.classes.tolist() == [[TITLE, 0], [FIGURE, 0]]
    assert found.held_out.tolist() == [False, True]
    assert found.counts == {
        "outside_boxes": 0,
        "degenerate_boxes": 1,
        "empty_pages": 1,
        "too_many_elements": 1,
        "duplicates": 1,
    }


def test_coco_pages_are_the_same_to_a_part_in_ten_thousand(tmp_path):
    """Boxes of the held-out page, moved by less than half a grid step, and by one."""
    moved = [annotation(1, 1, FIGURE, 60, 80.03, 120, 160), annotation(2, 2, FIGURE, 60, 80.08, 120, 160)]
    write_coco(tmp_path, labels([image(1), image(2)], moved))
    found = read(tmp_path, "publaynet_coco")
    assert found.counts == NOTHING | {"duplicates": 1}
    assert edges_of(found)[0, 0, 1] == pytest.approx(80.08 / 800, abs=1e-6)


def test_columns_whose_tops_differ_by_rounding_stay_in_order(tmp_path):
    boxes = [annotation(1, 1, TEXT, 300, 100, 200, 100), annotation(2, 1, TEXT, 50, 100.01, 200, 100)]
    write_coco(tmp_path, labels([image(1)], boxes))
    assert (read(tmp_path, "publaynet_coco").boxes[0, :2, 0] * 600).round().tolist() == [150, 400]


def test_coco_boxes_are_cut_off_within_a_pixel_of_the_page(tmp_path):
    boxes = [annotation(1, 1, TEXT, -1, -0.5, 602, 801.5), annotation(2, 1, TITLE, 600.5, 10, 0.5, 10)]
    write_coco(tmp_path, labels([image(1)], boxes))
    found = read(tmp_path, "publaynet_coco")
    assert np.array_equal(found.boxes[0], np.float32([[0.5, 0.5, 1, 1], [0] * 4, [0] * 4]))
    assert found.counts == NOTHING | {"degenerate_boxes": 1}


OUTSIDE = [(-1.1, 0, 9, 9), (0, -1.1, 9, 9), (590, 0, 11.1, 9), (0, 790, 9, 11.1), (700, 0, 9, 9)]


@pytest.mark.parametrize("box", OUTSIDE)
def test_coco_box_outside_its_page_is_left_out_and_counted(tmp_path, box):
    write_coco(tmp_path, labels([image(3)], [annotation(1, 3, TEXT, 0, 0, 9, 9), annotation(77, 3, TEXT, *box)]))
    found = read(tmp_path, "publaynet_coco")
    assert found.counts == NOTHING | {"outside_boxes": 1}
    assert found.classes[0].tolist() == [1, 0, 0]


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


PROPER = annotation(77, 1, TEXT, 1, 1, 9, 9)
WRONG_LABELS = {
    "list": ([1, 2], "val.json: has no list of objects 'categories'"),
    "no annotations": (without(VALIDATION, "annotations"), "val.json: has no list of objects 'annotations'"),
    "no images": (without(VALIDATION, "images"), "val.json: has no list of objects 'images'"),
    "numbers": (labels([image(1)], [1]), "val.json: has no list of objects 'annotations'"),
    "class": (
        labels([image(1)], [PROPER], [*CATEGORIES, {"id": 6, "name": "caption"}]),
        "val.json: category 6: .*'caption' is none of text, title, list, table, figure",
    ),
    "class without name": (labels([image(1)], [PROPER], [{"id": 6}]), "category 6: .*it has no name"),
    "image of no size": (labels([image(1, 0)], [PROPER]), "image 1: .*0 x 800"),
    "image of infinite size": (labels([image(1, 9, float("inf"))], [PROPER]), "image 1: .*9 x inf"),
    "image without size": (labels([without(image(1), "width")], [PROPER]), "image 1: .*it has no width"),
    "image without id": (labels([without(image(1), "id")], [PROPER]), "image None: .*it has no id"),
    "images of one id": (labels([image(1), image(1)], [PROPER]), "image 1: .*another one of this id"),
    "annotation of no image": (labels([image(2)], [PROPER]), "annotation 77: .*of image 1 and category 1"),
    "annotation of no class": (
        labels([image(1)], [PROPER | {"category_id": 9}]),
        "annotation 77: .*of image 1 and category 9",
    ),
    "annotation without box": (labels([image(1)], [without(PROPER, "bbox")]), "annotation 77: .*it has no bbox"),
    "short box": (labels([image(1)], [PROPER | {"bbox": [1, 2, 3]}]), "annotation 77: .*values to unpack"),
    "no box": (labels([image(1)], [PROPER | {"bbox": None}]), "annotation 77: .*None"),
    "no number": (labels([image(1)], [PROPER | {"bbox": [1, 2, "x", 4]}]), "annotation 77: .*'x'"),
    "negative": (labels([image(1)], [PROPER | {"bbox": [9, 9, -2, 4]}]), "annotation 77: .*not 0 or more"),
    "nan": (labels([image(1)], [PROPER | {"bbox": [9, float("nan"), 2, 4]}]), "annotation 77: .*is not finite"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_wrong_entry_of_coco_labels_is_named(tmp_path, wrong, message):
    write_coco(tmp_path, VALIDATION, wrong)
    with pytest.raises(UserError, match=r"labels\.tar\.gz:publaynet/val\.json: .*replace") as error:
        read(tmp_path, "publaynet_coco")
    assert error.match(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["train.json", "val.json"])
def test_missing_or_damaged_member_is_named(tmp_path, file):
    members = {f"publaynet/{name}": json.dumps(VALIDATION).encode() for name in ("train.json", "val.json")}
    damaged = members | {f"publaynet/{file}": members[f"publaynet/{file}"][:-1]}
    write_tar(tmp_path / "labels.tar.gz", damaged)
    with pytest.raises(UserError, match=rf"labels\.tar\.gz:publaynet/{file}: not a readable JSON file"):
        read(tmp_path, "publaynet_coco")
    write_tar(tmp_path / "labels.tar.gz", without(members, f"publaynet/{file}"))
    with pytest.raises(UserError, match=rf"labels\.tar\.gz: holds no {file}; replace"):
        read(tmp_path, "publaynet_coco")


def test_missing_or_truncated_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"labels\.tar\.gz: not a readable tar archive"):
        read(tmp_path, "publaynet_coco")
    write_coco(tmp_path, VALIDATION)
    path = tmp_path / "labels.tar.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"labels\.tar\.gz: not a readable tar archive"):
        read(tmp_path, "publaynet_coco")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return read(tmp_path_factory.mktemp("nothing"), "synthetic_pages", 20)


def test_synthetic_pages_are_as_many_and_as_large_as_stated(synthetic):
    assert synthetic.boxes.shape == (14_000, 20, 4)
    assert synthetic.classes.shape == (14_000, 20)
    assert synthetic.held_out.tolist() == [False] * 12_000 + [True] * 2_000
    assert synthetic.counts == NOTHING
    elements = (synthetic.classes > 0).sum(axis=1)
    assert (elements.min(), elements.max()) == (3, 20)
    assert not synthetic.boxes[synthetic.classes == 0].any()


def test_synthetic_pages_are_always_the_same_and_all_different(synthetic, tmp_path):
    again = read(tmp_path, "synthetic_pages", 20)
    assert np.array_equal(synthetic.boxes, again.boxes)
    assert np.array_equal(synthetic.classes, again.classes)
    assert len({page.tobytes() for page in synthetic.boxes}) == 14_000


def test_synthetic_elements_lie_inside_the_margins(synthetic):
    edges = edges_of(synthetic)[synthetic.classes > 0]
    assert edges[:, :2].min() > 0.049
    assert edges[:, 2:].max() < 0.951
    assert (edges[:, 2:] - edges[:, :2]).min() > 0.005


def test_synthetic_elements_do_not_overlap(synthetic):
    """Each pair of elements is apart, by a gap, in one direction."""
    left, top, right, bottom = np.moveaxis(edges_of(synthetic)[:2_000], -1, 0)
    apart = np.maximum(left[:, :, None] - right[:, None], top[:, :, None] - bottom[:, None])
    apart = np.maximum(apart, apart.swapaxes(1, 2))
    filled = synthetic.classes[:2_000] > 0
    pairs = filled[:, :, None] & filled[:, None] & ~np.eye(20, dtype=bool)
    assert apart[pairs].min() > 0.002


def test_synthetic_elements_stand_in_one_or_two_columns_or_across_both(synthetic):
    """Two columns of one width, aligned to the bit, between margins of one width."""
    two_columns = across = 0
    for boxes, classes in zip(synthetic.boxes, synthetic.classes, strict=True):
        columns = {(float(x), float(width)) for x, _, width, _ in boxes[classes > 0]}
        wide = {column for column in columns if column[1] > 0.5}
        assert wide <= {(0.5, max(width for _, width in columns))}
        if columns == wide:
            continue
        (left, left_width), (right, right_width) = sorted(columns - wide)
        assert left_width == pytest.approx(right_width, abs=1e-6)
        assert left + right == pytest.approx(1, abs=1e-6)
        assert 0.029 < right - left - left_width < 0.051
        assert all(width == pytest.approx(right - left + left_width, abs=1e-6) for _, width in wide)
        two_columns += 1
        across += ((boxes[:, 2] > 0.5) & (classes > 0)).sum() / (classes > 0).sum()
    assert 0.8 < two_columns / 14_000 < 0.9
    assert 0.08 < across / two_columns < 0.14


def test_synthetic_pages_hold_all_classes_and_put_text_below_titles(synthetic):
    """A title is one line high; lists, tables and figures are rarer than text and taller."""
    shares = np.bincount(synthetic.classes[synthetic.classes > 0], minlength=6)[1:] / (synthetic.classes > 0).sum()
    assert shares.argmax() == 0
    assert shares.min() > 0.05
    heights = [np.median(synthetic.boxes[synthetic.classes == number][:, 3]) for number in range(1, 6)]
    assert heights[1] == pytest.approx(0.016, abs=1e-6)
    assert heights[1] < heights[0] < heights[2] < heights[3] < heights[4]
    for boxes, classes, edges in zip(synthetic.boxes[:500], synthetic.classes[:500], edges_of(synthetic), strict=False):
        for i in np.flatnonzero(classes == TITLE):
            column = (boxes[:, 0] == boxes[i, 0]) & (edges[:, 1] > edges[i, 1]) & (classes > 0)
            assert column.any()
            assert classes[column][edges[column, 1].argmin()] != TITLE


def test_synthetic_elements_are_sorted(synthetic):
    """By class, then top, then left, to a part in ten thousand."""
    grid = np.rint(edges_of(synthetic)[:500] * 10_000).astype(int)
    for classes, edges in zip(synthetic.classes[:500], grid, strict=True):
        rows = [(c, top, left) for c, (left, top, *_) in zip(classes, edges, strict=True) if c]
        assert rows == sorted(rows)


@pytest.mark.parametrize("max_elements", [3, 4, 50])
def test_synthetic_pages_keep_to_other_sizes(tmp_path, max_elements):
    found = read(tmp_path, "synthetic_pages", max_elements)
    elements = (found.classes > 0).sum(axis=1)
    assert found.boxes.shape == (14_000, max_elements, 4)
    assert elements.min() == 3
    assert elements.max() > 0.9 * max_elements
    assert found.boxes[found.classes > 0][:, 3].min() > 0.001


def test_synthetic_pages_need_room_for_three_elements(tmp_path):
    with pytest.raises(UserError, match="max_elements is 2: synthetic pages have 3 or more; raise it"):
        read(tmp_path, "synthetic_pages", 2)

import math
from collections import defaultdict
from itertools import permutations

import numpy as np
import pytest
import torch

import graft.metrics.layouts
from graft.errors import UserError
from graft.metrics.layouts import alignment, maximum_iou, overlap

A = (0.2, 0.2, 0.4, 0.4)
B = (0.4, 0.3, 0.4, 0.2)
"""Spans [0.2, 0.6] x [0.2, 0.4]: has a quarter of A and half of itself in common with A, so their IoU is 0.2."""

FAR = (0.9, 0.9, 0.1, 0.1)

LEFT, MIDDLE, NEARLY, RIGHT = ((x, 0.5, 0.4, 1) for x in (0.2, 0.4, 0.45, 0.6))

NOT_GREEDY = (0.25 / 0.55 + 0.2 / 0.6) / 2
"""RIGHT with NEARLY and MIDDLE with LEFT; MIDDLE is nearest to NEARLY, 0.35 / 0.45, but RIGHT does not touch LEFT."""


def edges(box):
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def lines(box):
    left, top, right, bottom = edges(box)
    return left, (left + right) / 2, right, top, (top + bottom) / 2, bottom


def area(box):
    left, top, right, bottom = edges(box)
    return (right - left) * (bottom - top)


def common_area(one, other):
    (left, top, right, bottom), (other_left, other_top, other_right, other_bottom) = edges(one), edges(other)
    width = min(right, other_right) - max(left, other_left)
    height = min(bottom, other_bottom) - max(top, other_top)
    return width * height if width > 0 and height > 0 else 0.0


def iou(one, other):
    common = common_area(one, other)
    union = area(one) + area(other) - common
    return common / union if union else 0.0


def alignment_by_loop(page):
    total = 0.0
    for i, one in enumerate(page):
        nearest = 1.0
        for j, other in enumerate(page):
            for line, other_line in zip(lines(one), lines(other), strict=True):
                if i != j:
                    nearest = min(nearest, abs(line - other_line))
        total += -math.log(1 - nearest) if nearest < 1 else 0
    return total / len(page) if page else 0.0


def overlap_by_loop(page):
    total = 0.0
    for i, one in enumerate(page):
        for j, other in enumerate(page):
            if i != j and area(one):
                total += common_area(one, other) / area(one)
    return total / len(page) if page else 0.0


def score_by_permutations(page, other):
    """Of two pages, lists of (box, class), with the same classes: every order of the second page is tried."""
    orders = (order for order in permutations(other) if [c for _, c in order] == [c for _, c in page])
    return max(sum(iou(a, b) for (a, _), (b, _) in zip(page, order, strict=True)) for order in orders) / len(page)


def maximum_iou_by_permutations(pages, others):
    groups = defaultdict(lambda: ([], []))
    for side, collection in enumerate((pages, others)):
        for page in collection:
            groups[tuple(sorted(c for _, c in page))][side].append(page)
    matched = []
    for some, many in (sorted(group, key=len) for group in groups.values()):
        scores = {(i, j): score_by_permutations(a, b) for i, a in enumerate(some) for j, b in enumerate(many)}
        choices = permutations(range(len(many)), len(some))
        matched += max(([scores[pair] for pair in enumerate(choice)] for choice in choices), key=sum)
    return sum(matched) / len(matched)


def pad(pages, extra=0):
    """Boxes (B, N, 4) and mask (B, N) of pages, lists of boxes."""
    boxes = torch.zeros(len(pages), max(map(len, pages)) + extra, 4)
    mask = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for number, page in enumerate(pages):
        boxes[number, : len(page)] = torch.tensor(page).view(-1, 4)
        mask[number, : len(page)] = True
    return boxes, mask


def collection(pages, extra=0):
    """Boxes (B, N, 4) and classes (B, N) of pages, lists of (box, class)."""
    boxes, mask = pad([[box for box, _ in page] for page in pages], extra)
    classes = torch.zeros(mask.shape, dtype=torch.int64)
    classes[mask] = torch.tensor([label for page in pages for _, label in page], dtype=torch.int64)
    return boxes, classes


def random_boxes(rng, count):
    """On the grid of 1/16, which float32 holds exactly, so that edges meet and boxes of no area occur."""
    low = rng.integers(0, 12, size=(count, 2))
    size = rng.integers(0, 5, size=(count, 2))
    return np.concatenate([low + size / 2, size], axis=1) / 16


def random_page(rng, classes):
    return [(tuple(box), label) for box, label in zip(random_boxes(rng, len(classes)).tolist(), classes, strict=True)]


def shuffled(rng, boxes, classes):
    """The same pages in another order, the elements of each, padding among them, in another order too."""
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(classes.shape[1]), (len(classes), 1)), axis=1))
    pages = torch.from_numpy(rng.permutation(len(classes)))
    return boxes.gather(1, order[..., None].expand(-1, -1, 4))[pages], classes.gather(1, order)[pages], pages


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def batch(rng):
    """200 pages of 0 to 8 boxes; half of them off the grid, so that nothing is aligned by chance."""
    coarse = [random_boxes(rng, n) for n in rng.integers(0, 9, size=100)]
    fine = [np.hstack([rng.random((n, 2)), rng.uniform(0, 0.6, (n, 2))]) for n in rng.integers(0, 9, size=100)]
    return pad([page.tolist() for page in coarse + fine], extra=2)


@pytest.mark.parametrize(("metric", "loop"), [(alignment, alignment_by_loop), (overlap, overlap_by_loop)])
def test_metric_of_random_pages_is_that_of_loops(batch, metric, loop):
    boxes, mask = batch
    found = metric(boxes, mask)
    assert (found.dtype, found.shape) == (torch.float32, (200,))
    expected = [loop(page[real].tolist()) for page, real in zip(boxes, mask, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert sum(value > 0 for value in expected) > 80


@pytest.mark.parametrize("metric", [alignment, overlap])
def test_padding_and_order_never_matter(batch, rng, metric):
    boxes, mask = batch
    mixed, kept, pages = shuffled(rng, boxes, mask)
    for rubbish in (math.nan, math.inf, -math.inf, 1e9, 0, *boxes[0, 0].tolist()):
        found = metric(mixed.masked_fill(~kept[..., None], rubbish), kept)
        torch.testing.assert_close(found, metric(boxes, mask)[pages], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        pytest.param([], 0, id="no element"),
        pytest.param([A], 0, id="a lone element"),
        pytest.param([(0.2, 0.1, 0.2, 0.1), (0.3, 0.4, 0.4, 0.2), (0.4, 0.8, 0.6, 0.3)], 0, id="a left-aligned column"),
        pytest.param(
            [(0.1, 0.2, 0.1, 0.2), (0.4, 0.2, 0.3, 0.3), (0.8, 0.2, 0.2, 0.1)], 0, id="a row on one centre line"
        ),
        pytest.param([(0.2, 0.2, 0.2, 0.2), (0.6, 0.25, 0.4, 0.1)], 0, id="a common bottom"),
        # The right edge of the first, 0.3, is near the left edge of the second, 0.35, but of another kind.
        pytest.param([(0.2, 0.2, 0.2, 0.1), (0.5, 0.6, 0.3, 0.3)], -math.log(0.75), id="left edges 0.25 apart"),
        pytest.param(
            [(0.2, 0.1, 0.2, 0.1), (0.3, 0.4, 0.4, 0.2), (0.42, 0.8, 0.6, 0.3)],
            -math.log(0.98) / 3,
            id="one of three shifted by 0.02",
        ),
        pytest.param(
            [(0.1, 0.1, 0.02, 0.02), (0.15, 0.3, 0.04, 0.06), (0.45, 0.8, 0.1, 0.2)],
            -(2 * math.log(0.96) + math.log(0.73)) / 3,
            id="three elements, each with its own nearest",
        ),
        pytest.param([(0, 0, 0, 0), (0.99, 1, 0, 0)], -math.log(0.01), id="nearly a page apart"),
        pytest.param([(0, 0, 0, 0), (1, 1, 0, 0)], 0, id="a page apart"),
    ],
)
def test_alignment_of_known_pages(page, expected):
    """Among pages that have more elements, which must not be compared with this one's padding."""
    boxes, mask = pad([page, [A, B, FAR, A]], extra=1)
    assert alignment(boxes, mask)[0].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        pytest.param([], 0, id="no element"),
        pytest.param([A], 0, id="a lone element"),
        pytest.param([A, B], (1 / 4 + 1 / 2) / 2, id="two elements"),
        pytest.param([A, B, FAR], (1 / 4 + 1 / 2) / 3, id="a third one apart"),
        pytest.param([A, (0.2, 0.2, 0.2, 0.2)], (1 / 4 + 1) / 2, id="one within the other"),
        pytest.param([A] * 5, 4, id="five on top of each other"),
        pytest.param([(0.25, 0.5, 0.5, 1), (0.75, 0.5, 0.5, 1)], 0, id="a common edge"),
        pytest.param([(0.25, 0.25, 0.5, 0.5), (0.75, 0.75, 0.5, 0.5)], 0, id="a common corner"),
        pytest.param([(0.2, 0.5, 0.2, 0.2), (0.8, 0.5, 0.2, 0.2)], 0, id="beside each other"),
        pytest.param([A, (0.2, 0.2, 0, 0.1), (0.2, 0.2, 0, 0)], 0, id="elements of no area within another"),
    ],
)
def test_overlap_of_known_pages(page, expected):
    boxes, mask = pad([page, [A, B, FAR, A]], extra=1)
    assert overlap(boxes, mask)[0].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("metric", [alignment, overlap])
def test_nan_in_an_element_shows_on_its_page_alone(metric):
    boxes, mask = pad([[A, B], [A, B]])
    boxes[1, 0, 3] = math.nan
    assert metric(boxes, mask).isnan().tolist() == [False, True]


@pytest.mark.parametrize("metric", [alignment, overlap])
def test_no_pages(metric):
    assert metric(torch.zeros(0, 5, 4), torch.zeros(0, 5, dtype=torch.bool)).shape == (0,)


def test_alignment_resolves_small_distances():
    """1 - 1e-6 has few digits in float32."""
    boxes, mask = pad([[(0, 0.1, 0, 0.1), (1e-6, 0.4, 0, 0.2)]])
    assert alignment(boxes, mask).item() == pytest.approx(1e-6, rel=1e-4)


MULTISETS = [(1,), (1, 1), (1, 2), (1, 1, 1), (2, 1, 1), (3, 3, 2, 1, 3)]


@pytest.mark.parametrize("case", range(5))
def test_maximum_iou_is_that_of_all_permutations(case):
    rng = np.random.default_rng(case)
    pages, others = (
        [random_page(rng, rng.permutation(MULTISETS[i]).tolist()) for i in rng.integers(0, len(MULTISETS), size=size)]
        for size in (12, 16)
    )
    found = maximum_iou(collection(pages), collection(others, extra=1))
    assert found == pytest.approx(maximum_iou_by_permutations(pages, others), abs=1e-12)
    assert 0 < found < 1


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_page_against_many_finds_the_best_of_them(rng, count):
    """Against many pages and against one, elements are paired by different algorithms."""
    page, *others = (random_page(rng, [1] * count + [2]) for _ in range(300))
    single = [maximum_iou(collection([page]), collection([other])) for other in others]
    assert maximum_iou(collection([page]), collection(others)) == pytest.approx(max(single), abs=1e-12)
    few = [score_by_permutations(page, other) for other in others[:3]]
    assert single[:3] == pytest.approx(few, abs=1e-12)


def test_maximum_iou_of_a_collection_with_itself_is_one(rng):
    """However its pages and their elements are ordered, whatever stands in padding."""
    pages = [
        [(box, c) for box, c in random_page(rng, rng.integers(1, 4, size=6).tolist()) if area(box)] for _ in range(99)
    ]
    boxes, classes = collection(pages, extra=2)
    mixed, labels, _ = shuffled(rng, boxes.masked_fill(classes[..., None] == 0, math.nan), classes)
    assert maximum_iou((boxes, classes), (mixed, labels)) == 1
    assert maximum_iou((boxes.numpy(), classes.numpy().astype(np.uint8)), (mixed.half(), labels.int())) == 1


def test_maximum_iou_is_symmetric_and_needs_no_blocks(rng, monkeypatch):
    first, second = (collection([random_page(rng, [1, 1, 1, 2, 2]) for _ in range(size)]) for size in (40, 30))
    expected = maximum_iou(first, second)
    assert maximum_iou(second, first) == pytest.approx(expected, abs=1e-12)
    for pairs in (1, 1000):
        monkeypatch.setattr(graft.metrics.layouts, "PAIRS_PER_BLOCK", pairs)
        assert maximum_iou(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("pages", "others", "expected"),
    [
        pytest.param([[(A, 1)]], [[(B, 1)]], 0.2, id="two boxes"),
        pytest.param([[(A, 1)]], [[(FAR, 1)]], 0, id="two boxes apart"),
        pytest.param([[(A, 1), (FAR, 1)]], [[(FAR, 1), (B, 1)]], (0.2 + 1) / 2, id="elements in another order"),
        pytest.param([[(A, 1), (FAR, 2)]], [[(FAR, 1), (A, 2)]], 0, id="elements keep their class"),
        pytest.param(
            [[(MIDDLE, 1), (RIGHT, 1)]], [[(NEARLY, 1), (LEFT, 1)]], NOT_GREEDY, id="elements, the best pair broken up"
        ),
        pytest.param(
            [[(MIDDLE, 1)], [(RIGHT, 1)]], [[(NEARLY, 1)], [(LEFT, 1)]], NOT_GREEDY, id="pages, the best pair broken up"
        ),
        pytest.param([[(A, 1)], [(FAR, 1)]], [[(B, 1)], [(A, 1)]], 0.5, id="one page apart from all"),
        pytest.param([[(A, 1)], [(B, 1)], [(FAR, 1)]], [[(B, 1)]], 1, id="pages left over do not count"),
        pytest.param([[(A, 1)], [(B, 1)]], [[(A, 1)], [(A, 1)]], 0.6, id="no page serves twice"),
        pytest.param(
            [[(A, 1)]] * 3 + [[(A, 2)]], [[(A, 1)]] * 3 + [[(FAR, 2)]], 3 / 4, id="mean of pairs, not multisets"
        ),
        pytest.param([[(A, 1)] * 3, [(A, 2)]], [[(A, 1)] * 3, [(FAR, 2)]], 1 / 2, id="mean of pairs, not elements"),
        pytest.param([[(A, 1)], [(B, 2)]], [[(A, 1)], [(B, 3)]], 1, id="multisets that one side lacks do not count"),
        pytest.param([[(A, 1)], []], [[(A, 1)], []], 1, id="pages without elements do not count"),
        pytest.param([[((0.2, 0.2, 0, 0.1), 1)]], [[((0.2, 0.2, 0, 0.1), 1)]], 0, id="boxes of no area"),
        pytest.param([[(A, 1)]], [[(A, 2)]], math.nan, id="another class"),
        pytest.param([[(A, 1)]], [[(A, 1), (A, 1)]], math.nan, id="another number of elements"),
        pytest.param([[]], [[]], math.nan, id="no elements"),
    ],
)
def test_maximum_iou_of_known_collections(pages, others, expected):
    found = maximum_iou(collection(pages, extra=1), collection(others, extra=2))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_maximum_iou_refuses_a_box_that_is_not_finite(broken):
    boxes, classes = collection([[(A, 1)], [(A, 1), (B, 2)]])
    boxes[1, 1, 2] = broken
    with pytest.raises(UserError, match="1 of 2 pages have a box that is not finite"):
        maximum_iou(collection([[(A, 1)]]), (boxes, classes))

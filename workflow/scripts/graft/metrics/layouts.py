"""How well aligned a page's boxes are, how much they overlap, and how near pages come to real ones.

The names are ambiguous in this field. Here all three metrics are those of LayoutGAN++, as LayoutDM and LayoutFlow took
them over: Kikuchi et al. 2021, "Constrained Graphic Layout Generation via Latent Optimization" (arXiv 2108.00871, code
ktrk115/const_layout, metric.py). Each docstring says what else goes by the name, and where this departs from the code.

A batch is B pages, padded to N elements: boxes (B, N, 4) float, each (x of the centre, y of the centre, width, height)
as shares of the page, so in [0, 1]. What stands in padding never matters, nor where in the row it is, nor the order of
elements and pages.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import torch
from torch import Tensor

from graft.errors import UserError

Array = Tensor | np.ndarray

PAIRS_PER_BLOCK = 2**17
"""Pairs of elements whose IoU is computed at a time: a few MB, which stay in a processor's cache."""


def alignment(boxes: Tensor, mask: Tensor) -> Tensor:
    """Misalignment (B,) of each page, >= 0 and 0 at best, of boxes (B, N, 4) and mask (B, N) bool, True for an element.

    (1/n) sum_i -log(1 - d_i), with d_i = min over j != i and k of |c_k(i) - c_k(j)|: how far element i of n is from the
    nearest line of another, where c_k are its left, x-centre, right, top, y-centre and bottom, in shares of the page,
    each compared with its own kind. Natural logarithm; tables report it x100, and the factor is not applied here. An
    element that has no other, or none nearer than 1, counts as 0, and so does a page without elements. A NaN in a box
    makes its page NaN, if it has another element.

    Source: "alignment-LayoutGAN++" in LayoutDM's code; the sum is the loss of Li et al. 2020, "Attribute-conditioned
    Layout GAN" (arXiv 2009.05284), section 3.6.4. Same name, other numbers: "alignment-ACLayoutGAN" is that sum, not
    divided by n, and "alignment-NDN" is the sum of d_i itself, over the three x kinds only. The published code, also
    LayoutDM's and LayoutFlow's, compares elements with the batch's padding too (boxes of zeros, say), so that a page's
    figure depends on its batch: it is mostly lower than here, and above 0 for a lone element, which can make the mean
    of a set of pages higher.
    """
    low, high = _corners(boxes.movedim(-1, 0))
    lines = torch.cat([low, boxes.movedim(-1, 0)[:2], high])
    distance = (lines[..., :, None] - lines[..., None, :]).abs().amin(dim=0)
    others = mask[:, :, None] & mask[:, None, :] & ~_itself(mask)
    nearest = distance.masked_fill(~others, 1).amin(dim=2)
    # log1p, as most distances are small.
    return _mean_of_elements(-torch.log1p(-nearest.masked_fill(nearest >= 1, 0)), mask)


def overlap(boxes: Tensor, mask: Tensor) -> Tensor:
    """Overlap (B,) of each page, in [0, n - 1] for n elements, of boxes (B, N, 4) and mask (B, N) bool, as above.

    (1/n) sum_i sum_{j != i} area(i and j) / area(i): the share of an element that another covers, summed over the
    others, so that elements on top of each other count repeatedly. An element of no area counts as 0, and so does a
    page without elements. A NaN in a box makes its page NaN, if it has another element.

    Source: "overlap-LayoutGAN++" in LayoutDM's code; the sum is the loss of Li et al. 2020 (arXiv 2009.05284), section
    3.6.3. Same name, other numbers: "overlap-ACLayoutGAN" is that sum, not divided by n; "overlap-LayoutGAN" is the
    area common to two elements, in shares of the page, summed over unordered pairs. LayoutGAN++ reports it x100,
    LayoutFlow as it is and, for RICO, without the classes that lie behind others.
    """
    low, high = _corners(boxes.masked_fill(~mask[..., None], 0).movedim(-1, 0))
    common = _common_area(low[..., :, None], high[..., :, None], low[..., None, :], high[..., None, :])
    area = (high - low).prod(dim=0)[..., None]
    share = (common / area).masked_fill((area <= 0) | _itself(mask), 0)
    return _mean_of_elements(share.sum(dim=2), mask)


def maximum_iou(generated: tuple[Array, Array], reference: tuple[Array, Array]) -> float:
    """How near generated pages come to reference pages: in [0, 1], 1 at best, NaN where no two pages are comparable.

    Each argument is (boxes (B, N, 4), classes (B, N) integer, 0 where there is no element); B and N may differ. Two
    pages are comparable if they have the same classes, each as often. Their score is

        max over pi of (1/n) sum_i IoU(b_i, b'_pi(i)),

    pi running over the pairings of their n elements that keep the class. Among the pages of one multiset of classes, as
    many pairs as the smaller side has pages are formed, no page being used twice, so that the sum of their scores is
    the largest. The result is the mean score of all these pairs of all multisets. It is symmetric. Both assignments
    are exact, in float64 on the CPU.

    Pages without elements, and pages whose multiset the other side lacks, do not enter, nor do the pages left over. So
    the figure grows with the number of pages, the best fitting of which are paired: compare it at equal numbers only,
    and note that it says nothing of pages with unseen multisets. A box of no area has IoU 0 with every box. Raises
    UserError if the box of an element is not finite.

    Source: "Max. IoU" of LayoutGAN++, `compute_maximum_iou`; LayoutFlow calls it mIoU. Where this gives NaN, LayoutDM
    and LayoutFlow give 0; two boxes of no area raise an error there, or cost LayoutFlow the whole class. Similar name,
    other numbers: VTN's average IoU and BLT's perceptual IoU, of the pairs within one page, where less is better.
    """
    pages, references = _by_classes(*generated), _by_classes(*reference)
    shared = [classes for classes in pages if classes in references]
    scores = [_page_scores(pages[classes], references[classes], classes).numpy() for classes in shared]
    matched = [_assigned(score) for score in scores]
    return float(np.concatenate(matched).mean()) if matched else math.nan


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest x and y, (2, ...) each, of boxes (4, ...)."""
    centre, half = boxes[:2], boxes[2:] / 2
    return centre - half, centre + half


def _common_area(low: Tensor, high: Tensor, other_low: Tensor, other_high: Tensor) -> Tensor:
    return (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(dim=0)


def _itself(mask: Tensor) -> Tensor:
    """(N, N) bool, True on the diagonal, for a mask (B, N)."""
    return torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)


def _mean_of_elements(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,) over each page's elements of values (B, N), which are 0 in padding; 0 where there are none."""
    return values.sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _by_classes(boxes: Array, classes: Array) -> dict[tuple[int, ...], Tensor]:
    """Boxes (pages, n, 4) of all pages that share the n classes of the key, in whose order each page's elements are."""
    boxes, classes = torch.as_tensor(boxes).cpu().double(), torch.as_tensor(classes).cpu()
    broken = ((classes > 0) & ~boxes.isfinite().all(dim=2)).any(dim=1)
    if broken.any():
        raise UserError(
            f"layouts: {int(broken.sum())} of {len(broken)} pages have a box that is not finite; "
            "train again at a lower learning rate, or sample again"
        )
    # Descending, so that padding comes last.
    classes, order = classes.sort(dim=1, descending=True)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    numbers = defaultdict(list)
    for number, row in enumerate(classes.tolist()):
        numbers[tuple(label for label in row if label > 0)].append(number)
    return {key: boxes[pages, : len(key)] for key, pages in numbers.items() if key}


def _page_scores(first: Tensor, second: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Score (F, S), as in `maximum_iou`, of pages first (F, n, 4) against second (S, n, 4), with sorted classes.

    Each class is paired by itself, in blocks of pages that hold at most `PAIRS_PER_BLOCK` pairs of elements.
    """
    total, start = torch.zeros(len(first), len(second), dtype=first.dtype), 0
    for count in Counter(classes).values():
        one, other = (pages[:, start : start + count] for pages in (first, second))
        blocks = one.split(max(1, PAIRS_PER_BLOCK // (len(other) * count**2)))
        total += torch.cat([_largest_sum(_iou(block, other)) for block in blocks])
        start += count
    return total / len(classes)


def _iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU (n, n, F, S) of each element of the pages first (F, n, 4) and each of second (S, n, 4)."""
    # Pages lie along the last dimensions, so that the many sums over them run over contiguous memory.
    low, high = _corners(first.permute(2, 1, 0).contiguous()[:, :, None, :, None])
    other_low, other_high = _corners(second.permute(2, 1, 0).contiguous()[:, None, :, None, :])
    common = _common_area(low, high, other_low, other_high)
    union = (high - low).prod(dim=0) + (other_high - other_low).prod(dim=0) - common
    return (common / union).masked_fill_(union <= 0, 0)


def _largest_sum(values: Tensor) -> Tensor:
    """Largest sum (F, S) of n of the values (n, n, F, S), of which no two share a row or a column."""
    rows = len(values)
    # A sum over all pages costs about as much as one call of SciPy, which serves one pair of pages.
    sums = rows * 2 ** (rows - 1)
    return _over_subsets(values) if sums <= values[0, 0].numel() else _by_assignment(values)


def _over_subsets(values: Tensor) -> Tensor:
    """`_largest_sum` row by row, for all pairs of pages at once: the best sum of each set of columns used so far."""
    best = {frozenset(): torch.zeros_like(values[0, 0])}
    for row in values:
        longer = {}
        for columns, total in best.items():
            for column in set(range(len(row))) - columns:
                used, candidate = columns | {column}, total + row[column]
                longer[used] = torch.maximum(longer[used], candidate) if used in longer else candidate
        best = longer
    return best.popitem()[1]


def _by_assignment(values: Tensor) -> Tensor:
    """`_largest_sum`, one pair of pages after another."""
    matrices = values.flatten(2).permute(2, 0, 1).contiguous().numpy()
    sums = [_assigned(matrix).sum() for matrix in matrices]
    return torch.tensor(sums, dtype=values.dtype).view(values.shape[2:])


def _assigned(values: np.ndarray) -> np.ndarray:
    """Of values (n, m) those of the one-to-one assignment with the largest sum, (min(n, m),)."""
    from scipy.optimize import linear_sum_assignment  # takes a third of a second, which jobs that measure nothing save

    return values[linear_sum_assignment(values, maximize=True)]

"""Two-sample tests by a classifier (Lopez-Paz and Oquab 2017), of noises and of the data that they become."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from torch import Tensor

from graft.errors import UserError
from graft.metrics.images import frechet_distance

FOLDS = 3


@dataclass(frozen=True)
class Pairs:
    """Noises (n, d) and what a base makes of them, data (n, d); groups (n,): the same number where two depend."""

    noise: Tensor
    data: Tensor
    groups: Tensor


def tell_apart(real: Pairs, other: Pairs, seed: int) -> dict[str, float]:
    """How well a classifier tells two sets of n pairs apart by their noises, and by their data.

    The base is a bijection, so that the two laws have one total variation in both spaces, and a perfect classifier
    one accuracy; the larger of the two found holds for both. `noise_frechet` is the Frechet distance of the noises as
    they are. Further see `classifier_accuracy`.
    """
    groups, found = torch.cat([real.groups, other.groups]), {}
    for space in ("noise", "data"):
        accuracy, stderr = classifier_accuracy(getattr(real, space), getattr(other, space), groups, seed)
        found |= {f"{space}_accuracy": accuracy, f"{space}_accuracy_stderr": stderr}
    return {**found, "noise_frechet": frechet_distance(other.noise, real.noise)}


def classifier_accuracy(samples: Tensor, others: Tensor, groups: Tensor, seed: int) -> tuple[float, float]:
    """Accuracy, in [0, 1], of a classifier between samples (n, d) and others (m, d), on rows that it has not seen.

    1/2 for equal laws if n = m, and in the limit at most (1 + TV) / 2, so that 2 accuracy - 1 bounds the total
    variation from below. Gradient-boosted trees on the d coordinates see variances and interactions, not only means.
    Rows of one of `groups` (n + m,), samples before others, are never both in the training and in the test part of one
    of the `FOLDS` folds, which are drawn with `seed`. Also returns the binomial standard error of the n + m answers.
    Raises UserError with fewer than 2 FOLDS samples of a kind.
    """
    if min(len(samples), len(others)) < 2 * FOLDS:
        raise UserError(
            f"a two-sample test needs at least {2 * FOLDS} samples of a kind, got {len(samples)} and {len(others)}; "
            "raise theory.noises.samples, or invert more images"
        )
    x, kinds = torch.cat([samples, others]).numpy(), torch.arange(len(groups)).ge(len(samples)).numpy()
    # Early stopping would hold out rows at random, whatever their group.
    trees = HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.2, max_leaf_nodes=8, early_stopping=False, random_state=seed
    )
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    accuracy = float((cross_val_predict(trees, x, kinds, groups=groups.numpy(), cv=folds) == kinds).mean())
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / len(x))


def removed_share(before: float, after: float, floor: float) -> float | None:
    """The share of a distance that a correction removes: 1 - (after - floor) / (before - floor).

    floor: the same distance between two sets of samples of the target itself. None where `before` is no larger than
    that, so that nothing is there to be removed.
    """
    return 1 - (after - floor) / (before - floor) if before > floor else None

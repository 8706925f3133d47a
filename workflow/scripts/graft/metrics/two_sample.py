"""Two-sample tests by a classifier (Lopez-Paz and Oquab 2017), of noises and of the data that they become."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor

from graft.errors import UserError

FOLDS = 3


@dataclass(frozen=True)
class Pairs:
    """Noises (n, d), independent of one another, and what a base makes of them, data (n, d)."""

    noise: Tensor
    data: Tensor


def tell_apart(real: Pairs, other: Pairs, seed: int) -> dict[str, float]:
    """How well a classifier tells two sets of n pairs apart by their noises, and by their data.

    The base is a bijection, so that the two laws have one total variation in both spaces, and a perfect classifier
    one accuracy; the larger of the two found holds for both. Further see `classifier_accuracy`.
    """
    found = {}
    for space in ("noise", "data"):
        accuracy, stderr = classifier_accuracy(getattr(real, space), getattr(other, space), seed)
        found |= {f"{space}_accuracy": accuracy, f"{space}_accuracy_stderr": stderr}
    return found


def classifier_accuracy(samples: Tensor, others: Tensor, seed: int) -> tuple[float, float]:
    """Accuracy, in [0, 1], of a classifier between samples (n, d) and others (m, d), on rows that it has not seen.

    1/2 for equal laws if n = m, and in the limit at most (1 + TV) / 2, so that 2 accuracy - 1 bounds the total
    variation from below. Gradient-boosted trees on the d coordinates see variances and interactions, not only means.
    They are trained on all but one of `FOLDS` folds, which are drawn with `seed`, and asked about the one left. Also
    returns the binomial standard error of the n + m answers. Raises UserError with fewer than 2 FOLDS samples of a
    kind.
    """
    if min(len(samples), len(others)) < 2 * FOLDS:
        raise UserError(
            f"a two-sample test needs at least {2 * FOLDS} samples of a kind, got {len(samples)} and {len(others)}; "
            "raise theory.noises.samples, or invert more images"
        )
    x, kinds = torch.cat([samples, others]).numpy(), np.repeat([False, True], [len(samples), len(others)])
    trees = HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.2, max_leaf_nodes=8, early_stopping=False, random_state=seed
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    accuracy = float((cross_val_predict(trees, x, kinds, cv=folds) == kinds).mean())
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / len(x))


def matched_normal(target: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws (count, d) of the Gaussian that has the mean and the covariance of target (n, d).

    Raises UserError unless n > d, as the covariance is singular then.
    """
    if len(target) <= target.shape[1]:
        raise UserError(
            f"{len(target)} noises say too little of the covariance of {target.shape[1]} coordinates; raise "
            "theory.noises.samples, or invert more images"
        )
    law = torch.distributions.MultivariateNormal(target.double().mean(dim=0), target.double().T.cov())
    white = torch.randn(count, target.shape[1], generator=generator, dtype=torch.double)
    return (law.loc + white @ law.scale_tril.T).to(target.dtype)


def removed_share(before: float, after: float, floor: float) -> float | None:
    """The share of a distance that a correction removes: 1 - (after - floor) / (before - floor).

    floor: the same distance for samples of a law that has nothing left to be removed. None where `before` is no larger
    than that.
    """
    return 1 - (after - floor) / (before - floor) if before > floor else None

"""The judges of pictures of coloured digits: a scorer for the reward, one for evaluation, a digit classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from graft.compositions import (
    COLOURS,
    COMPOSITIONS,
    DIGITS,
    WORDS,
    Composition,
    contradiction,
    object_crops,
)
from graft.compute import Compute
from graft.networks.classifier import ImageClassifier
from graft.networks.scorer import QuestionScorer, question_loss
from graft.seeding import Draw, drawn_weights, numpy_generator

HALVES = {"reward": 0, "evaluation": 1}
"""Each scorer's training pictures, by the remainder of their row modulo 2: other pictures, in other handwriting."""

RUNS = {"reward": 1, "evaluation": 2, "truth": 3}
"""Numbers of the judges' random streams."""

CONTRADICTIONS = 4
"""Wrong captions of each picture."""

BATCH = 512
"""Pictures evaluated at once."""


@dataclass(frozen=True)
class Composed:
    """images: (n, 3, S, S) uint8. compositions: n. held_out: (n,) bool, whether each is kept from training."""

    images: Tensor
    compositions: list[Composition]
    held_out: Tensor


def train_picture_judges(
    pictures: Composed, network: dict[str, Any], training: dict[str, Any], seed: int, compute: Compute, fit: Callable
) -> dict[str, Any]:
    """Train the three judges and tell how accurate each is on held-out pictures.

    network, training: of `scorer` and of `classifier`. fit: see `graft.tasks`.
    """
    rng = numpy_generator(seed, Draw.TRAINING)
    wrong = [[contradiction(each, rng) for _ in range(CONTRADICTIONS)] for each in pictures.compositions]

    def fitted(name: str, kind: str, judge: nn.Module, data: list[Tensor], loss: Callable) -> None:
        fit(name, judge, data, loss, training[kind], run=RUNS[name])

    accuracy: dict[str, Any] = {}
    for name in HALVES:
        with drawn_weights(seed, RUNS[name]):
            scorer = QuestionScorer(
                image_size=pictures.images.shape[-1],
                vocabulary=WORDS,
                length=max(len(caption.split()) for caption in COMPOSITIONS),
                **network["scorer"],
            )
        accuracy[name] = _train_scorer(name, scorer, pictures, wrong, compute, fitted)
    with drawn_weights(seed, RUNS["truth"]):
        classifier = ImageClassifier(in_channels=1, classes=len(DIGITS), **network["classifier"])
    accuracy["truth"] = _train_classifier(classifier, pictures, compute, fitted)
    return accuracy


def _train_scorer(
    name: str,
    network: QuestionScorer,
    pictures: Composed,
    wrong: list[list[Composition]],
    compute: Compute,
    fitted: Callable,
) -> dict[str, Any]:
    """A scorer's accuracy on held-out pictures."""
    words = network.tokens([composition.caption for composition in pictures.compositions])
    contradicted = torch.stack([network.tokens([other.caption for other in others]) for others in wrong])
    mine, held_out = torch.arange(len(words)) % 2 == HALVES[name], pictures.held_out
    data = [array[mine & ~held_out] for array in (pictures.images, words, contradicted)]
    fitted(name, "scorer", network, data, question_loss)
    images = pictures.images[held_out]
    accepted = _evaluate(compute, network, images, words[held_out]) > 0
    rejected = _evaluate(compute, network, images, contradicted[held_out, 0]) <= 0
    kinds = [_difference(pictures.compositions[row], wrong[row][0]) for row in held_out.nonzero().flatten().tolist()]
    return _scorer_accuracy(accepted, rejected, mine[held_out], kinds)


def _scorer_accuracy(accepted: Tensor, rejected: Tensor, mine: Tensor, kinds: list[str]) -> dict[str, Any]:
    """Shares of pictures (n,) whose caption was accepted, and whose wrong one, of n kinds, was rejected.

    mine: (n,) bool, whether a picture is in the handwriting that the scorer was trained on.
    """
    balanced = (accepted.double() + rejected.double()) / 2
    of_kind = {kind: torch.tensor([other == kind for other in kinds]) for kind in sorted(set(kinds))}
    return {
        "balanced_accuracy": balanced.mean().item(),
        "balanced_accuracy_in_other_handwriting": balanced[~mine].mean().item(),
        "true_accepted": accepted.double().mean().item(),
        "contradicted_rejected": {kind: rejected[rows].double().mean().item() for kind, rows in of_kind.items()},
    }


def _difference(composition: Composition, other: Composition) -> str:
    """What a contradiction changed: the relation, the order of colours or objects, a colour, or a digit."""
    if composition.relation != other.relation:
        return "relation"
    words, new = composition.caption.split(), other.caption.split()
    changed = [word for word, instead in zip(words, new, strict=True) if word != instead]
    if len(changed) > 1:
        return "order"
    return "colour" if changed[0] in COLOURS else "digit"


def _train_classifier(
    network: ImageClassifier, pictures: Composed, compute: Compute, fitted: Callable
) -> dict[str, float]:
    """A classifier of grey digit tiles; its accuracy on held-out pictures, whose handwriting it knows."""
    tiles, _ = object_crops(pictures.images.numpy(), pictures.compositions)
    digits = torch.tensor([digit for composition in pictures.compositions for _, digit in composition.objects])
    counts = torch.tensor([len(composition.objects) for composition in pictures.compositions])
    held_out = pictures.held_out.repeat_interleave(counts)
    fitted("truth", "classifier", network, [tiles[~held_out], digits[~held_out]], _classification_loss)
    guesses = _evaluate(compute, network, tiles[held_out]).argmax(dim=1)
    return {"digit_accuracy": (guesses == digits[held_out]).double().mean().item()}


def _classification_loss(network: Callable[..., Tensor], tiles: Tensor, digits: Tensor, generator: Any) -> Tensor:
    return cross_entropy(network(tiles), digits)


@torch.no_grad()
def _evaluate(compute: Compute, network: nn.Module, *data: Tensor) -> Tensor:
    """The network's outputs (n, ...) for arrays of n rows, on the CPU."""
    batches = zip(*(array.split(BATCH) for array in data), strict=True)
    return torch.cat([network(*map(compute.to_device, batch)).cpu() for batch in batches])

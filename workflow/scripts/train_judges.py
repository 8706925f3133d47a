"""Train the judges of pictures of coloured digits: a scorer for the reward, one for evaluation, a digit classifier."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from graft.compositions import COLOURS, COMPOSITIONS, DIGITS, Composition, contradiction, object_crops, parse
from graft.files import write_json
from graft.jobs import compute_of, fit, run
from graft.networks.classifier import ImageClassifier
from graft.networks.scorer import QuestionScorer, question_loss
from graft.seeding import Draw, drawn_weights, numpy_generator
from graft.shards import load_prepared
from graft.tasks.text_to_image import WORDS, texts

HALVES = {"reward": 0, "evaluation": 1}
"""Each scorer's training pictures, by the remainder of their row modulo 2: other pictures, in other handwriting."""

RUNS = {"reward": 1, "evaluation": 2, "truth": 3}
"""Numbers of the judges' random streams."""

CONTRADICTIONS = 4
"""Wrong captions of each picture."""

BATCH = 512
"""Pictures evaluated at once."""


@dataclass(frozen=True)
class Pictures:
    """images: (n, 3, S, S) uint8. compositions: n. held_out: (n,) bool, whether each is kept from training."""

    images: Tensor
    compositions: list[Composition]
    held_out: Tensor


def main(job):
    compute, pictures = compute_of(job), read_pictures(job.input.data)
    rng = numpy_generator(job.params.seed, Draw.TRAINING)
    wrong = [[contradiction(each, rng) for _ in range(CONTRADICTIONS)] for each in pictures.compositions]
    accuracy = {name: train_scorer(job, compute, name, pictures, wrong) for name in HALVES}
    accuracy["truth"] = train_classifier(job, compute, "truth", pictures)
    write_json(Path(job.output[0]) / "accuracy.json", accuracy)
    for checkpoint in Path(job.params.checkpoints).glob("*.safetensors"):
        checkpoint.unlink()


def read_pictures(folder):
    images, captions, held_out = (load_prepared(folder, name)[:] for name in ("images", "captions", "held_out"))
    return Pictures(images, [parse(caption) for caption in texts(captions.numpy())], held_out)


def train_scorer(job, compute, name, pictures, wrong):
    """Save a scorer; its accuracy on held-out pictures."""
    with drawn_weights(job.params.seed, RUNS[name]):
        network = QuestionScorer(
            image_size=pictures.images.shape[-1],
            vocabulary=WORDS,
            length=max(len(caption.split()) for caption in COMPOSITIONS),
            **job.params.network["scorer"],
        )
    words = network.tokens([composition.caption for composition in pictures.compositions])
    contradicted = torch.stack([network.tokens([other.caption for other in others]) for others in wrong])
    mine, held_out = torch.arange(len(words)) % 2 == HALVES[name], pictures.held_out
    data = [array[mine & ~held_out] for array in (pictures.images, words, contradicted)]
    fit_judge(job, compute, name, "scorer", network, data, question_loss)
    images = pictures.images[held_out]
    accepted = evaluate(compute, network, images, words[held_out]) > 0
    rejected = evaluate(compute, network, images, contradicted[held_out, 0]) <= 0
    kinds = [difference(pictures.compositions[row], wrong[row][0]) for row in held_out.nonzero().flatten().tolist()]
    return scorer_accuracy(accepted, rejected, mine[held_out], kinds)


def scorer_accuracy(accepted, rejected, mine, kinds):
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


def difference(composition, other):
    """What a contradiction changed: the relation, the order of colours or objects, a colour, or a digit."""
    if composition.relation != other.relation:
        return "relation"
    words, new = composition.caption.split(), other.caption.split()
    changed = [word for word, instead in zip(words, new, strict=True) if word != instead]
    if len(changed) > 1:
        return "order"
    return "colour" if changed[0] in COLOURS else "digit"


def train_classifier(job, compute, name, pictures):
    """Save a classifier of grey digit tiles; its accuracy on held-out pictures, whose handwriting it knows."""
    tiles, _ = object_crops(pictures.images.numpy(), pictures.compositions)
    digits = torch.tensor([digit for composition in pictures.compositions for _, digit in composition.objects])
    counts = torch.tensor([len(composition.objects) for composition in pictures.compositions])
    held_out = pictures.held_out.repeat_interleave(counts)
    with drawn_weights(job.params.seed, RUNS[name]):
        network = ImageClassifier(in_channels=1, classes=len(DIGITS), **job.params.network["classifier"])
    data = [tiles[~held_out], digits[~held_out]]
    fit_judge(job, compute, name, "classifier", network, data, classification_loss)
    guesses = evaluate(compute, network, tiles[held_out]).argmax(dim=1)
    return {"digit_accuracy": (guesses == digits[held_out]).double().mean().item()}


def classification_loss(network, tiles, digits, generator):
    return cross_entropy(network(tiles), digits)


def fit_judge(job, compute, name, kind, network, data, loss):
    """Train a network on arrays of the same length, and save it."""
    folder = Path(job.output[0]) / name
    where = {"checkpoint": Path(job.params.checkpoints) / f"{name}.safetensors", "folder": folder}
    fit(job, compute, network, [data], loss, job.params.training[kind], run=RUNS[name], **where)
    network.save_pretrained(folder)


@torch.no_grad()
def evaluate(compute, network, *data):
    """The network's outputs (n, ...) for arrays of n rows, on the CPU."""
    batches = zip(*(array.split(BATCH) for array in data), strict=True)
    return torch.cat([network(*map(compute.to_device, batch)).cpu() for batch in batches])


run(main, snakemake)

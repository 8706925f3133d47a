"""The kinds of data, one module and one class each; nothing outside asks which one it has.

Every task can be trained as a base model:
    shape: of one point of the model's space, without the batch.
    read(folder, reader): an asset into arrays of equal length, by name, and counts for the record.
    training_data(folder): those arrays of a prepared folder, as the loss takes them, in one part or several (strata).
    build_network(settings, seed, run), load_network(folder): diffusers models.
    loss(network, *batch, generator): the base's training loss of one batch, a scalar.
A task whose samples have rewards has more; see `graft.tasks.sets` and `graft.tasks.molecules`. One with `JUDGES` has
    train_judges(data, network, training, seed, compute, fit): trains them, where the configuration names no pretrained
    ones, and returns their accuracies for the record. fit(name, network, arrays, loss, training, run) trains one under
    its name and number of a random stream, and saves it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

TASKS = {"images": "Images", "molecules": "Molecules", "text_to_image": "TextToImage", "layouts": "Layouts"}

JUDGES = {"text_to_image": ("reward", "evaluation", "truth"), "layouts": ("reward", "features")}
"""The networks that measure a task's samples, by the names that its `rewards` and `reference` know."""

REWARD_TASKS = {
    "molecules": {
        "category": "Molecules",
        "table": "metrics by method",
        "figure": "metrics, reward against reward calls, samples",
        "headline": "reward",
        "metrics": ["molecule_stability", "atom_stability", "validity", "uniqueness", "novelty"],
        "relative": False,
        "rollouts_compare": True,
    },
    "text_to_image": {
        "category": "Text to image",
        "table": "VQAScore and true accuracy by method",
        "figure": "scores, reward against reward calls, pictures",
        "headline": "vqascore",
        "metrics": None,
        "relative": False,
        "rollouts_compare": False,
    },
    "layouts": {
        "category": "Layouts",
        "table": "alignment, overlap, maximum IoU and FD by method",
        "figure": "metrics, reward against reward calls, pages",
        "headline": "reward",
        "metrics": None,
        "relative": True,
        "rollouts_compare": True,
    },
}
"""How the table and the figure of each task with rewards are shown.

headline: the metric whose gains stand in the table that people read. metrics: those of the figure's first panel, None
for all but the reward; relative: as changes over the base. rollouts_compare: whether the rewards of rollouts, which
train, compare with the evaluation's.
"""


def load_task(name: str, points: dict[str, Any]) -> Any:
    """The task of a name, with the `points` block of its setting: how data become points of a model."""
    return getattr(import_module(f"graft.tasks.{name}"), TASKS[name])(**points)

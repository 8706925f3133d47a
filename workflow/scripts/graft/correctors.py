"""Training of a noise corrector: a flow from N(0, I) to the law of inverted noises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graft.compute import Compute
from graft.networks.flows import FlowNetwork, build_network, velocity_of
from graft.objectives import flow_matching
from graft.paths import GaussianPath
from graft.shards import ShardedTensor
from graft.training import TrainingLog, TrainingSettings, train


def train_corrector(
    noises: ShardedTensor | Tensor,
    path: GaussianPath,
    network: dict[str, Any],
    training: dict[str, Any],
    *,
    seed: int,
    run: int,
    compute: Compute,
    checkpoint: Path,
    identity: str,
) -> tuple[FlowNetwork, TrainingLog]:
    """A flow trained by flow matching on `path` towards noises (n, C, H, W), and its log.

    network: see `graft.networks.flows.build_network`. training: the fields of `TrainingSettings`. The rest: see
    `graft.training.train`, whose errors it raises.
    """

    def loss(network: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        return flow_matching(velocity_of(network), path, batch, generator)

    corrector = build_network(network, tuple(noises[:1].shape[1:]), seed=seed, run=run)
    settings = TrainingSettings(**training)
    log = train(
        corrector,
        [[noises]],
        loss,
        settings,
        seed=seed,
        run=run,
        compute=compute,
        checkpoint=checkpoint,
        identity=identity,
    )
    return corrector, log

"""Distances between two sets of images in a feature space, all computed by torch-fidelity.

The Frechet distance on InceptionV3 features is FID (Heusel et al. 2017); on any other features it is called FD, with
the feature network named. KID is the unbiased polynomial-kernel MMD (Binkowski et al. 2018), precision and recall are
those of Kynkaanniemi et al. (2019) with 3 neighbours. They use VGG-16's features: on others, InceptionV3's included,
the numbers are not comparable with published ones, so the features are named there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from torch_fidelity.utils import create_feature_extractor

from graft.compute import Compute
from graft.errors import UserError
from graft.metrics.frechet import frechet_distance
from graft.networks.classifier import ImageClassifier
from graft.networks.saved import load_saved
from graft.seeding import Draw, random_rows

KID_SUBSET = 1000

NEIGHBOURS = 3
"""Of precision and recall, as published."""


class ClassifierFeatures(torch_fidelity.FeatureExtractorBase):
    """torch-fidelity's interface to the last hidden layer of an `ImageClassifier` trained by the workflow."""

    def __init__(self, name: str, features_list: Sequence[str], feature_extractor_weights_path: str, **_) -> None:
        super().__init__(name, features_list)
        self.network = load_saved(feature_extractor_weights_path, {"ImageClassifier": ImageClassifier})

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("hidden",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "hidden"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network.features(images),)


torch_fidelity.register_feature_extractor("classifier", ClassifierFeatures)

EXTRACTORS = {"classifier": ("classifier", "hidden"), "inception": ("inception-v3-compat", "2048")}
"""torch-fidelity's name and layer of each configured extractor."""


class FeatureSpace:
    """Features of uint8 images (n, C, H, W) under one of `EXTRACTORS`, whose weights are in `folder`."""

    def __init__(self, extractor: str, folder: Path, compute: Compute, batch_size: int) -> None:
        name, layer = EXTRACTORS[extractor]
        weights = folder if extractor == "classifier" else next(folder.glob("*.pth"))
        self.compute, self.batch_size, self.colour = compute, batch_size, extractor == "inception"
        # `fetch_asset` has verified the weights' checksum, which torch-fidelity's own loader does not.
        self.network = create_feature_extractor(
            name, [layer], cuda=False, feature_extractor_weights_path=str(weights), verbose=False
        ).to(compute.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, d), float32, on the CPU; Inception sees grey images as colour ones."""
        if self.colour and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        batches = images.split(self.batch_size)
        return torch.cat([self.network(batch.to(self.compute.device))[0].float().cpu() for batch in batches])


def distances(samples: Tensor, reference: Tensor, *, seed: int, precision_recall_samples: int) -> dict[str, float]:
    """Frechet distance, KID, precision and recall of features (n, d) against reference features (m, d).

    Precision and recall compare a random `precision_recall_samples` of each set, as their cost is quadratic; these and
    KID's subsets are drawn with `seed`. Raises UserError if a set has too few samples to have `NEIGHBOURS`.
    """
    if min(len(samples), len(reference)) <= NEIGHBOURS:
        raise UserError(
            f"evaluation needs more than {NEIGHBOURS} samples, got {len(samples)} against {len(reference)}; "
            "raise sampling.samples"
        )
    subset = min(KID_SUBSET, len(samples), len(reference))
    kid = kid_features_to_metric(samples, reference, kid_subset_size=subset, rng_seed=seed, verbose=False)
    # At random, as a folder of images may be sorted by class.
    subsets = [
        features[random_rows(len(features), precision_recall_samples, seed, Draw.NEIGHBOURS, number)]
        for number, features in enumerate((samples, reference))
    ]
    prc = prc_features_to_metric(*subsets, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False)
    return {
        "frechet": frechet_distance(samples, reference),
        "kid": kid[KEY_METRIC_KID_MEAN],
        "precision": prc[KEY_METRIC_PRECISION],
        "recall": prc[KEY_METRIC_RECALL],
    }

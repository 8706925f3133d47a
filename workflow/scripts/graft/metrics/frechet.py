"""The Frechet distance of two sets of features, computed by torch-fidelity."""

from __future__ import annotations

from torch import Tensor


def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """The Frechet distance of Gaussians with the moments of features (n, d) and of reference features (m, d)."""
    # A second's import, which the many jobs of a task that measure nothing need not spend.
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(features) for features in (samples, reference)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]

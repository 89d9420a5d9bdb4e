"""How well features of pixels separate by class: the three cluster scores that DGCL reports. Needs scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

from corrmatch_hf.errors import InputError


def feature_quality(
    features: Tensor, labels: Tensor, ignore_index: int = 255, max_pixels: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Silhouette, Calinski-Harabasz and Davies-Bouldin scores of features, the classes taken as clusters.

    Args:
        features: (N, C, h, w) or (P, C) float, of any device: `model.decode(model.encode(images)).fused`, for instance.
        labels: (N, h, w) or (P,) integers, at the size of the features; nearest-neighbour shrinking keeps them labels.
        ignore_index: label of the pixels that do not count.
        max_pixels: as many are drawn at random; the silhouette takes time with the square of it.
        seed: of that draw.

    Returns:
        "silhouette" in [-1, 1], higher is better; "calinski_harabasz" above 0, higher is better; "davies_bouldin" above
        0, lower is better.

    Raises:
        InputError: without scikit-learn; where the shapes do not fit; with fewer than two classes, or no more
            pixels than classes.
    """
    try:
        from sklearn import metrics
    except ImportError as error:
        raise InputError(
            "feature_quality needs scikit-learn, which is not installed; run: pip install scikit-learn"
        ) from error
    if features.ndim == 4:
        if features.shape[0] != labels.shape[0] or features.shape[2:] != labels.shape[1:]:
            raise InputError(
                f"features are {tuple(features.shape)} and labels {tuple(labels.shape)}; shrink the labels to "
                f"{(len(features), *features.shape[2:])} with nearest-neighbour interpolation."
            )
        features, labels = features.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"features are {tuple(features.shape)} and labels {tuple(labels.shape)}; give (P, C) and (P,), or "
            "(N, C, h, w) and (N, h, w)."
        )
    if max_pixels < 3:
        raise InputError(f"max_pixels is {max_pixels}; at least 3 are needed to compare clusters.")
    features, labels = features.detach().float().cpu(), labels.detach().cpu()
    known = (labels != ignore_index).nonzero().squeeze(1)
    if len(known) > max_pixels:
        generator = torch.Generator().manual_seed(seed)
        known = known[torch.randperm(len(known), generator=generator)[:max_pixels]]
    features, labels = features[known].numpy(), labels[known].numpy()
    classes = len(set(labels.tolist()))
    if not 2 <= classes < len(labels):
        raise InputError(
            f"{len(labels)} pixels of {classes} classes cannot be compared; give at least two classes, and more pixels "
            "than classes."
        )
    return {
        "silhouette": float(metrics.silhouette_score(features, labels)),
        "calinski_harabasz": float(metrics.calinski_harabasz_score(features, labels)),
        "davies_bouldin": float(metrics.davies_bouldin_score(features, labels)),
    }

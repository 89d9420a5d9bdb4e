"""Which photos to label next: those that the model is least sure of, one for each kind of scene. Needs scikit-learn.

For a photo with class probabilities p (K, H, W), the mean over its views (scales, mirror images):

    u = - sum_k p_k log p_k / log K           per pixel: entropy, 0 (certain) to 1; where the views disagree, p is flat
    u = 1 - (highest p_k - second p_k)        or the margin
    w_c = (f_max / f_c)^r                     f_c: share of the pixels of all photos that are predicted as class c
    score = mean over pixels of w_c u         c: the predicted class of the pixel; r = 0: every class counts alike

The photos, with those that are labelled already, are clustered by k-means (k-means++) over their pooled encoder
features, in as many clusters as there will be labelled photos. Clusters with a labelled photo are covered; of the
others, those with the highest score give their photo of highest score.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .inference import predict_probabilities, refuse_not_finite

MEASURES = ("entropy", "margin")
MOST_CLUSTERS = 2000  # the time of k-means grows with their number


@dataclass
class PhotoScores:
    """What is kept of each of N looked-at photos.

    Attributes:
        uncertainty: (N, K) float64, for each class the sum of u over the pixels predicted as it, over all pixels.
        shares: (N, K) float64, share of the photo's pixels predicted as each class.
        features: (N, C) float64 of length 1.
    """

    uncertainty: np.ndarray
    shares: np.ndarray
    features: np.ndarray

    def score(self, rare_power: float) -> np.ndarray:
        """(N,) the score of each photo; `rare_power` is r."""
        frequency = self.shares.mean(0)
        present = frequency > 0
        weight = np.zeros_like(frequency)
        weight[present] = (frequency.max() / frequency[present]) ** rare_power
        return self.uncertainty @ weight


def look_at(
    model: nn.Module,
    pixel_values: Tensor,
    file: str,
    *,
    measure: str = "entropy",
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """A row of `PhotoScores.uncertainty` and of `shares`, of one normalised photo (1, 3, H, W).

    Args:
        model: as for `predict_probabilities`.
        file: named where the outputs are not finite.
        scales, flip: the views.
    """
    probabilities = predict_probabilities(model, pixel_values, scales=scales, flip=flip)  # (1, K, H, W)
    unsure, labels = uncertainty_map(probabilities, measure, file)
    count, pixels = probabilities.shape[1], labels.numel()
    sums = torch.bincount(labels.flatten(), weights=unsure.double().flatten(), minlength=count)
    shares = torch.bincount(labels.flatten(), minlength=count).double()
    return (sums / pixels).cpu().numpy(), (shares / pixels).cpu().numpy()


def uncertainty_map(probabilities: Tensor, measure: str, file: str) -> tuple[Tensor, Tensor]:
    """u (H, W) float32 in 0..1 and the predicted classes (H, W) int64 of probabilities (1, K, H, W)."""
    highest, labels = probabilities[0].max(0)
    refuse_not_finite(highest[None], [file])
    if probabilities.shape[1] == 1:
        return torch.zeros_like(highest), labels
    if measure == "margin":
        first, second = probabilities[0].topk(2, dim=0).values
        return 1 - (first - second), labels
    entropy = -torch.special.xlogy(probabilities[0], probabilities[0]).sum(0)
    return (entropy / math.log(probabilities.shape[1])).clamp(0, 1), labels


def enlarged_label_map(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """The most probable classes (H, W) int64 of probabilities (1, K, h, w), at another size.

    Class by class: all at once would take gigabytes for a large photo and many classes.
    """
    best, labels = probabilities.new_full(size, -1.0), probabilities.new_zeros(size, dtype=torch.long)
    for number, plane in enumerate(probabilities[0]):
        plane = F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=True)[0, 0]
        higher = plane > best
        best, labels = torch.where(higher, plane, best), torch.where(higher, number, labels)
    return labels


@torch.no_grad()
def pooled_features(model: nn.Module, pixel_values: Tensor) -> np.ndarray:
    """(C,) float64 of length 1: the encoder's last features, averaged over a normalised photo (1, 3, H, W)."""
    if hasattr(model, "encode"):  # CorrMatch: without the decoder
        hidden = model.encode(pixel_values)[-1].float()
    else:
        hidden = model(pixel_values=pixel_values, output_hidden_states=True).hidden_states[-1].float()
    pooled = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)  # (1, C, h, w), or tokens (1, L, C)
    return F.normalize(pooled[0].double(), dim=0).cpu().numpy()


def choose(
    score: np.ndarray, features: np.ndarray, labeled: np.ndarray, count: int, seed: int = 0
) -> list[int]:
    """`count` of N photos, the most worthwhile first.

    Args:
        score: (N,) of the photos to choose from.
        features: (N, C) of them.
        labeled: (M, C) features of photos that are labelled already; M may be 0.
        count: how many; at most N.
        seed: of k-means.
    """
    order = np.argsort(-score, kind="stable").tolist()
    if count == len(order):
        return order
    cluster_of, covered = _clusters(features, labeled, count, seed)
    best: dict[int, int] = {}  # cluster -> its photo of highest score
    for photo in order:
        if cluster_of[photo] not in covered:
            best.setdefault(cluster_of[photo], photo)
    chosen = list(best.values())[:count]  # in the order of their scores
    # Fewer where photos are equal, or where labelled ones lie in most clusters.
    taken = set(chosen)
    others = [photo for photo in order if photo not in taken]
    return chosen + others[: count - len(chosen)]


def _clusters(features: np.ndarray, labeled: np.ndarray, count: int, seed: int) -> tuple[list[int], set[int]]:
    """The cluster of each photo, and the clusters in which a labelled one lies."""
    cluster = require_scikit_learn()
    together = np.concatenate([features, labeled]) if len(labeled) else features
    number = min(count + len(labeled), len(together), max(MOST_CLUSTERS, count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer different photos than clusters
        found = cluster.KMeans(number, n_init=4, random_state=seed).fit_predict(together).tolist()
    return found[: len(features)], set(found[len(features) :])


def require_scikit_learn() -> ModuleType:
    """`sklearn.cluster`, or an `InputError` with the command that installs it."""
    try:
        from sklearn import cluster
    except ImportError as error:
        raise InputError(
            "corrmatch suggest needs scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    return cluster

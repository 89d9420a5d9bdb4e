"""How well features of pixels separate by class: the three cluster scores that DGCL reports. Needs scikit-learn."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..errors import InputError
from .inference import evaluating


def model_feature_quality(
    model: nn.Module,
    samples: Sequence[dict],
    *,
    ignore_index: int = 255,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    max_pixels: int = 10_000,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> dict[str, float]:
    """`feature_quality` of a decoder's fused features, the last ones before the classifier, over a set of images.

    The sample is uniform over all labelled pixels of all images at the features' size, and a function of the seed and
    the images alone. No more of it than `max_pixels` is kept at a time, whatever the number of images.

    Args:
        model: a `CorrMatchForSegmentation`, from whichever method. Used in evaluation mode, afterwards in the mode it
            had. Several processes must hold the same weights.
        samples: `samples[i]` is {"image": uint8 (3, H, W), "label": int64 (H, W), "file": str}, of any size. Each
            image goes through the model whole; its label is shrunk to the features by the nearest neighbour.
        ignore_index: label of the pixels that do not count.
        image_mean, image_std: of the image processor, for pixels in 0..1.
        max_pixels: pixels drawn; the silhouette takes time with the square of it.
        seed: of that draw.
        num_workers: processes that read images.
        rank, world_size: this process among those that call this function together; all get the same scores.

    Returns:
        Those of `feature_quality`, and "num_pixels", how many they are of.

    Raises:
        InputError: as `feature_quality`; an image without a label.
    """
    require_scikit_learn()  # before the work
    _check_max_pixels(max_pixels)
    own = range(rank, len(samples), world_size)
    loader = DataLoader(
        Subset(samples, own), batch_size=None, num_workers=num_workers, generator=torch.Generator()
    )
    weight = next(p for p in model.parameters() if p.is_floating_point())
    mean, std = (torch.tensor(value, device=weight.device).view(3, 1, 1) for value in (image_mean, image_std))
    sample = PixelSample(max_pixels, seed)
    with evaluating(model):
        bar = tqdm(loader, desc="features", unit="image", disable=not progress)
        for index, row in zip(own, bar, strict=True):
            if row["label"] is None:
                raise InputError(
                    f"{row['file']} has no label: the features of a class need one for every image."
                )
            image = (row["image"].to(weight.device).float() / 255 - mean) / std
            fused = model.decode(model.encode(image.to(weight.dtype).unsqueeze(0))).fused[0]
            label = F.interpolate(row["label"][None, None].float(), fused.shape[-2:], mode="nearest")[
                0, 0
            ].long()
            sample.add(index, fused, label, label != ignore_index)
    if world_size > 1:
        sample.gather(world_size)
    scores = feature_quality(sample.features, sample.labels, ignore_index, max_pixels)
    return {**scores, "num_pixels": len(sample.labels)}


class PixelSample:
    """A uniform random sample of the pixels of many images, of which no more than `size` are held at a time.

    Each pixel has a random number from the seed and its image; those with the highest numbers are kept. So neither the
    order of the images nor the number of processes matters.

    Attributes:
        features: (P, C) float32 on the CPU, highest number first; P is at most `size`.
        labels: (P,) int64.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.numbers = torch.empty(0, dtype=torch.float64)  # which has no ties to speak of
        self.features, self.labels = torch.empty(0, 0), torch.empty(0, dtype=torch.long)

    def add(self, image: int, features: Tensor, labels: Tensor, known: Tensor) -> None:
        """Draw from an image: features (C, h, w) of any device; labels and the pixels that count (h, w) on the CPU."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{image}".encode()))
        numbers = torch.rand(labels.numel(), generator=generator, dtype=torch.float64)
        numbers, place = numbers.masked_fill(~known.flatten(), -1).topk(min(self.size, len(numbers)))
        # Of most images nearly all pixels are out by now, and their features need not be moved.
        drawn = numbers > (self.numbers[-1] if len(self.numbers) == self.size else -1)
        numbers, place = numbers[drawn], place[drawn]
        chosen = features.flatten(1)[:, place.to(features.device)].T.float().cpu()
        self._keep_best(
            (self.numbers, self.features, self.labels), (numbers, chosen, labels.flatten()[place])
        )

    def gather(self, world_size: int) -> None:
        """Make the sample that of all processes' images, on each of them."""
        parts = [None] * world_size
        torch.distributed.all_gather_object(parts, (self.numbers, self.features, self.labels))
        self._keep_best(*parts)

    def _keep_best(self, *parts: tuple[Tensor, Tensor, Tensor]) -> None:
        parts = [part for part in parts if len(part[0])]
        if parts:
            numbers, features, labels = (torch.cat(some) for some in zip(*parts, strict=True))
            self.numbers, order = numbers.topk(min(self.size, len(numbers)))
            self.features, self.labels = features[order], labels[order]


def require_scikit_learn() -> ModuleType:
    """`sklearn.metrics`, or an `InputError` that says how to install it."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise InputError(
            "The quality of features needs scikit-learn, which is not installed; run: pip install scikit-learn"
        ) from error
    return metrics


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
        InputError: without scikit-learn; where the shapes do not fit; with features that are not finite, fewer than
            two classes, or no more pixels than classes.
    """
    metrics = require_scikit_learn()
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
    _check_max_pixels(max_pixels)
    features, labels = features.detach().float().cpu(), labels.detach().cpu()
    known = (labels != ignore_index).nonzero().squeeze(1)
    if len(known) > max_pixels:
        generator = torch.Generator().manual_seed(seed)
        known = known[torch.randperm(len(known), generator=generator)[:max_pixels]]
    features, labels = features[known].numpy(), labels[known].numpy()
    if not np.isfinite(features).all():
        raise InputError(
            "The features are not all finite and cannot be compared: the weights of the model are broken."
        )
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


def _check_max_pixels(max_pixels: int) -> None:
    if max_pixels < 3:
        raise InputError(f"max_pixels is {max_pixels}; at least 3 are needed to compare clusters.")

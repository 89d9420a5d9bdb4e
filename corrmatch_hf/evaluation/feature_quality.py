"""How well pixel features separate by class: the three cluster scores reported by DGCL. Needs scikit-learn."""

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
    """`feature_quality` of the decoder's fused features, the last ones before the classifier, over a set of images.

    The pixels are drawn uniformly from all labelled pixels of all images at the size of the features. The draw only
    depends on the seed and the images, and at most `max_pixels` pixels are in memory.

    Args:
        model: a `CorrMatchForSegmentation`, trained by any method. It is used in eval mode; afterwards every module has
            its own mode again. All processes must have the same weights.
        samples: `samples[i]` is {"image": uint8 (3, H, W), "label": int64 (H, W), "file": str}, of any size. Images
            are processed whole; labels are downsampled to the features by nearest neighbour.
        ignore_index: label of the pixels to ignore.
        image_mean, image_std: of the image processor, for pixels in 0..1.
        max_pixels: pixels drawn; the time of the silhouette score grows with its square.
        seed: of that draw.
        num_workers: processes that read images.
        rank, world_size: of this process among those that call this function together; all get the same scores.

    Returns:
        The scores of `feature_quality`, and their "num_pixels".

    Raises:
        InputError: see `feature_quality`; or an image without a label.
    """
    require_scikit_learn()  # fail before the long part
    _check_max_pixels(max_pixels)
    own = range(rank, len(samples), world_size)
    loader = DataLoader(
        Subset(samples, own), batch_size=None, num_workers=num_workers, generator=torch.Generator()
    )
    sample = PixelSample(max_pixels, seed)
    with evaluating(model):
        bar = tqdm(loader, desc="features", unit="image", disable=not progress)
        for index, row in zip(own, bar, strict=True):
            features, label = _decoder_features(model, row, image_mean, image_std)
            sample.add(index, features, label, label != ignore_index)
    if world_size > 1:
        sample.gather(world_size)
    scores = feature_quality(sample.features, sample.labels, ignore_index, max_pixels)
    return {**scores, "num_pixels": len(sample.labels)}


def _decoder_features(
    model: nn.Module, row: dict, image_mean: Sequence[float], image_std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The fused features (C, h, w) of a sample, and its label (h, w) int64 at their size."""
    if row["label"] is None:
        raise InputError(f"{row['file']} has no label: feature quality needs labels for every image.")
    weight = next(p for p in model.parameters() if p.is_floating_point())
    mean, std = (torch.tensor(value, device=weight.device).view(3, 1, 1) for value in (image_mean, image_std))
    image = (row["image"].to(weight.device).float() / 255 - mean) / std  # (3, H, W)
    fused = model.decode(model.encode(image.to(weight.dtype).unsqueeze(0))).fused[0]  # (C, h, w)
    label = F.interpolate(row["label"][None, None].float(), fused.shape[-2:], mode="nearest")[0, 0]
    return fused, label.long()


class PixelSample:
    """A uniform random sample of `size` pixels of many images.

    Each pixel gets a random number from the seed and its image, and those with the highest numbers are kept. The sample
    therefore depends neither on the order of the images nor on the number of processes.

    Attributes:
        features: (P, C) float32 on the CPU, highest number first; P is at most `size`.
        labels: (P,) int64.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.numbers = torch.empty(0, dtype=torch.float64)  # practically without ties
        self.features, self.labels = torch.empty(0, 0), torch.empty(0, dtype=torch.long)

    def add(self, image: int, features: Tensor, labels: Tensor, known: Tensor) -> None:
        """Draw from an image: features (C, h, w) on any device; labels and `known` (not ignored) (h, w) on the CPU."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{image}".encode()))
        numbers = torch.rand(labels.numel(), generator=generator, dtype=torch.float64)
        numbers, place = numbers.masked_fill(~known.flatten(), -1).topk(min(self.size, len(numbers)))
        # Only move the features of pixels that can still enter the sample.
        drawn = numbers > (self.numbers[-1] if len(self.numbers) == self.size else -1)
        numbers, place = numbers[drawn], place[drawn]
        chosen = features.flatten(1)[:, place.to(features.device)].T.float().cpu()
        self._keep_best(
            (self.numbers, self.features, self.labels), (numbers, chosen, labels.flatten()[place])
        )

    def gather(self, world_size: int) -> None:
        """Make it the sample of all processes' images, in each process."""
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
    """`sklearn.metrics`, or an `InputError` with the command that installs it."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise InputError(
            "Feature quality needs scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    return metrics


def feature_quality(
    features: Tensor, labels: Tensor, ignore_index: int = 255, max_pixels: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Silhouette, Calinski-Harabasz and Davies-Bouldin scores of features, with the classes as clusters.

    Args:
        features: (N, C, h, w) or (P, C) float on any device, such as `model.decode(model.encode(images)).fused`.
        labels: (N, h, w) or (P,) integers, at the size of the features, downsampled by nearest neighbour.
        ignore_index: label of the pixels to ignore.
        max_pixels: drawn at random; the time of the silhouette score grows with its square.
        seed: of that draw.

    Returns:
        "silhouette" in [-1, 1], higher is better; "calinski_harabasz" above 0, higher is better; "davies_bouldin" above
        0, lower is better.

    Raises:
        InputError: scikit-learn is missing, shapes do not fit, features are not finite, or there are fewer than two
            classes or no more pixels than classes.
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
        raise InputError("The features are not all finite: the weights of the model are corrupt.")
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

"""Evaluates a model on a set of images of any sizes, alone or over many processes.

Process r of W takes the samples r, r+W, r+2W, ...; nothing is padded or repeated, and only the confusion
matrix travels. So the figures are those of one process, whatever W is. Running statistics differ between
processes that train without SyncBatchNorm: all take those of process 0, which are the ones that get saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation.confusion import ConfusionMatrix
from corrmatch_hf.evaluation.inference import predict_probabilities


def evaluate_segmentation(
    model: nn.Module,
    samples: Sequence[dict],
    *,
    num_labels: int,
    id2label: Mapping[int, str] | None = None,
    ignore_index: int = 255,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> dict:
    """The metrics of `ConfusionMatrix.compute` over all samples, and `num_images`. Equal on every process.

    Args:
        model: gives (N, K, H, W) logits for normalised images. Evaluated in eval mode; the training flag of
            each of its modules is put back afterwards. Several processes must hold the same weights;
            buffers are set to those of process 0.
        samples: `samples[i]` is {"image": uint8 (3, H, W), "label": int64 (H, W), "file": str}, of any size.
        image_mean, image_std: of the image processor, for pixels in 0..1.
        window, stride, scales, flip: see `predict_probabilities`.
        device: where to run; by default where the model is.
        batch_size: images of equal size that follow each other are predicted together, at most this many.
        autocast_dtype: torch.bfloat16 or torch.float16 for autocast; None: the model's own precision.
        rank, world_size: this process among those that call this function together.

    Raises:
        InputError: a sample has no label, a label of another size than its image or with ids that are no
            class; or the model predicts another number of classes. The message names the file.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module  # its first forward broadcasts, and would wait for a process without a sample
    if world_size > 1 and torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    if device is None:
        device = next((p.device for p in model.parameters()), "cpu")
    device = torch.device(device)
    mean = torch.tensor(image_mean, dtype=torch.float32, device=device).view(3, 1, 1)
    std = torch.tensor(image_std, dtype=torch.float32, device=device).view(3, 1, 1)
    confusion = ConfusionMatrix(num_labels, ignore_index, device)
    loader = DataLoader(
        Subset(samples, range(rank, len(samples), world_size)),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,  # sizes may differ; equal ones are stacked below
        generator=torch.Generator(),  # not the global one, or evaluating would change the training after it
    )

    with _evaluating(model), torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
        bar = tqdm(total=len(loader.dataset), desc="evaluating", unit="image", disable=not progress)
        for group in _equal_sizes(loader):
            pixels = torch.stack([s["image"] for s in group]).to(device, non_blocking=True)
            probabilities = predict_probabilities(
                model,
                (pixels.float() / 255 - mean) / std,
                window=window,
                stride=stride,
                scales=scales,
                flip=flip,
            )
            if probabilities.shape[1] != num_labels:
                raise InputError(
                    f"The model predicts {probabilities.shape[1]} classes but the data set has {num_labels}: "
                    "evaluate on the data set that the model was trained for."
                )
            for sample, prediction in zip(group, probabilities.argmax(1), strict=True):
                _count(confusion, prediction, sample)
            bar.update(len(group))
        bar.close()

    if world_size > 1:
        confusion.reduce()
    return {**confusion.compute(id2label), "num_images": len(samples)}


def _equal_sizes(batches: Iterable[list[dict]]) -> Iterator[list[dict]]:
    for batch in batches:
        for _, group in groupby(batch, key=lambda sample: sample["image"].shape):
            yield list(group)


def _count(confusion: ConfusionMatrix, prediction: Tensor, sample: dict) -> None:
    if sample["label"] is None:
        raise InputError(
            f"{sample['file']} has no label: evaluation needs one for every image; choose another split."
        )
    try:
        confusion.update(prediction, sample["label"])
    except InputError as error:
        raise InputError(f"{sample['file']}: {error}") from None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; then every module's own flag as before (a frozen BatchNorm stays in eval mode)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

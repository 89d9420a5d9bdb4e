"""Evaluation of a model on images of any size, in one or several processes.

Process r of W evaluates samples r, r+W, r+2W, ... Samples are neither padded nor repeated and only integer confusion
matrices are added up, so the metrics do not depend on W. Images are read ahead while the model computes, and images of
equal size are predicted together. Running statistics, which differ between processes that train without SyncBatchNorm,
are set to those of process 0, which are the saved ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..distributed import leave_signals_to_the_trainer, succeeded_everywhere
from ..errors import InputError
from .confusion_matrix import ConfusionMatrix
from .inference import evaluating, predict_probabilities, refuse_not_finite


class OtherProcessFailed(InputError):
    """This process evaluated its images, and another one did not; that one raises the reason."""


LOOK_AHEAD = 4  # batches of images that may be read ahead, or wait for more images of their size


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
    """The metrics of `ConfusionMatrix.compute` over all samples, and "num_images"; equal in every process.

    Args:
        model: returns (N, K, H, W) logits for normalised images. It is evaluated in eval mode; afterwards every module
            has its own mode again. All processes must have the same weights; buffers are set to those of process 0.
        samples: `samples[i]` is {"image": uint8 (3, H, W), "label": int64 (H, W), "file": str}, of any size.
        image_mean, image_std: of the image processor, for pixels in 0..1.
        window, stride, scales, flip: see `predict_probabilities`.
        device: by default that of the model.
        batch_size: at most so many images of equal size, or windows of one image, are predicted together. The metrics
            do not depend on it, except for pixels whose two best classes are equal up to rounding.
        num_workers: processes that read images; with 0 a thread reads ahead.
        autocast_dtype: torch.bfloat16 or torch.float16 for autocast; None uses the model's own precision.
        rank, world_size: of this process among those that call this function together.

    Raises:
        InputError: a sample has no label, a label of another size than its image, or ids that are not a class; the
            model predicts another number of classes, or NaN. The message names the file.
        OtherProcessFailed: where any process raises an error, all the others raise this one, and none waits for it.
    """
    if isinstance(model, DistributedDataParallel):
        model = (
            model.module
        )  # its first forward broadcasts and would wait forever for a process without samples
    if world_size > 1 and torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    if device is None:
        device = next((p.device for p in model.parameters()), "cpu")
    target = torch.device(device)
    normalize = _normalization(image_mean, image_std, target)
    confusion = ConfusionMatrix(num_labels, ignore_index, target)
    own = Subset(samples, range(rank, len(samples), world_size))

    failure: Exception | None = None
    try:
        with (
            evaluating(model),
            torch.autocast(target.type, autocast_dtype, enabled=autocast_dtype is not None),
            tqdm(total=len(own), desc="evaluating", unit="image", disable=not progress) as bar,
        ):
            for group in _equal_sizes(_read(own, batch_size, num_workers), batch_size):
                pixels = torch.stack([s["image"] for s in group]).to(
                    target, non_blocking=True
                )  # (N, 3, H, W)
                probabilities = predict_probabilities(
                    model, normalize(pixels),
                    window=window, stride=stride, scales=scales, flip=flip, batch_size=batch_size,
                )  # fmt: skip
                _count(confusion, _class_ids(probabilities, num_labels, group), group)
                bar.update(len(group))
    except Exception as error:
        if world_size == 1:
            raise
        failure = error

    if world_size > 1:
        if not succeeded_everywhere(failure, target):
            raise failure or OtherProcessFailed(
                "Another process could not evaluate its share of the images; its message names the reason."
            )
        confusion.reduce()
    return {**confusion.compute(id2label), "num_images": len(samples)}


def _normalization(
    mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Maps pixels (N, 3, H, W) uint8 to (N, 3, H, W) float32 as the model expects them."""
    shift = torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=device).view(3, 1, 1)
    return lambda pixels: (pixels.float() / 255 - shift) / scale


def _read(samples: Dataset, batch_size: int, num_workers: int) -> Iterator[dict]:
    """All samples; the next ones are read while the caller works."""
    if not num_workers:
        yield from _read_in_a_thread(samples, LOOK_AHEAD * batch_size)
        return
    loader = DataLoader(
        _ReturningErrors(samples),
        batch_size=None,  # sizes may differ
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_the_trainer,
        prefetch_factor=max(LOOK_AHEAD * batch_size // num_workers, 2),
        generator=torch.Generator(),  # evaluation must not change the global one, which training uses
    )
    for sample in loader:
        if isinstance(sample, InputError):
            raise sample
        yield sample


class _ReturningErrors(Dataset):
    """Returns `InputError`s, since a DataLoader would wrap them into a worker's traceback."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> dict | InputError:
        try:
            return self.samples[i]
        except InputError as error:
            return error


def _read_in_a_thread(samples: Dataset, ahead: int) -> Iterator[dict]:
    with ThreadPoolExecutor(1) as thread:
        todo = iter(range(len(samples)))
        reading = deque(thread.submit(samples.__getitem__, i) for i in islice(todo, ahead))
        try:
            while reading:
                sample = reading.popleft().result()
                reading.extend(thread.submit(samples.__getitem__, i) for i in islice(todo, 1))
                yield sample
        finally:  # after an error, stop reading
            thread.shutdown(cancel_futures=True)


def _equal_sizes(samples: Iterable[dict], batch_size: int) -> Iterator[list[dict]]:
    """Groups of `batch_size` images of equal size; smaller groups if the others are too far ahead or at the end."""
    waiting: dict[tuple, list[dict]] = {}
    for sample in samples:
        shape = tuple(sample["image"].shape)
        waiting.setdefault(shape, []).append(sample)
        if len(waiting[shape]) == batch_size:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) >= LOOK_AHEAD * batch_size:
            yield waiting.pop(next(iter(waiting)))  # the group that has waited longest
    yield from waiting.values()


def _class_ids(probabilities: Tensor, num_labels: int, group: list[dict]) -> Tensor:
    """(N, K, H, W) probabilities of a group -> (N, H, W) predicted class ids."""
    if probabilities.shape[1] != num_labels:
        raise InputError(
            f"The model predicts {probabilities.shape[1]} classes but the dataset has {num_labels}: "
            "evaluate on the dataset that the model was trained for."
        )
    confidence, prediction = probabilities.max(1)  # equal to argmax, but five times as fast on a CPU
    refuse_not_finite(confidence, [sample["file"] for sample in group])
    return prediction


def _count(confusion: ConfusionMatrix, predictions: Tensor, group: list[dict]) -> None:
    """Count the (N, H, W) predictions of the N samples of a group."""
    labels = [sample["label"] for sample in group]
    for sample, label in zip(group, labels, strict=True):
        if label is None:
            raise InputError(
                f"{sample['file']} has no label: evaluation needs one for every image; choose another split."
            )
    if all(label.shape == predictions.shape[1:] for label in labels):
        try:
            return confusion.update(predictions, torch.stack(labels))  # waits for the GPU only once
        except InputError:
            pass  # counted one by one below, to find the bad sample
    for sample, prediction in zip(group, predictions, strict=True):
        try:
            confusion.update(prediction, sample["label"])
        except InputError as error:
            raise InputError(f"{sample['file']}: {error}") from None

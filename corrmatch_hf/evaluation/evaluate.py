"""Evaluates a model on a set of images of any sizes, alone or over many processes.

Process r of W takes the samples r, r+W, r+2W, ...; nothing is padded or repeated, and only the confusion
matrix travels. So the figures are those of one process, whatever W is. Images are read while the model is busy with
earlier ones, and predicted together where their sizes are equal; counts are integers, so their order is of no
account. Running statistics differ between
processes that train without SyncBatchNorm: all take those of process 0, which are the ones that get saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..distributed import leave_signals_to_the_trainer
from ..errors import InputError
from .confusion_matrix import ConfusionMatrix
from .inference import predict_probabilities

LOOK_AHEAD = 4  # so many batches of images may wait for others of their size, or to be read


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
        batch_size: images of equal size, or windows of one image, are predicted together, at most this many. The
            figures are those of any other batch size, but for pixels whose classes are equal up to rounding.
        num_workers: processes that read images; with 0 a thread reads ahead.
        autocast_dtype: torch.bfloat16 or torch.float16 for autocast; None: the model's own precision.
        rank, world_size: this process among those that call this function together.

    Raises:
        InputError: a sample has no label, a label of another size than its image or with ids that are no
            class; the model predicts another number of classes, or NaN. The message names the file.
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
    own = Subset(samples, range(rank, len(samples), world_size))

    with _evaluating(model), torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
        bar = tqdm(total=len(own), desc="evaluating", unit="image", disable=not progress)
        for group in _equal_sizes(_read(own, batch_size, num_workers), batch_size):
            pixels = torch.stack([s["image"] for s in group]).to(device, non_blocking=True)
            probabilities = predict_probabilities(
                model,
                (pixels.float() / 255 - mean) / std,
                window=window,
                stride=stride,
                scales=scales,
                flip=flip,
                batch_size=batch_size,
            )
            if probabilities.shape[1] != num_labels:
                raise InputError(
                    f"The model predicts {probabilities.shape[1]} classes but the data set has {num_labels}: "
                    "evaluate on the data set that the model was trained for."
                )
            # the indices of max are those of argmax, at a fifth of its time on a CPU
            confidence, prediction = probabilities.max(1)
            if confidence.sum().isnan():  # whose maximum would count as a prediction
                names = [s["file"] for s, c in zip(group, confidence, strict=True) if c.isnan().any()]
                raise InputError(
                    f"The model's outputs for {', '.join(names)} are not finite: its weights are broken, or the "
                    "precision is too low for them; evaluate an earlier checkpoint, or in float32."
                )
            _count(confusion, prediction, group)
            bar.update(len(group))
        bar.close()

    if world_size > 1:
        confusion.reduce()
    return {**confusion.compute(id2label), "num_images": len(samples)}


def _read(samples: Dataset, batch_size: int, num_workers: int) -> Iterator[dict]:
    """All samples, the next ones being read while the caller works."""
    if not num_workers:
        yield from _read_in_a_thread(samples, LOOK_AHEAD * batch_size)
        return
    loader = DataLoader(
        _ReturningErrors(samples),
        batch_size=None,  # sizes may differ
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_the_trainer,
        prefetch_factor=max(LOOK_AHEAD * batch_size // num_workers, 2),
        generator=torch.Generator(),  # not the global one, or evaluating would change the training after it
    )
    for sample in loader:
        if isinstance(sample, InputError):
            raise sample
        yield sample


class _ReturningErrors(Dataset):
    """`InputError`s are returned: raised in a worker they would arrive as a traceback in a string."""

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
        finally:  # after an error nothing more is read
            thread.shutdown(cancel_futures=True)


def _equal_sizes(samples: Iterable[dict], batch_size: int) -> Iterator[list[dict]]:
    """Groups of images of equal size, full ones where so many come soon enough."""
    waiting: dict[tuple, list[dict]] = {}
    for sample in samples:
        shape = tuple(sample["image"].shape)
        waiting.setdefault(shape, []).append(sample)
        if len(waiting[shape]) == batch_size:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) >= LOOK_AHEAD * batch_size:
            yield waiting.pop(next(iter(waiting)))  # that of the sample which has waited longest
    yield from waiting.values()


def _count(confusion: ConfusionMatrix, predictions: Tensor, group: list[dict]) -> None:
    """predictions (N, H, W) of the N samples of a group."""
    labels = [sample["label"] for sample in group]
    for sample, label in zip(group, labels, strict=True):
        if label is None:
            raise InputError(
                f"{sample['file']} has no label: evaluation needs one for every image; choose another split."
            )
    if all(label.shape == predictions.shape[1:] for label in labels):
        try:
            return confusion.update(predictions, torch.stack(labels))  # a GPU is waited for once
        except InputError:
            pass  # one by one: which is it?
    for sample, prediction in zip(group, predictions, strict=True):
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

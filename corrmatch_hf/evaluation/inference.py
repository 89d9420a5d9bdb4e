"""Class probabilities of images: whole or in sliding windows, averaged over scales and mirror images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import InputError, refuse


def best_device() -> str:
    """The device to predict on: a GPU of NVIDIA, AMD or Apple where there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module has its own mode again (frozen BatchNorm stays in eval)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def predict_probabilities(
    model: nn.Module,
    pixel_values: Tensor,
    *,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 1,
) -> Tensor:
    """Softmax probabilities at the size of the input; they sum to 1 over the classes.

    Args:
        model: `model(pixel_values).logits` are (N, K, h, w) logits, resized to the input if smaller. Its mode is not
            changed: call `model.eval()` first.
        pixel_values: (N, 3, H, W) normalised images; they are converted to the precision of the model's weights.
        window: side of square sliding windows; None uses the whole image. The last window of a row or column is moved
            back to end at the border. An image smaller than the window is a single window.
        stride: distance of the windows, by default int(2/3 * window) as for Cityscapes. The softmax is averaged over
            all windows that contain a pixel.
        scales: image sizes to average over, as factors of the input size.
        flip: also average with the horizontally mirrored image.
        batch_size: number of windows per forward pass (at least N: one window of each image).

    Returns:
        (N, K, H, W) float32 for any precision of the model.
    """
    refuse(inference_problems(window, stride, scales, batch_size))
    size = pixel_values.shape[-2:]
    total = None
    for scale in scales:
        scaled = tuple(max(1, round(side * scale)) for side in size)
        image = pixel_values
        if scaled != size:
            image = interpolate(pixel_values, size=scaled, mode="bilinear", align_corners=True)
        probabilities = _at_one_scale(model, image, window, stride, batch_size)
        if flip:
            probabilities += _at_one_scale(model, image.flip(-1), window, stride, batch_size).flip(-1)
        if scaled != size:
            probabilities = interpolate(probabilities, size=size, mode="bilinear", align_corners=True)
        total = probabilities if total is None else total.add_(probabilities)
    views = len(scales) * (2 if flip else 1)
    return total if views == 1 else total.div_(views)


def refuse_not_finite(highest: Tensor, files: Sequence[str]) -> None:
    """Raise an `InputError` where (N, H, W) highest probabilities or logits of N images are not finite.

    NaN would otherwise pass for a class, mostly the first one.
    """
    if not highest.sum().isfinite():  # the host waits for one number; only then each image is looked at
        names = [file for file, each in zip(files, highest, strict=True) if not each.isfinite().all()]
        if names:  # else only the sum overflowed
            raise InputError(
                f"The model's outputs for {', '.join(names)} are not finite: its weights are corrupt, or the precision "
                "is too low. Use an earlier checkpoint, or float32."
            )


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of the windows along one side: every `stride`, the last one moved back to end at the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def _at_one_scale(
    model: nn.Module, image: Tensor, window: int | None, stride: int | None, batch_size: int
) -> Tensor:
    if window is None:
        return _softmax(model, image)
    stride = stride or max(1, int(window * 2 / 3))
    height, width = image.shape[-2:]
    places = [
        (slice(top, top + window), slice(left, left + window))
        for top in window_starts(height, window, stride)
        for left in window_starts(width, window, stride)
    ]
    together = max(batch_size // len(image), 1)
    total, count = None, image.new_zeros(height, width, dtype=torch.float32)
    for first in range(0, len(places), together):
        some = places[first : first + together]
        crops = torch.cat(
            [image[..., rows, columns] for rows, columns in some]
        )  # (windows * N, 3, window, window)
        for (rows, columns), probabilities in zip(some, _softmax(model, crops).chunk(len(some)), strict=True):
            if total is None:  # the number of classes is known after the first window
                total = probabilities.new_zeros(*probabilities.shape[:2], height, width)
            total[..., rows, columns] += probabilities
            count[rows, columns] += 1
    return total.div_(count)


def _softmax(model: nn.Module, image: Tensor) -> Tensor:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), image.dtype)
    output = model(pixel_values=image.to(dtype))
    logits = (
        output[0] if isinstance(output, tuple) else output.logits
    ).float()  # with return_dict=False a tuple
    if logits.shape[-2:] != image.shape[-2:]:
        logits = interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=True)
    return logits.softmax(dim=1)


def default_batch_size(device: torch.device | str) -> int:
    """Images, or windows of an image, to predict together: 4 on a GPU; 1 on a CPU, whose caches a batch overflows."""
    return 1 if torch.device(device).type == "cpu" else 4


def inference_problems(
    window: int | None,
    stride: int | None,
    scales: Sequence[float] = (1.0,),
    batch_size: int | None = 1,
    prefix: str = "",
) -> Iterator[str]:
    """Why `predict_probabilities` refuses these arguments, one sentence each without the full stop.

    Commands call this before they load anything, with the `prefix` of their options, such as "--eval_".
    """
    if window is not None and window < 1:
        yield f"{prefix}window is {window}: give a side in pixels, or leave it out for the whole image"
    elif stride is not None and window is None:
        yield f"{prefix}stride is {stride}, but there is no window: give {prefix}window, or leave out {prefix}stride"
    elif stride is not None and window is not None and not 1 <= stride <= window:
        yield (
            f"{prefix}stride is {stride}: it must lie between 1 and {prefix}window ({window}), "
            "or pixels would be skipped"
        )
    if not scales or min(scales) <= 0:
        yield f"{prefix}scales is {list(scales)}: give one or more positive factors, such as 0.75 1.0 1.25"
    if batch_size is not None and batch_size < 1:
        yield f"{prefix}batch_size is {batch_size}: give 1 or more"

"""What the page shows, computed: pictures read, segmented, measured, and correlation maps drawn. Knows no page."""

import math
import os
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch.nn.functional import interpolate

MAX_SIDE = int(os.environ.get("MAX_SIDE", 1024))  # larger pictures are scaled down
MAX_PIXELS = 64_000_000  # larger files are refused before they are decoded
MAX_FILE_SIDE = 65_535  # and those that are one endless row
TOO_LARGE = f"The picture has more than {MAX_PIXELS // 10**6} million pixels or than {MAX_FILE_SIDE} a side"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # of PIL's others, some start programs
HEAT = [(20, 14, 54), (106, 23, 110), (203, 65, 73), (247, 150, 30), (252, 250, 170)]  # from unlike to like


class Prediction(NamedTuple):
    """photo uint8 (H,W,3), labels int16 (H,W), query and key (D,h,w) or None without a correlation head."""

    photo: np.ndarray
    labels: np.ndarray
    query: torch.Tensor | None
    key: torch.Tensor | None


def read_picture(path: str, processor) -> tuple[Image.Image, str]:
    """A file of one of FORMATS -> RGB with at most MAX_SIDE pixels a side, and a note where it was scaled.

    Pixels become RGB as the model's image processor makes them, so that the page shows what the model sees.

    Raises ValueError, with a sentence for the page, if the file is not a picture or too large.
    """
    try:
        with warnings.catch_warnings():
            # PIL's own limit is lower, and its message is not meant for the page.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=FORMATS)
        with opened as picture:
            width, height = picture.size
            tile = processor.tile_pixels(picture)  # of a TIFF, larger than the picture perhaps
            too_large = max(width * height, tile) > MAX_PIXELS or max(width, height) > MAX_FILE_SIDE
            if not too_large:
                picture = ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{TOO_LARGE}: please scale it down.") from error
    except Exception as error:  # OSError, SyntaxError, struct.error ..., as the format has it
        raise ValueError("This file cannot be read as a picture: please try a JPEG or PNG file.") from error
    if too_large:
        raise ValueError(f"{TOO_LARGE}; it is {width} x {height}: please scale it down.")
    try:
        picture = processor.to_rgb(picture)
    except ValueError as error:
        raise ValueError(f"This picture cannot be shown: {error}.") from error
    original = picture.size
    if max(original) <= MAX_SIDE:
        return picture, ""
    size = tuple(max(1, round(side * MAX_SIDE / max(original))) for side in original)
    note = f"Scaled from {original[0]} x {original[1]} down to {size[0]} x {size[1]} pixels."
    return picture.resize(size, Image.Resampling.LANCZOS), note


@torch.inference_mode()
def segment(model, processor, photo: Image.Image) -> Prediction:
    """The class of every pixel of an RGB photo and, with a correlation head, what correlation maps are made of."""
    pixel_values = processor(images=photo, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    query = key = None
    if getattr(model.config, "correlation_head", False):
        # What output_correlation=True gives, but without the whole h*w x h*w map: a click needs one row of it.
        features = model.encode(pixel_values)
        decoded = model.decode(features)
        query, key = (each[0].float().cpu() for each in model.correlate(features, decoded))
        logits = decoded.logits
    else:
        logits = model(pixel_values).logits
    size = (photo.height, photo.width)
    logits = interpolate(logits.float(), size, mode="bilinear", align_corners=True)
    highest, labels = logits[0].max(0)  # (H, W)
    if not highest.isfinite().all():
        raise ValueError(
            "The model's outputs are not finite: its weights are corrupt, or the precision is too low."
        )
    return Prediction(np.asarray(photo), labels.to(torch.int16).cpu().numpy(), query, key)


def shares(labels: np.ndarray, names: list[str]) -> dict[str, float]:
    """The share of the picture of each class in it, the largest first; all sum to 1."""
    ids, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {names[ids[i]]: float(counts[i] / labels.size) for i in order}


def correlation_map(query: torch.Tensor, key: torch.Tensor, point, size, scale: str = "scores") -> np.ndarray:
    """Where the picture looks like one of its pixels: a row of softmax(query . key / sqrt(D)), upsampled.

    Args:
        query, key: (D,h,w).
        point: (x, y), a pixel of the picture.
        size: (H, W) of the picture.
        scale: the model's config.correlation_scale: "scores" divides before the softmax, "rows" after it.

    Returns:
        float32 (H,W).
    """
    h, w = query.shape[-2:]
    x = round(point[0] * (w - 1) / max(size[1] - 1, 1))
    y = round(point[1] * (h - 1) / max(size[0] - 1, 1))
    root = len(query) ** 0.5
    scores = torch.einsum("d,dhw->hw", query[:, y, x], key).flatten()
    row = (scores / root).softmax(0) if scale == "scores" else scores.softmax(0) / root
    return interpolate(row.view(1, 1, h, w), size, mode="bilinear", align_corners=True)[0, 0].numpy()


def heat_map(photo: Image.Image, correlation: np.ndarray, point) -> Image.Image:
    """The correlation, scaled to 0..1 over the picture, as colours on the gray photo; a ring at the point."""
    low, high = correlation.min(), correlation.max()
    heat = (correlation - low) / max(high - low, np.finfo(np.float32).tiny)
    stops = np.linspace(0, 1, len(HEAT))
    colors = np.stack([np.interp(heat, stops, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
    gray = np.asarray(photo.convert("L"), dtype=np.float32)[..., None]
    picture = Image.fromarray((0.5 * gray + 0.5 * colors).round().astype(np.uint8))
    draw, unit = ImageDraw.Draw(picture), max(picture.size) / 300
    for radius, width, color in ((6, 3, "black"), (5, 1, "white")):
        box = [p - radius * unit for p in point] + [p + radius * unit for p in point]
        draw.ellipse(box, outline=color, width=max(1, round(width * unit)))
    return picture


def enlargement(photo: np.ndarray) -> int:
    """How many times larger a small picture is shown, so that its places can be clicked."""
    return math.ceil(512 / max(photo.shape[:2]))

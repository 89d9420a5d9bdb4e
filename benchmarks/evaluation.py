"""Evaluation of a split: one image after the other, read when its turn comes, against `evaluate_segmentation`.

Photos and masks are files of two sizes, as in a set taken upright and across. The reference reads an image, runs the
model in float32, takes the argmax of the softmax and counts, then goes on to the next.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.data.semi_dataset import EvaluationSet, SemiDataset
from corrmatch_hf.evaluation import ConfusionMatrix, evaluate_segmentation
from corrmatch_hf.evaluation.optimize import optimize_for_inference

from .measure import Row, milliseconds

NUM_LABELS = 11
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TARGET = 2


def one_by_one(model: CorrMatchForSegmentation, samples: EvaluationSet, device: str) -> torch.Tensor:
    """The confusion matrix, without overlap and without batches."""
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (MEAN, STD))
    confusion = ConfusionMatrix(NUM_LABELS, device=device)
    with torch.no_grad():
        for i in range(len(samples)):
            sample = samples[i]
            pixels = ((sample["image"].to(device).float() / 255 - mean) / std)[None]
            prediction = model(pixel_values=pixels).logits.softmax(1).argmax(1)
            confusion.update(prediction[0], sample["label"])
    return confusion.matrix


def rows(device: str, cases: tuple | None = None) -> Iterator[Row]:
    many = device == "cuda"
    cases = cases or (
        # encoder, (height, width), images
        ("mobilenetv2_100", (96, 128), 24 if not many else 512),
        ("mobilenetv2_100", (360, 480), 6 if not many else 256),
        ("resnet18", (96, 128), 24 if not many else 512),
    )
    for encoder, (height, width), images in cases:
        torch.manual_seed(0)
        model = CorrMatchForSegmentation(CorrMatchConfig(encoder_name=encoder, num_labels=NUM_LABELS))
        model.eval().to(device)
        with tempfile.TemporaryDirectory() as folder:
            data = pictures(Path(folder), height, width, images)
            samples = EvaluationSet(data.validation, data)
            expected = figures(one_by_one(model, samples, device))
            for way, fast in (
                ("the model itself", model),
                ("channels_last", optimize_for_inference(model)),
                ("channels_last, bfloat16", optimize_for_inference(model, dtype=torch.bfloat16)),
            ):
                options = {
                    "num_labels": NUM_LABELS, "image_mean": MEAN, "image_std": STD,
                    "batch_size": 4 if not many else 16, "num_workers": 0 if not many else 8,
                }  # fmt: skip

                def ours(fast=fast, samples=samples, options=options):
                    return evaluate_segmentation(fast, samples, **options)

                accuracy = ours()["pixel_accuracy"]
                yield Row(
                    f"evaluation, {encoder}, {images} photos of {width} x {height}: {way}",
                    *milliseconds(
                        lambda model=model, samples=samples: one_by_one(model, samples, device),
                        ours,
                        device,
                        3,
                    ),
                    "ms",
                    # Rounding may move a few pixels between classes that are equal up to it.
                    abs(accuracy - expected) < 1e-5 if "bfloat16" not in way else None,
                    target=TARGET,
                    note=f"pixel accuracy off by {abs(accuracy - expected):.0e}",
                )


def figures(matrix: torch.Tensor) -> float:
    return (matrix.diagonal().sum() / matrix.sum()).item()


def pictures(folder: Path, height: int, width: int, images: int) -> SemiDataset:
    """Smooth random photos as JPEG, masks as PNG; every third one is upright."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / "validation" / kind).mkdir(parents=True)
    pairs = []
    for i in range(images):
        size = (height, width) if i % 3 == 0 else (width, height)
        small = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        photo = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        files = [folder / "validation" / name for name in (f"images/{i:04}.jpg", f"masks/{i:04}.png")]
        photo.save(files[0], quality=92)
        mask = Image.fromarray(rng.integers(0, NUM_LABELS, (12, 12), dtype=np.uint8))
        mask.resize(size, Image.Resampling.NEAREST).save(files[1])
        pairs.append({"image": str(files[0]), "label": str(files[1]), "file": files[0].name})
    columns = {"image": datasets.Image(), "label": datasets.Image(), "file": datasets.Value("string")}
    data = datasets.Dataset.from_list(pairs, features=datasets.Features(columns))
    return SemiDataset(data, None, data, {k: str(k) for k in range(NUM_LABELS)})

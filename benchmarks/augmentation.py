"""What one process can augment: processor milliseconds per image, and which part of it costs what.

    python benchmarks/augmentation.py --data_dir path/to/photos-and-masks

Without --data_dir the photos are the synthetic ones. Everything runs on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from corrmatch_hf.data import (
    Augmentation,
    SemiDataset,
    load_semi_dataset,
    synthetic_semi_dataset,
    training_batches,
)
from corrmatch_hf.data.images import read_photo
from corrmatch_hf.data.semi_dataset import undecoded

BATCH = 8


def milliseconds(function: Callable[[int], object], count: int) -> float:
    """Mean processor time of a call, after one that does not count; other programs hardly disturb it."""
    function(0)
    start = time.process_time()
    for i in range(count):
        function(i)
    return (time.process_time() - start) / count * 1e3


def measure(semi: SemiDataset, size: int, count: int) -> dict[str, float]:
    """Step -> milliseconds per image, at one crop size."""
    augmentation = Augmentation(crop_size=size)
    labeled = list(undecoded(semi.labeled).select(range(min(len(semi.labeled), 50))))
    unlabeled = list(undecoded(semi.unlabeled).select(range(min(len(semi.unlabeled), 50))))
    photos = [read_photo(row["image"], row["file"]) for row in unlabeled]
    masks = [semi.read_labeled(row)[1] for row in labeled]
    geometries = [
        augmentation.draw_geometry(p.width, p.height, np.random.default_rng(i)) for i, p in enumerate(photos)
    ]
    crops = [g.crop_image(p) for g, p in zip(geometries, photos, strict=True)]

    def at(things: list, i: int):
        return things[i % len(things)]

    def crop_photo(i: int):
        return at(geometries, i).crop_image(at(photos, i))

    def crop_mask(i: int):
        mask = at(masks, i)
        geometry = augmentation.draw_geometry(mask.shape[1], mask.shape[0], np.random.default_rng(i))
        return geometry.crop_mask(mask, semi.ignore_index)

    times = {
        "decode a photo": milliseconds(lambda i: read_photo(at(unlabeled, i)["image"], ""), count),
        "decode a photo and its mask": milliseconds(lambda i: semi.read_labeled(at(labeled, i)), count),
        "resize, crop, flip a photo": milliseconds(
            lambda i: at(geometries, i).crop_image(at(photos, i)), count
        ),
        "the same of a mask": milliseconds(crop_mask, count),
        "strong: colour, gray, blur": milliseconds(
            lambda i: augmentation.strong(at(crops, i), np.random.default_rng(i)), count
        ),
        "to float, normalise": milliseconds(lambda i: augmentation.normalize(at(crops, i)), count),
    }

    def whole(unlabeled_batch: int, partner: str = "same_image") -> float:
        batches = training_batches(
            semi,
            Augmentation(crop_size=size, cutmix_partner=partner),
            labeled_batch=BATCH,
            unlabeled_batch=unlabeled_batch,
            seed=0,
        )
        return milliseconds(lambda _: next(batches), max(count // BATCH, 2)) / BATCH

    times["labelled image, all of it"] = whole(0)
    for partner in ("same_image", "batch"):
        both = whole(BATCH, partner)
        name = f"unlabelled image, all views, partner {partner}"
        times[name] = both - times["labelled image, all of it"]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", help="folder with train/images and train/masks")
    parser.add_argument("--crop_sizes", type=int, nargs="+", default=[321, 161])
    parser.add_argument("--images", type=int, default=400, help="images per measurement")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    if arguments.data_dir is None:
        semi = synthetic_semi_dataset(labeled=50, unlabeled=100, validation=0, image_size=384)
    else:
        semi = load_semi_dataset(data_dir=arguments.data_dir, labeled_fraction=0.25)
    width, height = semi.labeled[0]["image"].size
    print(f"{semi.describe()}\nfirst photo {width} x {height}; milliseconds of one core per image\n")
    columns = [measure(semi, size, arguments.images) for size in arguments.crop_sizes]
    print("| step | " + " | ".join(f"crop {size}" for size in arguments.crop_sizes) + " |")
    print("|---|" + "---:|" * len(columns))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{times[name]:.2f}" for times in columns) + " |")


if __name__ == "__main__":
    main()

"""The datasets of the published checkpoints: their classes, and the windows of their evaluation."""

from __future__ import annotations

from typing import NamedTuple


class PublishedDataset(NamedTuple):
    """classes: names in the order of their ids. windows: side of the sliding window in evaluation, by decoder."""

    classes: list[str]
    windows: dict[str, int]


PUBLISHED = {
    "pascal": PublishedDataset(
        [
            "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
            "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
        ],
        windows={},
    ),
    "cityscapes": PublishedDataset(
        [
            "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
            "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
        ],
        windows={"deeplabv3plus": 801, "dpt": 798},
    ),
}  # fmt: skip

"""Whole images, one by one, for measuring and predicting."""

from __future__ import annotations

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from corrmatch_hf.data.images import read_photo
from corrmatch_hf.data.semi_dataset import SemiDataset, undecoded


class EvaluationSet(Dataset):
    """`evaluation_set[i]`: {"image": uint8 (3, H, W), "label": int64 (H, W) or None, "file": str}, full size.

    `dataset` has the columns image, file and, if there are masks, label (as `semi.validation` has); `semi`
    says how to read the masks. Labels are class ids or `semi.ignore_index`. InputError names a bad file.
    """

    def __init__(self, dataset: datasets.Dataset, semi: SemiDataset):
        self.rows, self.semi = undecoded(dataset), semi

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        row = self.rows[i]
        if row.get("label") is None:
            image, label = read_photo(row["image"], row["file"]), None
        else:
            image, mask = self.semi.read_labeled(row)
            label = torch.from_numpy(mask.astype(np.int64))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return {"image": pixels, "label": label, "file": row["file"]}

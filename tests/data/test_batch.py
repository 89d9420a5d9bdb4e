import torch

from corrmatch_hf.data.batch import SemiBatch


def test_to_moves_tensors_and_converts_pictures_alone():
    batch = SemiBatch(
        3, torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), labeled_files=["a", "b"]
    )
    moved = batch.to("cpu", non_blocking=True, dtype=torch.float64)
    assert moved.image.dtype == torch.float64 and moved.label.dtype == torch.int64
    assert moved.step == 3 and moved.labeled_files == ["a", "b"] and moved.weak is None
    assert batch.image.dtype == torch.float32
    assert batch.to("meta").label.is_meta

"""--diagnose_with_masks: how many pseudo-labels are right, which changes nothing about the training."""

import json

import numpy as np
import pytest
import torch

from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.data.sources.synthetic import synthetic_image
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import METHODS

from ..conftest import write_synthetic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("diagnosed")
    write_synthetic(root, labeled=8, validation=2)
    return root


def rows_of(trainer):
    return [json.loads(line) for line in (trainer.output_dir / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"supervised", "mean_teacher"}))
def test_masks_are_counted_by_and_change_no_weight(make_trainer, folder, tmp_path, method):
    options = {"dgcl_memory_size": 64, "dgcl_supervised_share": 0.0} if method == "dgcl" else {"burn_in": 0.0}
    options = METHODS[method].Options(**options) if method in ("dgcl", "gatematch") else None
    weights, rows = [], []
    for diagnosed in (True, False):
        data = load_semi_dataset(data_dir=str(folder), labeled_count=3, diagnose_with_masks=diagnosed)
        assert data.unlabeled.column_names == ["image", "file"]
        trainer = make_trainer(
            method, data, options, output_dir=str(tmp_path / str(diagnosed)), max_steps=2, save_steps=None
        )
        trainer.train()
        weights.append(trainer.method.state_dict())
        rows.append(rows_of(trainer))
    assert all(torch.equal(one, weights[1][key]) for key, one in weights[0].items())
    for one, other in zip(*rows, strict=True):
        if "per_class" in one:
            known = one["per_class"].keys() - other["per_class"].keys()
            assert {"accuracy"} <= known <= {"accuracy", "propagated_accuracy"}
            assert one["loss"] == other["loss"] and "pseudo_label_accuracy" not in other
    assert any("per_class" in row for row in rows[0])


def test_the_truth_is_cropped_as_the_weak_view(make_trainer, folder):
    """Colours stand for classes here: photo and mask are the same picture."""
    data = load_semi_dataset(data_dir=str(folder), labeled_count=3, diagnose_with_masks=True)
    from corrmatch_hf.data.augment import Augmentation
    from corrmatch_hf.data.training_set import training_batches

    masks = data.diagnosis.map(lambda row: {"image": row["label"]}, features=data.diagnosis.features)
    import dataclasses

    painted = dataclasses.replace(data, unlabeled=masks.select_columns(["image", "file"]))
    augmentation = Augmentation(
        crop_size=33, scale_min=1.0, scale_max=1.0, strong_views=0, image_mean=(0, 0, 0), image_std=(1, 1, 1)
    )
    batch = next(training_batches(painted, augmentation, labeled_batch=1, unlabeled_batch=4, seed=0))
    seen = (batch.weak[:, 0] * 255).round().long()
    assert torch.equal(seen[batch.valid], batch.unlabeled_truth[batch.valid])
    assert (batch.unlabeled_truth[~batch.valid] == -1).all()


def test_masks_of_an_unlabelled_list_are_read_where_it_names_them(folder, tmp_path):
    lines = [f"train/images/{i}.png train/masks/{i}.png\n" for i in range(8)]
    (tmp_path / "labeled.txt").write_text("".join(lines[:3]))
    lists = {"labeled_list": str(tmp_path / "labeled.txt"), "unlabeled_list": str(tmp_path / "unlabeled.txt")}
    (tmp_path / "unlabeled.txt").write_text("".join(lines[3:6]))
    data = load_semi_dataset(data_dir=str(folder), diagnose_with_masks=True, **lists)
    assert [np.asarray(row["label"]).max() > 0 for row in data.diagnosis] == [True] * 3
    assert load_semi_dataset(data_dir=str(folder), **lists).diagnosis is None


def test_the_built_in_set_knows_its_masks():
    data = load_semi_dataset(labeled_count=4, diagnose_with_masks=True)
    assert data.diagnosis["file"][:] == data.unlabeled["file"][:]
    assert "label" not in data.unlabeled.column_names
    assert np.array_equal(data.diagnosis[7]["label"], synthetic_image("unlabeled", 7)[1])


def test_without_any_mask_it_is_refused(folder):
    with pytest.raises(InputError, match="none of the unlabelled photos has a mask"):
        load_semi_dataset(data_dir=str(folder), diagnose_with_masks=True)
    with pytest.raises(InputError, match="cannot be combined with --streaming"):
        load_semi_dataset("user/name", diagnose_with_masks=True, streaming=True)

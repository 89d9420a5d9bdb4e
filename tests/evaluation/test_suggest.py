"""How unlabelled photos are ranked and chosen."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation.suggest import (
    PhotoScores,
    choose,
    enlarged_label_map,
    look_at,
    pooled_features,
    require_scikit_learn,
    uncertainty_map,
)


def scenes(sizes, spread=0.01):
    """Features of photos of as many scenes as `sizes`, one scene after the other."""
    rng = np.random.default_rng(0)
    centres = np.eye(len(sizes) + 1)[: len(sizes)]
    rows = [
        centre + spread * rng.standard_normal(centres.shape[1])
        for centre, n in zip(centres, sizes, strict=True)
        for _ in range(n)
    ]
    rows = np.array(rows)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_twenty_frames_of_one_scene_are_not_chosen():
    pytest.importorskip("sklearn")
    features = scenes([20, 5, 5, 5])
    score = np.r_[np.linspace(2, 3, 20), np.linspace(0, 1, 15)]  # the twenty frames are the least certain
    found = choose(score, features, np.zeros((0, 5)), 4)
    assert found == [19, 34, 29, 24]  # the best of each scene, by score
    assert found == choose(score, features, np.zeros((0, 5)), 4)


def test_scenes_with_a_labelled_photo_are_covered():
    pytest.importorskip("sklearn")
    features = scenes([20, 5, 5, 5])
    score = np.r_[np.linspace(2, 3, 20), np.linspace(0, 1, 15)]
    labeled = scenes([1, 1, 1, 0])[:, :5]
    assert choose(score, features, labeled, 1) == [34]  # the best of the only scene without a label


def test_equal_photos_still_give_as_many_as_asked_for():
    pytest.importorskip("sklearn")
    features = np.tile([[1.0, 0.0]], (6, 1))
    assert choose(np.arange(6.0), features, features[:2], 3) == [5, 4, 3]


def test_uncertainty_by_hand():
    p = torch.tensor([[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]]).reshape(1, 3, 1, 2)
    entropy, labels = uncertainty_map(p, "entropy", "x")
    assert entropy.flatten().tolist() == pytest.approx([1.5 * np.log(2) / np.log(3), 0])
    assert labels.flatten().tolist() == [0, 0]
    assert uncertainty_map(p, "margin", "x")[0].flatten().tolist() == pytest.approx([0.75, 0])
    with pytest.raises(InputError, match="not finite"):
        uncertainty_map(p * torch.nan, "entropy", "x.jpg")


def test_views_that_disagree_make_a_photo_uncertain():
    """A model that is certain, but of another class at the mirror image."""

    def model(pixel_values):
        left = pixel_values[:, :1] > 0  # bright pixels are class 0 where the brighter half is on the left
        turned = pixel_values[..., 0].mean() < pixel_values[..., -1].mean()
        logits = torch.where(left ^ turned, 20.0, -20.0)
        return SimpleNamespace(logits=torch.cat([logits, -logits], 1))

    model.parameters = lambda: iter(())
    image = torch.ones(1, 3, 4, 8)
    image[..., 4:] = -1
    alone, _ = look_at(model, image, "x", flip=False)
    both, _ = look_at(model, image, "x", flip=True)
    assert alone.sum() == pytest.approx(0, abs=1e-4) and both.sum() == pytest.approx(1, abs=1e-4)


def test_rare_classes_count_more():
    shares = np.array([[1.0, 0.0], [0.9, 0.1]])
    scores = PhotoScores(np.array([[0.2, 0.0], [0.1, 0.09]]), shares, np.eye(2))
    assert scores.score(0).tolist() == pytest.approx([0.2, 0.19])
    assert scores.score(0.5).tolist() == pytest.approx([0.2, 0.1 + 0.09 * 19**0.5])


def test_enlarging_class_by_class_is_that_of_all_classes():
    p = torch.rand(1, 5, 7, 9).softmax(1)
    whole = torch.nn.functional.interpolate(p, size=(20, 31), mode="bilinear", align_corners=True)
    assert torch.equal(enlarged_label_map(p, (20, 31)), whole[0].argmax(0))


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        require_scikit_learn()


def test_features_of_another_model_of_transformers():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {"hidden_sizes": [4, 4, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    model = SegformerForSemanticSegmentation(SegformerConfig(**sizes, decoder_hidden_size=8)).eval()
    features = pooled_features(model, torch.randn(1, 3, 64, 64))
    assert features.shape == (8,) and np.linalg.norm(features) == pytest.approx(1)

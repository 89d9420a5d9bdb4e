"""Cluster scores of pixel features."""

import sys

import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation.feature_quality import feature_quality


def clusters(spread):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(40)
    centres = 10 * torch.eye(3)
    return centres[labels] + spread * torch.randn(120, 3, generator=generator), labels


def test_tight_clusters_score_better_in_all_three():
    pytest.importorskip("sklearn")
    tight, loose = (feature_quality(*clusters(spread)) for spread in (0.5, 5.0))
    assert tight["silhouette"] > 0.8 > loose["silhouette"]
    assert tight["calinski_harabasz"] > loose["calinski_harabasz"]
    assert tight["davies_bouldin"] < loose["davies_bouldin"]


def test_silhouette_by_loops():
    pytest.importorskip("sklearn")
    features, labels = clusters(4.0)
    distance = torch.cdist(features.double(), features.double())
    total = 0.0
    for i, label in enumerate(labels):
        own = labels == label
        inside = distance[i][own].sum() / (own.sum() - 1)
        outside = min(distance[i][labels == other].mean() for other in range(3) if other != label)
        total += (outside - inside) / max(inside, outside)
    assert feature_quality(features, labels)["silhouette"] == pytest.approx(float(total / 120), abs=1e-4)


def test_maps_ignored_pixels_and_a_sample():
    pytest.importorskip("sklearn")
    features, labels = clusters(4.0)
    want = feature_quality(features, labels)
    maps = torch.cat([features, torch.full((10, 3), 1e6)]).T.reshape(1, 3, 13, 10)
    marked = torch.cat([labels, torch.full((10,), 255)]).reshape(1, 13, 10)
    assert feature_quality(maps, marked) == pytest.approx(want)
    sample = feature_quality(features, labels, max_pixels=50)
    assert sample == feature_quality(features, labels, max_pixels=50)
    assert sample["silhouette"] == pytest.approx(want["silhouette"], abs=0.15) and sample != want


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.randn(1, 3, 4, 4), torch.zeros(1, 8, 8), "nearest-neighbour"),
        (torch.randn(5, 3), torch.zeros(4), "give"),
        (torch.randn(5, 3), torch.zeros(5), "two classes"),
        (torch.randn(5, 3), torch.full((5,), 255), "0 pixels"),
    ],
)
def test_bad_input(features, labels, message):
    pytest.importorskip("sklearn")
    with pytest.raises(InputError, match=message):
        feature_quality(features, labels)


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        feature_quality(*clusters(1.0))

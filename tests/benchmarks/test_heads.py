"""The benchmarks of the decoders' speed, at sizes that take no time: do results agree?"""

from benchmarks import deeplab, defaults, dpt


def test_dpt(monkeypatch):
    monkeypatch.setattr(dpt, "HEADS", {"tiny": (8, 6, [2, 3, 4, 8])})
    monkeypatch.setattr(dpt, "GRID", {"cpu": 3})
    (row,) = dpt.rows("cpu")
    assert row.identical and row.reference and row.ours


def test_taps_in_the_padding(monkeypatch):
    monkeypatch.setattr(deeplab, "CROP", 49)
    row = deeplab.shortcut("cpu", encoder="test_resnet")
    assert row.identical and row.reference and row.ours


def test_what_is_chosen_by_device():
    precision, batch, depthwise = defaults.rows("cpu", encoder="test_resnet", side=33, repeats=1)
    assert precision.ours and batch.identical and depthwise.identical
    assert depthwise.ratio > 100

"""The benchmarks of pixel propagation and of the step's small parts, at sizes that take no time: do results agree?"""

from benchmarks import pixel_propagation, step_parts


def test_pixel_propagation():
    rows = list(pixel_propagation.rows("cpu", sizes=((9, 2, 3), (12, 1, 3)), count=5, repeats=1))
    assert len(rows) == 5
    assert all(row.identical and row.target for row in rows)


def test_step_parts(monkeypatch):
    monkeypatch.setattr(step_parts, "OHEM_KEPT", 500)  # of some 1800 pixels: the cut is that of the 500th
    monkeypatch.setattr(step_parts, "OHEM_THRESHOLD", 0.1)
    rows = list(step_parts.rows("cpu", images=2, crop=33, maps=3, map_size=64, repeats=1))
    assert len(rows) == 5
    assert all(row.identical for row in rows)

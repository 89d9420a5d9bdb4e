"""examples/quickstart.ipynb runs from top to bottom, on few and small pictures."""

import json

import pytest
from PIL import Image

from ..conftest import ROOT

SMALL = [
    "--labeled_count", "4", "--max_steps", "2", "--eval_steps", "1000", "--logging_steps", "1", "--aspp_channels", "8",
    "--decoder_channels", "8", "--low_level_channels", "8", "--crop_size", "33", "--per_device_batch_size", "2",
]  # fmt: skip


@pytest.fixture
def cells():
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len(notebook["cells"]) == 10
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    return ["".join(cell["source"]) for cell in code]


def test_the_quickstart_runs_from_top_to_bottom(cells, tmp_path, monkeypatch, capsys, drawn_curves):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names = {}
    for number, source in enumerate(cells):
        lines = source.splitlines()
        plain = "\n".join("    pass" if line.strip().startswith("%pip") else line for line in lines)
        exec(compile(plain, f"cell {number}", "exec"), names)
        if "EXTRA" in source and number == 1:  # the cell of settings
            names["EXTRA"] = SMALL
    out = capsys.readouterr().out
    assert "4 labelled" in out or "12 labelled" in out
    assert "of the photo" in out and "IoU" in out
    output = tmp_path / "outputs" / "quickstart"
    for picture in ("curves.png", "predictions.png"):
        assert Image.open(output / picture).width > 300
    assert (output / "model.safetensors").is_file()

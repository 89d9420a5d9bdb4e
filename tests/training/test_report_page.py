"""report.html: what it shows, that it needs nothing from elsewhere, and that it never costs the model."""

import json
import re

import pytest

from corrmatch_hf.training import report as report_module
from corrmatch_hf.training import report_page

SECTIONS = [
    "Curves", "Classes", "Evaluation photos", "What is taken for what", "Correlation maps", "Region propagation",
]  # fmt: skip


def test_the_page_shows_the_run_and_needs_nothing_from_elsewhere(make_trainer, drawn_curves):
    trainer = make_trainer(eval_steps=2, report=True)
    result = trainer.train()
    page = (trainer.output_dir / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == SECTIONS
    assert f"{100 * result['final']['mean_iou']:.1f} %" in page
    assert "<script" not in page and "http" not in page
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|srcset)="(.*?)"', page))
    assert all(f"</span>{name}</th>" in page for name in trainer.data.id2label.values())
    assert len(page) < 1_000_000

    card = (trainer.output_dir / "README.md").read_text(encoding="utf-8")
    assert "| Class | Share | Confidence | Counted | Counted after propagation |" in card
    figures = json.loads((trainer.output_dir / "metrics.json").read_text())["pseudo_labels"]["house"]
    assert set(figures) == {"labeled_share", "share", "confidence", "kept_ratio", "propagated_ratio"}


@pytest.mark.parametrize("method", ["supervised", "unimatch"])
def test_the_page_leaves_out_what_a_method_lacks(make_trainer, method):
    trainer = make_trainer(method, report=True, max_steps=1)
    trainer.train()
    page = (trainer.output_dir / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == SECTIONS[:-2]
    assert ("pseudo-labels</th>" in page) == (method == "unimatch")


def test_names_of_classes_and_files_are_escaped(make_trainer, tiny_data, monkeypatch):
    import dataclasses

    names = {**tiny_data.id2label, 1: "<b>disc</b>"}
    trainer = make_trainer(data=dataclasses.replace(tiny_data, id2label=names), report=True, max_steps=1)
    trainer.train()
    page = (trainer.output_dir / "report.html").read_text(encoding="utf-8")
    assert "<b>disc" not in page and "&lt;b&gt;disc" in page


def test_a_failing_page_costs_nothing_else(make_trainer, monkeypatch, capsys):
    def fail(folder, facts):
        raise RuntimeError("no fonts here")

    monkeypatch.setattr(report_module, "write_report_page", fail)
    trainer = make_trainer(report=True, max_steps=1)
    trainer.train()
    assert "report.html is left out: RuntimeError: no fonts here" in capsys.readouterr().err
    assert not (trainer.output_dir / "report.html").exists()
    assert (trainer.output_dir / "README.md").exists() and (trainer.output_dir / "curves.png").exists()


def test_the_end_of_a_run_stays_quick(make_trainer, monkeypatch):
    monkeypatch.setattr(report_page, "SECONDS", -1)  # a slow model on large photos
    trainer = make_trainer(report=True, max_steps=1)
    trainer.train()
    page = (trainer.output_dir / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == SECTIONS[:2]

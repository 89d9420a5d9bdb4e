"""transformers' Trainer, by the example that users read; and the calls of transformers' own example script."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset

from .models import CNN

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_with_trainer.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("finetune_with_trainer", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    # Few pictures: evaluating takes longer than training.
    example.load_semi_dataset = lambda name: synthetic_semi_dataset(labeled=4, unlabeled=0, validation=6)
    return example.main


def test_it_trains_evaluates_and_resumes(main, tmp_path):
    few = {
        "max_steps": 2, "eval_steps": 1, "save_steps": 1, "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 50, "gradient_checkpointing": True, "disable_tqdm": True,
    }  # fmt: skip
    whole = main(str(tmp_path / "whole"), **few)
    assert 0 < whole["eval_mean_iou"] < 1 and whole["eval_loss"] > 0
    middle = str(tmp_path / "whole" / "checkpoint-1")
    again = main(str(tmp_path / "again"), resume_from_checkpoint=middle, **few)
    assert again["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.allclose(first[key], second[key], atol=1e-4) for key in first)
    log = json.loads((tmp_path / "whole" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_mean_iou" in row for row in log)
    found = pipeline("image-segmentation", model=str(tmp_path / "whole"))(Image.new("RGB", (50, 40)))
    assert found[0]["mask"].size == (50, 40)


def test_what_the_official_script_does(tmp_path):
    """run_semantic_segmentation.py: other classes, do_reduce_labels, a size that it reads."""
    CorrMatchForSegmentation(CorrMatchConfig(**CNN)).save_pretrained(tmp_path)
    CorrMatchImageProcessor().save_pretrained(tmp_path)
    id2label = {0: "a", 1: "b", 2: "c"}
    label2id = {name: str(i) for i, name in id2label.items()}
    config = AutoConfig.from_pretrained(tmp_path, label2id=label2id, id2label=id2label, revision="main")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, config=config, trust_remote_code=False)
    assert model.config.id2label == id2label
    processor = AutoImageProcessor.from_pretrained(tmp_path, do_reduce_labels=True, trust_remote_code=False)
    assert processor.do_reduce_labels and "shortest_edge" not in processor.size
    assert processor.size["height"] == processor.size["width"] == 512

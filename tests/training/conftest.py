"""A run small enough to be repeated: six tiny pictures and a network of a few thousand weights.

`report=True` also makes the report, which takes longer than everything else.
"""

import pytest
import torch

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, SemiSupervisedTrainer, TrainingConfig
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.methods import method_class
from corrmatch_hf.training import report as report_module


@pytest.fixture(scope="session")
def tiny_data():
    return synthetic_semi_dataset(labeled=4, unlabeled=6, validation=3, image_size=48)


@pytest.fixture
def make_trainer(tmp_path, tiny_data, monkeypatch):
    def make(method="corrmatch", data=tiny_data, options=None, model=None, report=False, **config):
        if not report:
            monkeypatch.setattr(report_module, "write_report", lambda folder, facts: None)
        torch.manual_seed(0)
        cls = method_class(method)
        model = model or CorrMatchForSegmentation(
            CorrMatchConfig(
                encoder_name="test_resnet",
                output_stride=16,
                aspp_channels=8,
                decoder_channels=8,
                low_level_channels=8,
                correlation_channels=8,
                correlation_head=cls.uses_correlation_head,
                id2label=data.id2label,
                label2id={v: k for k, v in data.id2label.items()},
            )
        )
        defaults = {
            "output_dir": str(tmp_path / "run"), "per_device_batch_size": 2, "crop_size": 33, "learning_rate": 0.01,
            "logging_steps": 1,
        }  # fmt: skip
        if "num_epochs" not in config:
            defaults["max_steps"] = 4
        return SemiSupervisedTrainer(cls(model, options), data, TrainingConfig(**(defaults | config)))

    return make

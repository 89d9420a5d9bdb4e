"""transformers' Trainer publishes the model, its processor, code and a card."""

import torch
from transformers import AutoImageProcessor, Trainer, TrainingArguments

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor

from .conftest import tiny_model
from .loopback_hub import TOKEN


class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {
            "pixel_values": torch.full((3, 33, 33), float(i)),
            "labels": torch.full((33, 33), i % 2, dtype=torch.long),
        }


def test_a_trained_model_is_pushed_with_its_card(online, api, tmp_path):
    model = tiny_model(id2label={0: "a", 1: "b"})
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, push_to_hub=True,
        hub_model_id="user/trained", hub_token=TOKEN, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Photos(), processing_class=CorrMatchImageProcessor())
    trainer.train()
    trainer.push_to_hub()
    names = {file.rfilename for file in api.model_info("user/trained").siblings}
    assert {"README.md", "model.safetensors", "config.json", "preprocessor_config.json"} <= names
    loaded = CorrMatchForSegmentation.from_pretrained("user/trained")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in loaded.state_dict().items())
    assert type(AutoImageProcessor.from_pretrained("user/trained")) is CorrMatchImageProcessor

"""Accelerate keeps weights elsewhere, and the logits stay."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation

from .models import CNN, SMALL, VIT

EVA = SMALL | {  # its attention reads weights of layers that it does not call
    "encoder_name": "vit_small_patch16_dinov3",
    "encoder_kwargs": {"depth": 3, "embed_dim": 24, "num_heads": 2},
    "decoder_type": "linear",
}


@pytest.mark.parametrize("options", [CNN, VIT, EVA], ids=["cnn", "vit", "eva"])
def test_logits_are_those_of_the_whole_model(options, tmp_path):
    torch.manual_seed(0)
    model, image = CorrMatchForSegmentation(CorrMatchConfig(**options)).eval(), torch.randn(2, 3, 70, 98)
    with torch.no_grad():
        expected = model(image).logits

        def check(offloaded):
            for _ in range(2):  # the weights are fetched anew
                torch.testing.assert_close(offloaded(image).logits, expected, atol=1e-6, rtol=1e-5)
            assert any(p.is_meta for p in offloaded.parameters())

        here = torch.device("cpu")
        check(cpu_offload(copy.deepcopy(model), here))
        check(disk_offload(copy.deepcopy(model), tmp_path / "disk", here))
        places = {"encoder": "disk", "decoder": "cpu", "correlation": "cpu"}
        check(
            dispatch_model(
                copy.deepcopy(model),
                places,
                main_device="cpu",
                offload_dir=tmp_path / "parts",
                force_hooks=True,
            )
        )
        model.save_pretrained(tmp_path / "model")
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        check(
            CorrMatchForSegmentation.from_pretrained(
                tmp_path / "model",
                device_map="auto",
                max_memory={"cpu": size // 2},
                offload_folder=tmp_path / "auto",
            ).eval()
        )

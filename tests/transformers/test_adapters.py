"""LoRA adapters of PEFT: trained, saved, loaded onto a fresh copy, merged."""

import copy

import pytest
import torch

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation

from .models import CNN, VIT

peft = pytest.importorskip("peft")


def parts(model, kind):
    return [f"encoder.{name}" for name, module in model.encoder.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize(
    ("options", "targets", "whole"),
    [
        (VIT, lambda model: ["qkv"], lambda model: ["decoder"]),
        # PEFT's convolutions are not dilated, so the encoder keeps its own stride. BatchNorm's statistics move in
        # training: they belong to the adapter. The second one's `conv1` is a stem of several convolutions.
        *(
            (
                CNN | {"encoder_name": encoder, "output_stride": 32},
                lambda model: parts(model, torch.nn.Conv2d),
                lambda model: ["decoder", *parts(model, torch.nn.BatchNorm2d)],
            )
            for encoder in (CNN["encoder_name"], "test_resnet")
        ),
    ],
)
def test_a_loaded_adapter_is_the_trained_one(options, targets, whole, tmp_path):
    torch.manual_seed(0)
    model = CorrMatchForSegmentation(CorrMatchConfig(**options, correlation_head=False))
    fresh, image = copy.deepcopy(model), torch.randn(2, 3, 56, 70)
    config = peft.LoraConfig(r=2, target_modules=targets(model), modules_to_save=whole(model))
    adapted = peft.get_peft_model(model, config).train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        adapted(pixel_values=image, labels=torch.ones(2, 56, 70, dtype=torch.long)).loss.backward()
        optimizer.step()
    with torch.no_grad():
        before, expected = fresh.eval()(image).logits, adapted.eval()(pixel_values=image).logits
        adapted.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
        assert not torch.allclose(before, expected, atol=1e-3)
        assert torch.equal(loaded(pixel_values=image).logits, expected)
        assert torch.allclose(loaded.merge_and_unload()(image).logits, expected, atol=1e-5)

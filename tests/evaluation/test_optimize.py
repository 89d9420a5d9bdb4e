"""The optimised copy against the model that it was made from."""

import copy

import pytest
import torch
from torch import nn

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import evaluate_segmentation, optimize, predict_probabilities
from corrmatch_hf.evaluation.optimize import optimize_for_inference

SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 2}


def network(encoder_name, **options):
    config = CorrMatchConfig(
        encoder_name=encoder_name, num_labels=4, aspp_channels=16,
        decoder_channels=16, correlation_channels=16, **options,
    )  # fmt: skip
    return CorrMatchForSegmentation(config).eval()


@pytest.mark.parametrize(
    ("encoder_name", "decoder", "kwargs"),
    [
        ("test_resnet", "deeplabv3plus", None),
        ("convnext_atto", "deeplabv3plus", None),
        ("vit_small_patch16_dinov3", "dpt", SMALL),
        ("eva02_tiny_patch14_224", "linear", SMALL),
    ],
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_copy_gives_equal_logits_and_leaves_the_model_alone(encoder_name, decoder, kwargs, channels_last):
    """Also of transformers, whose tables of rotary positions must survive the copy."""
    model = network(encoder_name, decoder_type=decoder, encoder_kwargs=kwargs)
    before = copy.deepcopy(model.state_dict())
    fast = optimize_for_inference(model, channels_last=channels_last)
    for size in ((1, 3, 65, 97), (2, 3, 64, 32)):
        image = torch.randn(size)
        with torch.no_grad():
            expected, found = model(image).logits, fast(pixel_values=image).logits
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fast.parameters())
    weights = [m.weight for m in fast.modules() if isinstance(m, nn.Conv2d) and min(m.weight.shape[1:]) > 1]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) == channels_last for w in weights)


def test_the_copy_cannot_be_saved(tmp_path):
    model = network("test_resnet")
    with pytest.raises(InputError, match="save the model that it was made from"):
        optimize_for_inference(model).save_pretrained(tmp_path / "fast")
    with pytest.raises(InputError, match="save the model that it was made from"):
        optimize_for_inference(model).push_to_hub("fast")
    assert not (tmp_path / "fast").exists()
    model.save_pretrained(tmp_path / "whole")
    again = CorrMatchForSegmentation.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_bfloat16_predicts_nearly_the_same_through_the_package():
    """The figures of a whole evaluation, and probabilities in float32 from float32 images."""
    model = network("test_resnet")
    fast = optimize_for_inference(model, dtype=torch.bfloat16)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16} and model.dtype == torch.float32
    pixels = torch.randint(0, 256, (3, 33, 47), dtype=torch.uint8)
    image = ((pixels / 255 - 0.5) / 0.2)[None]
    expected, found = predict_probabilities(model, image), predict_probabilities(fast, image)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.02
    sample = {"image": pixels, "label": expected[0].argmax(0), "file": "photo.jpg"}
    options = {"num_labels": 4, "image_mean": (0.5,) * 3, "image_std": (0.2,) * 3}
    assert evaluate_segmentation(model, [sample], **options)["pixel_accuracy"] == 1
    assert 0.9 < evaluate_segmentation(fast, [sample], **options)["pixel_accuracy"] <= 1


def test_the_correlation_head_never_runs_in_inference():
    model = network("test_resnet")
    calls = []
    for name, module in model.correlation.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    image = torch.randn(1, 3, 33, 47)
    predict_probabilities(model, image, flip=True)
    predict_probabilities(optimize_for_inference(model), image, window=32)
    assert calls == []
    with torch.no_grad():
        model(image, output_correlation=True)
    assert calls  # the hooks do see it


def test_compile_hands_the_copy_to_the_compiler(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    model = network("test_resnet")
    fast = optimize_for_inference(model, compile=True)
    assert compiled == [fast] and fast is not model


def test_bfloat16_is_slow_where_an_x86_cpu_has_no_instructions_for_it(monkeypatch):
    monkeypatch.setattr(optimize.platform, "machine", lambda: "x86_64")
    for amx, avx, slow in ((False, False, True), (True, False, False), (False, True, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx, raising=False)
        assert optimize.bfloat16_is_slow("cpu") is slow
        assert not optimize.bfloat16_is_slow("cuda")
    monkeypatch.setattr(optimize.platform, "machine", lambda: "arm64")
    assert not optimize.bfloat16_is_slow("cpu")

"""The optimised copy against the model it was made from, with norms that are far from doing nothing."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import evaluate_segmentation, predict_probabilities
from corrmatch_hf.evaluation.optimize import optimize_for_inference


def trained(model):
    """As after training: statistics, scales and shifts of its own in every norm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def network(encoder_name, output_stride=16, **options):
    config = CorrMatchConfig(
        encoder_name=encoder_name, output_stride=output_stride, num_labels=4, aspp_channels=16,
        decoder_channels=16, correlation_channels=16, **options,
    )  # fmt: skip
    return trained(CorrMatchForSegmentation(config))


def norms(model):
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("correlation")
    ]


@pytest.mark.parametrize(
    ("encoder_name", "output_stride", "left"),
    [
        ("test_resnet", 16, 0),
        ("mobilenetv2_035", 16, 0),  # BatchNormAct2d
        ("test_efficientnet", 16, 0),
        ("convnext_atto", 32, 0),  # norms in the decoder only
        ("repvgg_a0", 16, 17),  # a norm of the block's input: there is no convolution before it
    ],
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_equal_logits_with_the_norms_folded(encoder_name, output_stride, left, channels_last):
    model = network(encoder_name, output_stride)
    before = copy.deepcopy(model.state_dict())
    fast = optimize_for_inference(model, channels_last=channels_last)
    assert norms(model) and len(norms(fast)) == left
    for size in ((1, 3, 65, 97), (2, 3, 64, 32)):
        image = torch.randn(size)
        with torch.no_grad():
            expected, found = model(image).logits, fast(pixel_values=image).logits
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not any(
        p.requires_grad for p in fast.parameters()
    )
    weights = fast.decoder.fuse.convs[0].conv.weight
    assert weights.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize(
    ("encoder_name", "decoder"), [("vit_small_patch16_dinov3", "dpt"), ("eva02_tiny_patch14_224", "linear")]
)
def test_transformers_have_nothing_to_fold_and_give_equal_logits(encoder_name, decoder):
    """Their norms depend on the image; tables of rotary positions must survive the copy, and the cast to bfloat16."""
    small = {"depth": 4, "embed_dim": 48, "num_heads": 2}
    model = network(encoder_name, None, encoder_kwargs=small, decoder=decoder)
    fast = optimize_for_inference(model)
    assert norms(model) == norms(fast) == []
    image = torch.randn(2, 3, 49, 67)
    with torch.no_grad():
        expected, found = model(image).logits, fast(pixel_values=image).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    narrow = optimize_for_inference(model, dtype=torch.bfloat16)
    with torch.no_grad():
        found = narrow(image.bfloat16()).logits.float()
    assert 0 < (found - expected).abs().mean() < 0.03 * expected.abs().max()


class Awkward(nn.Module):
    """Where a careless fold would go wrong."""

    def __init__(self):
        super().__init__()
        self.branching, self.branching_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.twice, self.twice_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.shared, self.shared_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.returned, self.returned_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.between, self.between_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.batch_norm, self.batch_norm_conv = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.plain, self.plain_norm = nn.Conv2d(6, 5, 1), BatchNormAct2d(5, act_layer=nn.SiLU)

    def forward(self, pixel_values):
        x = self.branching(pixel_values)
        x = self.branching_norm(x) + x
        x = self.twice_norm(self.twice(x)) + self.twice(x)
        x = self.shared_norm(self.shared(x)) + self.shared_norm(x)
        x = self.between_norm(self.between(x) * 2)
        hidden = self.returned(x)
        x = self.batch_norm_conv(self.batch_norm(self.returned_norm(hidden)))
        return {"logits": self.plain_norm(self.plain(x)), "hidden": hidden}


def test_a_norm_stays_where_its_convolution_does_not_feed_it_alone():
    model = trained(Awkward())
    fast = optimize_for_inference(model)
    kept = {"branching_norm", "twice_norm", "shared_norm", "returned_norm", "between_norm", "batch_norm"}
    assert set(norms(fast)) == kept
    image = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        for key, expected in model(image).items():
            torch.testing.assert_close(fast(image)[key], expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_folded_that_cannot_be_watched():
    class Deciding(Awkward):
        def forward(self, pixel_values):
            if pixel_values.mean().item() > 1e9:  # needs contents
                raise AssertionError
            return super().forward(pixel_values)

    assert len(norms(optimize_for_inference(trained(Deciding())))) == 7


def test_the_copy_is_no_checkpoint(tmp_path):
    model = network("test_resnet")
    with pytest.raises(InputError, match="save the model it was made from"):
        optimize_for_inference(model).save_pretrained(tmp_path / "folded")
    with pytest.raises(InputError, match="save the model it was made from"):
        optimize_for_inference(model).push_to_hub("folded")
    assert not (tmp_path / "folded").exists()
    model.save_pretrained(tmp_path / "whole")
    again = CorrMatchForSegmentation.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_bfloat16_predicts_nearly_the_same_through_the_package():
    """The figures of a whole evaluation, and probabilities in float32 from float32 images."""
    model = network("test_resnet")
    fast = optimize_for_inference(model, dtype=torch.bfloat16)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16} and model.dtype == torch.float32
    assert norms(fast) == norms(model)  # folded in float32 only, if nobody asks for more
    assert norms(optimize_for_inference(model, dtype=torch.bfloat16, fold_batch_norm=True)) == []
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

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import predict_probabilities
from corrmatch_hf.evaluation.inference import window_starts


class PixelModel(nn.Module):
    """Each pixel for itself, so that any window must give what the whole image gives."""

    def __init__(self, num_labels=5):
        super().__init__()
        self.classifier = nn.Conv2d(3, num_labels, 1)
        self.sizes = []

    def forward(self, pixel_values):
        self.sizes.append(tuple(pixel_values.shape[-2:]))
        return SimpleNamespace(logits=self.classifier(pixel_values))


class ContextModel(PixelModel):
    """Sees its surroundings and which side is left: windows, scales and flips all change its answer."""

    def forward(self, pixel_values):
        context = pixel_values.mean((2, 3), keepdim=True)
        ramp = torch.linspace(0, 1, pixel_values.shape[-1])
        return SimpleNamespace(logits=self.classifier(pixel_values + 2 * context * ramp))


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (10, 4, 2, [0, 2, 4, 6]),
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (4, 4, 2, [0]),
        (3, 4, 2, [0]),
        (5, 4, 2, [0, 1]),
        (2048, 801, 534, [0, 534, 1068, 1247]),
    ],
)
def test_windows_cover_the_side_and_end_at_the_border(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts
    covered = {p for s in starts for p in range(s, min(s + window, length))}
    assert covered == set(range(length))


@pytest.mark.parametrize("size", [(12, 20), (7, 5), (8, 8)])
@pytest.mark.parametrize("stride", [None, 3, 8])
def test_windows_of_a_pointwise_model_give_the_whole_image(size, stride):
    model, image = PixelModel(), torch.randn(2, 3, *size)
    whole = predict_probabilities(model, image)
    windows = predict_probabilities(model, image, window=8, stride=stride)
    assert windows.shape == (2, 5, *size) and windows.dtype == torch.float32
    torch.testing.assert_close(windows, whole)
    torch.testing.assert_close(whole.sum(1), torch.ones(2, *size))


def test_overlapping_windows_are_summed_as_softmax():
    """Against the sum written out: a window of 6 on 6 x 9 with stride 4 stands at columns 0 and 3."""
    model, image = ContextModel(), torch.randn(1, 3, 6, 9)
    total = torch.zeros(1, 5, 6, 9)
    for left in (0, 3):
        total[..., left : left + 6] += model(image[..., left : left + 6]).logits.softmax(1)
    result = predict_probabilities(model, image, window=6, stride=4)
    assert torch.equal(result.argmax(1), total.argmax(1))
    torch.testing.assert_close(result, total / total.sum(1, keepdim=True))
    assert not torch.allclose(result, predict_probabilities(model, image))


def test_default_stride_is_two_thirds_of_the_window():
    model = PixelModel()
    predict_probabilities(model, torch.randn(1, 3, 9, 17), window=9)  # stride 6: columns 0, 6, 8
    assert model.sizes == [(9, 9)] * 3


@pytest.mark.parametrize("images", [1, 2])
def test_windows_together_are_windows_one_by_one(images):
    image, model = torch.randn(images, 3, 11, 17), PixelModel()
    sizes = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    one_by_one = predict_probabilities(model, image, window=7, stride=3)
    assert sizes == [images] * 15  # 3 rows of 5
    sizes.clear()
    together = predict_probabilities(model, image, window=7, stride=3, batch_size=4)
    assert sizes == ([4, 4, 4, 3] if images == 1 else [4] * 7 + [2])
    torch.testing.assert_close(together, one_by_one)
    context = ContextModel()
    torch.testing.assert_close(
        predict_probabilities(context, image, window=7, stride=3, batch_size=15 * images),
        predict_probabilities(context, image, window=7, stride=3),
    )


def test_scales_and_flip_are_averaged_at_the_size_of_the_input():
    model, image = ContextModel(), torch.randn(2, 3, 10, 13)
    expected = torch.zeros(2, 5, 10, 13)
    for size in ((10, 13), (5, 6), (15, 20)):
        scaled = interpolate(image, size=size, mode="bilinear", align_corners=True)
        both = model(scaled).logits.softmax(1) + model(scaled.flip(-1)).logits.softmax(1).flip(-1)
        expected += interpolate(both, size=(10, 13), mode="bilinear", align_corners=True) / 6
    result = predict_probabilities(model, image, scales=(1.0, 0.5, 1.5), flip=True)
    torch.testing.assert_close(result, expected)
    mirrored = predict_probabilities(model, image.flip(-1), scales=(1.0, 0.5, 1.5), flip=True)
    torch.testing.assert_close(mirrored.flip(-1), result)


def test_low_precision_and_small_logits_come_out_full():
    class Coarse(PixelModel):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=self.classifier(pixel_values[..., ::4, ::4]).bfloat16())

    result = predict_probabilities(Coarse(), torch.randn(1, 3, 16, 24))
    assert result.shape == (1, 5, 16, 24) and result.dtype == torch.float32
    torch.testing.assert_close(result.sum(1), torch.ones(1, 16, 24))


def test_no_graph_and_input_untouched():
    image = torch.randn(1, 3, 8, 8)
    before = image.clone()
    assert not predict_probabilities(PixelModel(), image, window=5, flip=True).requires_grad
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 0},
        {"stride": 4},
        {"window": 8, "stride": 9},
        {"window": 8, "stride": 0},
        {"scales": ()},
        {"scales": (1.0, 0.0)},
        {"batch_size": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError, match=next(reversed(options))):
        predict_probabilities(PixelModel(), torch.randn(1, 3, 8, 8), **options)

"""Every kind of encoder: builds, learns, and comes back from a folder as it was."""

import pytest
import timm
import torch

from corrmatch_hf.model import CorrMatchEncoder

from .round_trip import assert_same_when_loaded, learn

ENCODERS = {  # name: output stride
    "resnet18": 16,
    "resnet50": 32,
    "resnet101s": 8,
    "convnext_atto": 16,
    "convnextv2_atto": 8,
    "efficientnet_b0": 16,
    "mobilenetv2_100": 8,
    "mobilenetv3_small_100": 16,
    "regnety_002": 16,
    "swin_tiny_patch4_window7_224": 32,
    "pvt_v2_b0": 32,
    "edgenext_xx_small": 32,
    "hrnet_w18_small": 32,
    "res2net50_26w_4s": 16,
}
SMALL_SWIN = (
    "swin_tiny_patch4_window7_224",
    {"depths": (2, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)},
)
FEW = {"layers": (1, 1, 2, 1)}  # blocks: the same kinds of layers as in the whole, once each
SMALLER = dict([SMALL_SWIN]) | {"resnet50": FEW, "resnet101s": FEW, "res2net50_26w_4s": FEW}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name, network, tmp_path):
    stride = ENCODERS[name]
    model = network(encoder_name=name, output_stride=stride, encoder_kwargs=SMALLER.get(name)).train()
    height, width = 49, 67  # odd, and no multiple of anything
    low, high = model.encoder(torch.randn(1, 3, height, width))
    assert low.shape[1] == model.encoder.channels[0]
    assert high.shape[1] == model.encoder.channels[1]
    for features, each in ((low, 4), (high, stride)):
        for side, pixels in zip(features.shape[-2:], (height, width), strict=True):
            assert side in (pixels // each, -(-pixels // each))

    learn(model, (height, width))
    assert_same_when_loaded(model, (height, width), tmp_path)


@pytest.mark.parametrize("name, options", [("resnet18", {}), ("convnext_atto", {}), SMALL_SWIN])
def test_timms_initialisation_survives(name, options, network):
    """PreTrainedModel would write N(0, 0.02) into everything."""
    torch.manual_seed(3)
    plan = CorrMatchEncoder(name, 32, options).plan
    torch.manual_seed(3)
    expected = timm.create_model(**plan.options).state_dict()
    torch.manual_seed(3)
    state = network(encoder_name=name, output_stride=32, encoder_kwargs=options).encoder.body.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_features_are_timms():
    encoder = CorrMatchEncoder("resnet18", 16).eval()
    image = torch.randn(1, 3, 65, 97)
    full = timm.create_model("resnet18", features_only=True, output_stride=16).eval()
    full.load_state_dict(encoder.body.state_dict())
    low, high = encoder(image)
    expected = full(image)
    assert torch.equal(low, expected[1]) and torch.equal(high, expected[4])


def test_planning_takes_no_random_numbers():
    from corrmatch_hf.model import encoder_plan_corrmatch

    encoder_plan_corrmatch._plan.cache_clear()
    state = torch.get_rng_state()
    encoder_plan_corrmatch.plan_encoder("mobilenetv2_100", 16, {})
    assert torch.equal(torch.get_rng_state(), state)


def test_encoder_kwargs_reach_timm():
    encoder = CorrMatchEncoder("resnet18", 32, {"in_chans": 4})
    assert encoder.in_channels == 4
    assert encoder(torch.randn(1, 4, 64, 64))[1].shape == (1, 512, 2, 2)


def test_swin_takes_other_sizes_than_its_own():
    encoder = CorrMatchEncoder(SMALL_SWIN[0], 32, SMALL_SWIN[1]).eval()
    for height, width in ((33, 47), (224, 224), (250, 321)):
        low, high = encoder(torch.randn(1, 3, height, width))
        assert low.shape == (1, 24, -(-height // 4), -(-width // 4))
        assert high.shape == (1, 192, -(-height // 32), -(-width // 32))


def test_padding_does_not_move_the_features():
    """HRNet takes multiples of 32 only; other sizes are padded and cut."""
    encoder = CorrMatchEncoder("hrnet_w18_small", 32).eval()
    assert encoder.plan.size_multiple == 32
    image = torch.randn(1, 3, 96, 128)
    image[..., 65:, :] = 0
    image[..., 97:] = 0
    with torch.no_grad():
        whole, part = encoder(image), encoder(image[..., :65, :97])
    torch.testing.assert_close(part[0], whole[0][..., :17, :25])
    torch.testing.assert_close(part[1], whole[1][..., :3, :4])


@pytest.mark.parametrize(
    "name, stride, message",
    [
        ("resnet81", 16, "no model named 'resnet81': did you mean .*'resnet18'"),
        ("zzzzzz", 16, "no model named 'zzzzzz': use for example 'resnet50'"),
        (
            "vit_tiny_patch16_224",
            8,
            "cannot have output_stride 8: .* is its patch size. Set output_stride to 16",
        ),
        ("vit_small_patch14_dinov2", 16, "is its patch size. Set output_stride to 14, or leave it out"),
        ("volo_d1_224", None, "cannot be used: its features are not a grid of 16-pixel patches"),
        (
            "gemma4_vit_167m",
            None,
            "cannot be used: timm cannot extract its features at its own size of 768x768 pixels",
        ),
        (
            "tresnet_m",
            None,
            "timm cannot build 'tresnet_m' as an encoder with arguments .*not present in model",
        ),
        (
            "coat_lite_tiny",
            None,
            "cannot be used: some of its layers share their weights, which could not be saved",
        ),
        ("swin_tiny_patch4_window7_224", 8, "cannot have output_stride 8: it can have 32"),
        ("hrnet_w18_small", 16, "cannot have output_stride 16: it can have 32"),
        ("levit_128s", 32, "cannot have output_stride 32: its own is 64"),
    ],
)
def test_impossible_encoders_are_explained(name, stride, message):
    with pytest.raises(ValueError, match=message) as caught:
        CorrMatchEncoder(name, stride)
    assert "\n" not in str(caught.value)


def test_possible_strides_are_named():
    with pytest.raises(ValueError, match="it can have 8 and 16 and 32"):
        CorrMatchEncoder("resnet18", 64)


def test_bad_arguments_are_explained():
    with pytest.raises(ValueError, match=r"cannot build 'resnet18' .*no_such_option"):
        CorrMatchEncoder("resnet18", 16, {"no_such_option": 1})


@pytest.mark.parametrize(
    "name, size, message",
    [
        (
            "pvt_v2_b0",
            (16, 97),
            "an image of 16x97 pixels; the smallest square that it accepts has a side of 32",
        ),
        ("coatnet_0_rw_224", (65, 97), "that it accepts has a side of 224"),
    ],
)
def test_impossible_image_sizes_are_explained(name, size, message):
    encoder = CorrMatchEncoder(name, 32)
    with pytest.raises(ValueError, match=message):
        encoder(torch.randn(1, 3, *size))


def test_an_own_size_that_is_no_square_is_named():
    small = {"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 32, 32), "img_size": (64, 96)}
    encoder = CorrMatchEncoder("coatnet_pico_rw_224", 32, small)
    with pytest.raises(ValueError, match="image of 65x97 pixels; its own size is 64x96"):
        encoder(torch.randn(1, 3, 65, 97))
    assert encoder(torch.randn(1, 3, 64, 96))[1].shape[-2:] == (2, 3)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="type"):
        CorrMatchEncoder("resnet18", 32)(torch.randn(1, 3, 65, 97, dtype=torch.float64))


def test_encoders_without_checkpointing_say_so():
    encoder = CorrMatchEncoder("hrnet_w18_small", 32)
    encoder.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="'hrnet_w18_small' does not support gradient checkpointing"):
        encoder.set_grad_checkpointing(True)


def test_a_timm_that_breaks_encoders_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0.22")
    with pytest.raises(ImportError, match=r"timm>=1\.0\.24 is required .*found timm==1\.0\.22") as caught:
        CorrMatchEncoder("test_resnet")
    assert "pip install -U 'timm>=1.0.24'" in str(caught.value)

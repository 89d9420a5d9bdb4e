import pytest
import torch
import torch.nn.functional as F

from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation, DeepLabV3PlusDecoder, resize
from corrmatch_hf.model.decoders_corrmatch import DPTDecoder, LinearDecoder


def make():
    return DeepLabV3PlusDecoder(
        low_channels=6, high_channels=10, num_labels=3, atrous_rates=[1, 2, 3], aspp_channels=8, channels=12
    )


@pytest.mark.parametrize("grid", [(1, 1), (3, 4)])
@pytest.mark.parametrize("images", [1, 2])
def test_steps_and_gradients_in_train_mode(images, grid):
    decoder = make().train()
    aspp = decoder.aspp(torch.randn(images, 10, *grid))
    fused = decoder.fuse(torch.randn(images, 6, 9, 13), aspp)
    logits = decoder.classify(fused)
    assert aspp.shape == (images, 8, *grid)
    assert fused.shape == (images, 12, 9, 13)
    assert logits.shape == (images, 3, 9, 13)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_single_image_uses_running_statistics_where_there_is_no_variance():
    decoder = make().train()
    pooled = decoder.aspp.pooled
    before = pooled.norm.running_mean.clone()
    one = torch.randn(1, 10, 1, 1)
    out = pooled(one)
    assert torch.equal(pooled.norm.running_mean, before)
    assert torch.equal(out, pooled.eval()(one))


def test_resize_aligns_corners():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    expected = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.5, 2.0], [2.0, 2.5, 3.0]])
    assert torch.equal(resize(x, (3, 3))[0, 0], expected)
    big = torch.randn(1, 2, 97, 97)  # 8k + 1: every second pixel, bit for bit
    assert torch.equal(resize(big, (49, 49)), big[:, :, ::2, ::2])


# ------------------------------------------------------------------------------------------ DPT and linear


def plain_dpt(w, levels):
    """The decoder written once more, from the names of its weights."""

    def conv(x, name, **options):
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **options)

    def unit(x, name):
        return x + conv(conv(x.relu(), f"{name}.conv1", padding=1).relu(), f"{name}.conv2", padding=1)

    x = [conv(level, f"project.{i}") for i, level in enumerate(levels)]
    x[0] = F.conv_transpose2d(x[0], w["rescale.0.weight"], w["rescale.0.bias"], stride=4)
    x[1] = F.conv_transpose2d(x[1], w["rescale.1.weight"], w["rescale.1.bias"], stride=2)
    x[3] = conv(x[3], "rescale.3", stride=2, padding=1)
    x = [conv(each, f"narrow.{i}", padding=1) for i, each in enumerate(x)]
    sizes = [tuple(2 * side for side in x[0].shape[-2:]), *(each.shape[-2:] for each in x[:3])]
    fused = 0
    for i in (3, 2, 1, 0):
        own = x[i] if i == 3 else unit(x[i], f"fuse.{i}.level")
        fused = unit(fused + own, f"fuse.{i}.refine")
        fused = F.interpolate(fused, sizes[i], mode="bilinear", align_corners=True)
        fused = conv(fused, f"fuse.{i}.project")
    return conv(fused, "smooth", padding=1).relu()


@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (5, 3)])
def test_dpt_is_what_it_should_be(grid):
    decoder = DPTDecoder([10] * 4, num_labels=3, channels=6, pyramid_channels=[4, 6, 8, 12]).double()
    levels = [torch.randn(2, 10, *grid, dtype=torch.float64) for _ in range(4)]
    output = decoder(levels)
    expected = plain_dpt(decoder.state_dict(), levels)
    assert output.aspp is None and output.fused.shape == (2, 6, 8 * grid[0], 8 * grid[1])
    torch.testing.assert_close(output.fused, expected)
    torch.testing.assert_close(
        output.logits, F.conv2d(expected, decoder.classify.weight, decoder.classify.bias)
    )
    alone = decoder.train()([level[:1] for level in levels]).logits  # nothing depends on the other images
    torch.testing.assert_close(alone, output.logits[:1])
    output.logits.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.parametrize(
    "name, channels, pyramid, published",
    [
        ("vit_small_patch14_dinov2", 64, [48, 96, 192, 384], (22.1e6, 2.7e6)),
        ("vit_base_patch14_dinov2", 128, [96, 192, 384, 768], (86.6e6, 10.9e6)),
    ],
)
def test_as_many_parameters_as_in_unimatch_v2(name, channels, pyramid, published):
    """The paper counts two things that its forward pass never uses and that are left out here: the first residual unit
    of the coarsest fusion, and the encoder's mask token."""
    config = CorrMatchConfig(
        encoder_name=name, encoder_kwargs={"img_size": 518}, decoder_type="dpt", decoder_channels=channels,
        pyramid_channels=pyramid, num_labels=21, correlation_head=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = CorrMatchForSegmentation(config)
    unused = 2 * (9 * channels * channels + channels), pyramid[-1]
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder))
    for counted, stated in ((encoder + unused[1], published[0]), (decoder + unused[0], published[1])):
        assert abs(counted - stated) < 0.05e6
    assert model.config.pyramid_channels == pyramid


def test_linear_is_a_sum_over_the_levels():
    decoder = LinearDecoder([4, 6], num_labels=3)
    fine, coarse = torch.randn(2, 4, 9, 13), torch.randn(2, 6, 5, 7)
    output = decoder([fine, coarse])
    weight, enlarged = decoder.classify.weight[..., 0, 0], resize(coarse, (9, 13))
    expected = torch.einsum("kc,nchw->nkhw", weight[:, :4], fine)
    expected += torch.einsum("kc,nchw->nkhw", weight[:, 4:], enlarged) + decoder.classify.bias.view(-1, 1, 1)
    torch.testing.assert_close(output.logits, expected)
    assert output.fused.shape == (2, 10, 9, 13) and output.aspp is None


@pytest.mark.parametrize(
    "encoder", ["resnet18", "test_convnext", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "test_vit"]
)
def test_linear_goes_with_every_encoder(encoder, network):
    kwargs = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)} if "swin" in encoder else {}
    model = network(encoder_name=encoder, encoder_kwargs=kwargs, decoder_type="linear", output_stride=None)
    labels = torch.randint(5, (1, 70, 90))
    output = model.train()(torch.randn(1, 3, 70, 90), labels=labels)
    assert output.logits.shape == (1, 5, 70, 90)
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


PLAIN = {"encoder_name": "test_vit", "output_stride": None}


@pytest.mark.parametrize(
    "options, reason",
    [
        (
            {"decoder_type": "dpt"},
            "'dpt' needs a plain transformer, but encoder 'resnet18' has a pyramid.*use decoder",
        ),
        (
            {**PLAIN, "decoder_type": "deeplabv3plus"},
            "'deeplabv3plus' needs a pyramid.*'test_vit' is a plain trans.*use",
        ),
        (
            {**PLAIN, "decoder_type": "dpt", "out_indices": [0, 1]},
            r"out_indices must be 4 blocks for decoder 'dpt', not \[0, 1\]",
        ),
        (
            {**PLAIN, "decoder_type": "dpt", "encoder_kwargs": {"depth": 3}},
            "'dpt' needs 4 levels, but encoder 'test_vit' has 3",
        ),
        ({**PLAIN, "decoder_type": "dpt", "pyramid_channels": [4, 4]}, "pyramid_channels must be 4 "),
        (
            {**PLAIN, "decoder_type": "linear", "output_stride": 8},
            "cannot have output_stride 8: .* Set output_stride to 16, or leave it out",
        ),
        (
            {**PLAIN, "decoder_type": "dpt", "correlation_position": "aspp"},
            "'aspp' needs decoder 'deeplabv3plus'",
        ),
        ({"decoder_type": "linear", "correlation_position": "aspp"}, "'aspp' needs decoder 'deeplabv3plus'"),
        (
            {"encoder_name": "efficientvit_m0", "output_stride": None},
            "'deeplabv3plus' needs output stride 8, 16 or 32, but that of encoder 'efficientvit_m0' is 64: use",
        ),
        (
            {"decoder_type": "linear", "decoder_separable": True},
            "decoder_separable needs decoder 'deeplabv3plus', not 'linear'",
        ),
        ({"decoder_type": "fpn"}, "decoder_type must be one of deeplabv3plus, dpt, linear, not 'fpn'"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(options, reason, network):
    with pytest.raises(ValueError, match=reason) as caught:
        network(**options)
    assert "\n" not in str(caught.value)

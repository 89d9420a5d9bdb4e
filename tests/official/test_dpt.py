"""Checkpoints of UniMatch V2, against a network of their layout that is written here from the paper."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from corrmatch_hf.errors import InputError
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.official import dpt as official_dpt
from corrmatch_hf.official.convert import from_official, official_decoder, save_official, to_official

UNUSED = ("backbone.mask_token", "head.scratch.refinenet4.resConfUnit1.")


# ------------------------------------------------------------ their network, by the names of its weights


def shapes(width, depth, channels, pyramid, classes, grid=37):
    """Names and shapes of their weights."""
    found = {
        "backbone.cls_token": (1, 1, width),
        "backbone.mask_token": (1, width),
        "backbone.pos_embed": (1, 1 + grid**2, width),
    }

    def layer(name, *weight, bias=True):
        found[f"{name}.weight"] = weight
        if bias:
            found[f"{name}.bias"] = weight[:1]

    layer("backbone.patch_embed.proj", width, 3, 14, 14)
    for i in range(depth):
        block = f"backbone.blocks.{i}"
        layer(f"{block}.norm1", width)
        layer(f"{block}.attn.qkv", 3 * width, width)
        layer(f"{block}.attn.proj", width, width)
        layer(f"{block}.norm2", width)
        layer(f"{block}.mlp.fc1", 4 * width, width)
        layer(f"{block}.mlp.fc2", width, 4 * width)
        found |= {f"{block}.ls{k}.gamma": (width,) for k in (1, 2)}
    layer("backbone.norm", width)
    for i, out in enumerate(pyramid):
        layer(f"head.projects.{i}", out, width, 1, 1)
        layer(f"head.scratch.layer{i + 1}_rn", channels, out, 3, 3, bias=False)
        layer(f"head.scratch.refinenet{i + 1}.out_conv", channels, channels, 1, 1)
        for unit in ("resConfUnit1.conv1", "resConfUnit1.conv2", "resConfUnit2.conv1", "resConfUnit2.conv2"):
            layer(f"head.scratch.refinenet{i + 1}.{unit}", channels, channels, 3, 3)
    layer("head.resize_layers.0", pyramid[0], pyramid[0], 4, 4)
    layer("head.resize_layers.1", pyramid[1], pyramid[1], 2, 2)
    layer("head.resize_layers.3", pyramid[3], pyramid[3], 3, 3)
    layer("head.scratch.output_conv.0", channels, channels, 3, 3)
    layer("head.scratch.output_conv.2", classes, channels, 1, 1)
    return found


def random_state(*args, **options):
    """Weights of any size that keep the activations moderate, in double precision; no bias or scale is trivial."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes(*args, **options).items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 4
        state[name] = value / fan_in**0.5 + ("norm" in name and name.endswith("weight"))
        if "token" in name or "pos_embed" in name:
            state[name] = value / 2
        if "gamma" in name:
            state[name] = value
    return state


def conv(w, x, name, **options):
    return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **options)


def their_outputs(w, image):
    """image (N,3,H,W), of whole patches -> what each block gives, normalised, [(N,D,H/14,W/14), ...]"""

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    rows, columns = image.shape[-2] // 14, image.shape[-1] // 14
    x = conv(w, image, "backbone.patch_embed.proj", stride=14).flatten(2).mT
    n, _, width = x.shape
    x = torch.cat([w["backbone.cls_token"].expand(n, 1, width), x], 1)
    positions = w["backbone.pos_embed"]
    side = int(math.sqrt(positions.shape[1] - 1))
    if (rows, columns) != (side, side):
        table = positions[:, 1:].float().reshape(1, side, side, width).permute(0, 3, 1, 2)
        table = F.interpolate(
            table, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic"
        )
        table = table.permute(0, 2, 3, 1).reshape(1, -1, width)
        positions = torch.cat([positions[:, :1], table.to(positions.dtype)], 1)
    x = x + positions

    outputs = []
    for i in range(sum(name.endswith("attn.qkv.weight") for name in w)):
        block, heads = f"backbone.blocks.{i}", width // 64
        query, key, value = (
            part.reshape(n, -1, heads, 64).transpose(1, 2)
            for part in linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        )
        seen = (query @ key.mT / 8).softmax(-1) @ value
        x = x + w[f"{block}.ls1.gamma"] * linear(seen.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + w[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
        outputs.append(norm(x, "backbone.norm")[:, 1:].mT.unflatten(2, (rows, columns)))
    return outputs


def enlarged(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def their_logits(w, image, levels):
    """image (N,3,H,W), of whole patches -> logits (N,K,H,W)"""

    def unit(x, name):
        return conv(w, conv(w, x.relu(), f"{name}.conv1", padding=1).relu(), f"{name}.conv2", padding=1) + x

    outputs = their_outputs(w, image)
    maps = [conv(w, outputs[level], f"head.projects.{i}") for i, level in enumerate(levels)]
    for i, stride in ((0, 4), (1, 2)):
        name = f"head.resize_layers.{i}"
        maps[i] = F.conv_transpose2d(maps[i], w[f"{name}.weight"], w[f"{name}.bias"], stride=stride)
    maps[3] = conv(w, maps[3], "head.resize_layers.3", stride=2, padding=1)
    maps = [conv(w, x, f"head.scratch.layer{i + 1}_rn", padding=1) for i, x in enumerate(maps)]
    path = None
    for i in (3, 2, 1, 0):
        name = f"head.scratch.refinenet{i + 1}"
        path = maps[i] if path is None else path + unit(maps[i], f"{name}.resConfUnit1")
        path = unit(path, f"{name}.resConfUnit2")
        size = maps[i - 1].shape[-2:] if i else tuple(2 * side for side in path.shape[-2:])
        path = conv(w, enlarged(path, size), f"{name}.out_conv")
    path = conv(w, path, "head.scratch.output_conv.0", padding=1).relu()
    return enlarged(conv(w, path, "head.scratch.output_conv.2"), image.shape[-2:])


TINY = (64, 4, 8, [8, 12, 16, 20], 5)  # one attention head, four blocks


@pytest.fixture(scope="module")
def state():
    return random_state(*TINY)


@pytest.fixture
def saved(tmp_path):
    def save(contents):
        torch.save(contents, tmp_path / "v2.pth")
        return tmp_path / "v2.pth"

    return save


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --------------------------------------------------------------------------------------------- theirs to ours


@torch.no_grad()
def logits_error(model, state, size, levels):
    """The largest difference from theirs, by their deviation."""
    image = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    resized = enlarged(image, [14 * int(side / 14 + 0.5) for side in size])  # as they evaluate
    theirs = enlarged(their_logits(state, resized, levels), size)
    ours = model(image).logits
    assert theirs.std() > 0.1
    return (ours - theirs).abs().max() / theirs.std()


def test_logits_are_theirs_at_the_size_of_the_positions(state, saved):
    model = from_official(saved({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 59}))
    assert logits_error(model, state, (518, 518), [0, 1, 2, 3]) < 1e-9
    config = model.config
    assert (config.decoder_type, config.output_stride, config.num_labels) == ("dpt", 14, 5)
    assert not config.correlation_head and not model.training
    assert config.converted_from["file"] == "v2.pth"
    # A photo, which they resize to the nearest whole patches and its logits back.
    assert logits_error(model, state, (512, 524), [0, 1, 2, 3]) < 1e-9


@pytest.mark.parametrize("size", [84, 546])
def test_image_size_makes_logits_theirs_at_another_size(state, saved, size, tmp_path):
    """As Cityscapes' windows need it: theirs always interpolate."""
    model = from_official(saved(state), image_size=size)
    assert model.config.encoder_kwargs["img_size"] == size
    # not closer, for the embeddings are interpolated in single precision
    assert logits_error(model, state, (size, size), [0, 1, 2, 3]) < 1e-6
    model.save_pretrained(tmp_path / "model")
    again = CorrMatchForSegmentation.from_pretrained(tmp_path / "model")
    assert same(again.state_dict(), model.state_dict())


@torch.no_grad()
def test_every_level_is_theirs(state, saved):
    image = torch.randn(2, 3, 56, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = from_official(saved(state), image_size=56).encode(image)
    expected = their_outputs(state, image)
    assert len(levels) == len(expected) == 4
    for ours, theirs in zip(levels, expected, strict=True):
        assert ours.shape == (2, 64, 4, 4)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_at_other_sizes_logits_are_near(state, saved):
    """timm has another kernel, which matters little where embeddings change slowly, as trained ones do."""
    table = torch.randn(1, 64, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    table = F.interpolate(table, (37, 37), mode="bicubic", align_corners=True).flatten(2).mT / 2
    state = state | {"backbone.pos_embed": torch.cat([state["backbone.cls_token"], table], 1)}
    assert logits_error(from_official(saved(state)), state, (378, 504), [0, 1, 2, 3]) < 0.1


def test_the_levels_of_the_large_one(saved):
    state = random_state(64, 24, *TINY[2:], grid=4)
    model = from_official(saved(state))
    assert model.config.out_indices == [4, 11, 17, 23]
    assert logits_error(model, state, (56, 56), [4, 11, 17, 23]) < 1e-9


@pytest.mark.parametrize(
    "name, width, depth, channels, pyramid, millions",
    [
        ("small", 384, 12, 64, [48, 96, 192, 384], (22.1, 2.7)),
        ("base", 768, 12, 128, [96, 192, 384, 768], (86.6, 10.9)),
        ("large", 1024, 24, 256, [256, 512, 1024, 1024], None),
    ],
)
def test_published_sizes_are_recognised(name, width, depth, channels, pyramid, millions):
    layout = shapes(width, depth, channels, pyramid, 21)
    if millions:  # the paper's count
        for part, count in zip(("backbone.", "head."), millions, strict=True):
            found = sum(math.prod(shape) for key, shape in layout.items() if key.startswith(part))
            assert round(found / 1e6, 1) == count
    config = CorrMatchConfig(**official_dpt.config_arguments(layout, Path("v2.pth")))
    assert config.encoder_name == f"vit_{name}_patch14_dinov2" and not config.encoder_kwargs
    assert (config.decoder_channels, config.pyramid_channels) == (channels, pyramid)
    with torch.device("meta"):
        model = CorrMatchForSegmentation(config)
    assert {key: tuple(value.shape) for key, value in to_official(model).items()} == layout


def test_theirs_to_ours_to_theirs_is_the_same_but_for_what_is_unused(state, saved):
    path = saved(state)
    assert official_decoder(path) == "dpt"
    again = to_official(from_official(path))
    assert again.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(again[key], torch.zeros_like(value) if key.startswith(UNUSED) else value), key


def test_a_choice_between_student_and_average(state, saved):
    average = {key: value + 1 for key, value in state.items()}
    path = saved({"model": state, "model_ema": average})
    with pytest.raises(
        InputError, match=r"choose one of model, model_ema with --key .* results use model_ema"
    ):
        from_official(path)
    chosen = from_official(path, key="model_ema")
    bias = chosen.state_dict()["decoder.classify.bias"]
    assert torch.equal(bias, average["head.scratch.output_conv.2.bias"])
    assert chosen.config.converted_from["key"] == "model_ema"


# --------------------------------------------------------------------------------------------- ours to theirs


FOUR_BLOCKS = {"depth": 4, "embed_dim": 64, "num_heads": 1}


def small_model(**options):
    torch.manual_seed(0)
    config = CorrMatchConfig(
        **{
            "encoder_name": "vit_small_patch14_dinov2",
            "encoder_kwargs": FOUR_BLOCKS,
            "decoder_type": "dpt",
            "decoder_channels": 8,
            "num_labels": 5,
            "correlation_head": False,
        }
        | options
    )
    return CorrMatchForSegmentation(config).eval()


def test_ours_to_theirs_to_ours_is_the_same(tmp_path):
    model = small_model()
    save_official(model, tmp_path / "theirs.pth", data_parallel=True)
    written = torch.load(tmp_path / "theirs.pth", weights_only=True)["model"]
    expected = shapes(64, 4, 8, [8, 16, 32, 64], 5)
    assert {key.removeprefix("module."): tuple(v.shape) for key, v in written.items()} == expected
    again = from_official(tmp_path / "theirs.pth")
    assert same(again.state_dict(), model.state_dict())
    state = {key.removeprefix("module."): value.double() for key, value in written.items()}
    assert logits_error(model.double(), state, (518, 518), [0, 1, 2, 3]) < 1e-9


@pytest.mark.parametrize(
    "options, reason",
    [
        (
            {"encoder_name": "vit_small_patch14_reg4_dinov2"},
            "encoder vit_small_patch14_reg4_dinov2 instead of",
        ),
        ({"correlation_head": True}, "a correlation head, which .*inference_only=True"),
        ({"encoder_kwargs": FOUR_BLOCKS | {"num_heads": 2}}, "2 attention heads for 64 channels"),
        ({"encoder_kwargs": FOUR_BLOCKS | {"img_size": 798}}, "images of 798x798 pixels instead of 518x518"),
        ({"encoder_kwargs": FOUR_BLOCKS | {"qkv_bias": False}}, "an encoder built with {'qkv_bias': False}"),
        (
            {"encoder_kwargs": FOUR_BLOCKS | {"depth": 24}},
            r"\[5, 11, 17, 23\] instead of \[4, ",
        ),
        ({"decoder_type": "linear"}, "a linear decoder"),
    ],
)
def test_networks_that_are_not_theirs_are_not_written(options, reason, tmp_path):
    with torch.device("meta"):
        model = small_model(**options)
    with pytest.raises(InputError, match=reason):
        save_official(model, tmp_path / "out.pth")
    assert not any(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"backbone.blocks.2.ls1.gamma": None}, "missing: backbone.blocks.2.ls1.gamma"),
        ({"backbone.pos_embed": None}, "missing: backbone.pos_embed"),
        ({"backbone.pos_embed": torch.zeros(1, 1371, 64)}, r"pos_embed \(1, 1371, 64\) instead of \(1, 1370, 64\)"),
        ({"backbone.pos_embed": torch.zeros(3)}, "of a wrong shape: backbone.pos_embed"),
        ({"backbone.register_tokens": torch.zeros(1, 4, 64)}, "unexpected: backbone.register_tokens"),
        ({"head.projects.0.weight": None}, "missing: head.projects.0.weight"),
        ({"head.scratch.output_conv.2.bias": torch.zeros(4)}, r"output_conv.2.bias \(4,\) instead of \(5,\)"),
        ({"backbone.blocks.3.mlp.w12.weight": torch.zeros(1)}, "DINOv2's giant transformer, for which no checkpoint"),
        ({"backbone.patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)}, "4 blocks of 64 channels and patches of 16"),
        ({"backbone.patch_embed.proj.weight": torch.zeros(48, 3, 14, 14)}, "of 48 channels"),
        ({"backbone.patch_embed.proj.weight": torch.zeros(0, 3, 14, 14)}, "of 0 channels"),
        ({"backbone.blocks.99999.ls1.gamma": torch.zeros(64)}, "'depth': 100000"),
        ({f"backbone.blocks.{'9' * 5000}.x": torch.zeros(1)}, "unexpected: backbone.blocks.999"),
        ({"backbone.pos_embed": torch.zeros(1, 1370, 64).long()}, "non-float or sparse weights: backbone.pos"),
        ({"backbone.norm.bias": torch.zeros(64).to_sparse()}, "non-float or sparse weights: backbone.norm.bias"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("image_size", [None, 84])
def test_weights_that_do_not_fit_are_named(change, reason, image_size, state, saved):
    wrong = {key: value for key, value in (state | change).items() if value is not None}
    if image_size:
        reason = reason.split(r" \(1, 1371")[0]
    with pytest.raises(InputError, match=reason) as caught:
        from_official(saved(wrong), image_size=image_size)
    assert "v2.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_options_of_the_other_layout_are_refused(state, saved):
    with pytest.raises(InputError, match=r"output_stride is 8, but .*v2.pth contains a vision transformer"):
        from_official(saved(state), output_stride=8)
    assert from_official(saved(state), output_stride=14).config.output_stride == 14
    for size in (0, -14, 100, 14 * 300):
        with pytest.raises(InputError, match=f"image_size is {size}; .* a multiple of 14"):
            from_official(saved(state), image_size=size)
    with pytest.raises(InputError, match="image_size is 798; it applies to checkpoints of UniMatch V2"):
        from_official(saved({"backbone.layer1.0.conv1.weight": torch.zeros(1)}), image_size=798)

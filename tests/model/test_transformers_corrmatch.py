"""Plain vision transformers as encoders: levels, sizes, learning, saving, and weights from files."""

import copy
from itertools import pairwise

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from corrmatch_hf.model import CorrMatchConfig, CorrMatchEncoder, CorrMatchForSegmentation
from corrmatch_hf.model.encoder_plan_corrmatch import plan_encoder
from corrmatch_hf.model.modeling_corrmatch import CorrMatchFeatures

from .round_trip import assert_same_when_loaded, learn

SHALLOW = {"depth": 4, "embed_dim": 24, "num_heads": 2}
ROTARY = {"depth": 4, "embed_dim": 48, "num_heads": 2}
FIXED = {**SHALLOW, "img_size": 64}
# One of each structure; name: arguments that make it small, side of a patch
ANY_SIZE = {
    "vit_tiny_patch16_224": (SHALLOW, 16),
    "deit3_small_patch16_224": (SHALLOW, 16),  # the class token has no position
    "deit_tiny_distilled_patch16_224": (SHALLOW, 16),  # two tokens
    "vit_small_patch14_dinov2": (SHALLOW, 14),
    "vit_small_patch14_reg4_dinov2": (SHALLOW, 14),
    "vit_small_patch16_dinov3": (ROTARY, 16),
    "eva02_tiny_patch14_224": (ROTARY, 14),
    "vit_base_patch16_clip_224": (SHALLOW, 16),  # a norm before the blocks
    "vit_base_patch16_siglip_224": (SHALLOW, 16),  # no class token
    "vit_pe_core_tiny_patch16_384": (ROTARY, 16),
    "vit_medium_patch16_rope_reg1_gap_256": (ROTARY, 16),
    "vit_small_patch16_rope_mixed_ape_224": (ROTARY, 16),  # angles that are learned
    "naflexvit_base_patch16_gap": (SHALLOW, 16),  # patches as a sequence
    "samvit_base_patch16": ({**SHALLOW, "img_size": 64, "global_attn_indexes": (1, 3), "window_size": 2}, 16),
    "xcit_nano_12_p16_224": (SHALLOW, 16),  # attention across channels
}
ONE_SIZE = {
    "beit_base_patch16_224": (FIXED, 16),
    "vit_relpos_small_patch16_224": (FIXED, 16),
    "cait_xxs24_224": (FIXED, 16),
}
ALL = ANY_SIZE | ONE_SIZE


def small(network, name, **options):
    torch.manual_seed(0)
    kwargs = {**ALL[name][0], **options.pop("encoder_kwargs", {})}
    return network(encoder_name=name, encoder_kwargs=kwargs, **{"decoder_type": "dpt", **options})


@pytest.mark.parametrize("name", ALL)
def test_levels_are_those_of_timms_own_model(name):
    """Four evenly over its depth, each through the final norm; the position embeddings interpolated where need be."""
    kwargs, patch = ALL[name]
    torch.manual_seed(0)
    encoder = CorrMatchEncoder(name, None, kwargs).eval()
    with torch.no_grad():  # norms start as identities, tokens and embeddings nearly as zeros
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    any_size = {key: True for key in ("dynamic_img_size",) if key in encoder.plan.options}
    whole = timm.create_model(name, num_classes=7, **kwargs, **any_size).eval()
    # Of models that average their tokens the final norm is called fc_norm, and their norm does nothing.
    averages = isinstance(getattr(whole, "norm", None), torch.nn.Identity)
    state = encoder.body.model.state_dict()
    if averages:
        assert "norm.weight" in state and "fc_norm.weight" in whole.state_dict()
        state = {("fc_" * key.startswith("norm.")) + key: value for key, value in state.items()}
    lacking = [key for key in whole.state_dict() if key not in state]
    behind = ("head", "fc_norm", "attn_pool", "cls_", "blocks_token_only")
    assert all(key.startswith(behind) for key in lacking), lacking
    whole.load_state_dict(state, strict=False)

    image = torch.randn(2, 3, 64, 64) if name in ONE_SIZE else torch.randn(2, 3, 3 * patch, 5 * patch)
    with torch.no_grad():
        levels = encoder(image)
        expected = whole.forward_intermediates(
            image, indices=[0, 1, 2, 3], norm=True, intermediates_only=True
        )
        if averages:
            expected = [whole.fc_norm(level.movedim(1, -1)).movedim(-1, 1) for level in expected]
    assert encoder.channels == [level.shape[1] for level in levels] and encoder.output_stride == patch
    for level, other in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, other)
        assert level.shape[-2:] == (image.shape[-2] // patch, image.shape[-1] // patch)
    assert not any(torch.equal(a, b) for a, b in pairwise(levels))


def test_the_final_norm_is_applied_to_every_level():
    encoder = CorrMatchEncoder("vit_small_patch14_dinov2", None, SHALLOW).eval()
    for level in encoder(torch.randn(1, 3, 42, 42)):
        torch.testing.assert_close(level.mean(1), torch.zeros(1, 3, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(level.var(1, unbiased=False), torch.ones(1, 3, 3), atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_learning_and_saving(name, network, tmp_path):
    model = small(network, name).train()
    size = (64, 64) if name in ONE_SIZE else (49, 67)  # odd, and no multiple of anything
    learn(model, size)
    assert all(p.requires_grad for p in model.parameters())
    logits = assert_same_when_loaded(model, size, tmp_path)
    assert logits.shape == (1, 5, *size) and logits.isfinite().all()


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_ape_224"],
)
def test_bfloat16_weights_come_back_as_they_were(name, network, tmp_path):
    """Tables for rotary positions are computed anew, and must be those of a model that was cast."""
    assert_same_when_loaded(
        small(network, name, decoder_type="linear").to(torch.bfloat16), (33, 50), tmp_path
    )


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3"])
def test_any_size_smaller_than_a_patch_too(name, network):
    model, patch = small(network, name).eval(), ALL[name][1]
    for size in ((1, 1), (5, 9), (15, 200), (97, 33)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            levels, logits = model.encode(image), model(image).logits
        grid = tuple(max(int(side / patch + 0.5), 1) for side in size)  # the nearest number of patches
        assert all(level.shape[-2:] == grid for level in levels)
        assert logits.shape == (1, 5, *size) and logits.isfinite().all()


def test_other_sizes_are_resized_to_whole_patches(network):
    encoder = small(network, "vit_small_patch14_dinov2").encoder.eval()
    image = torch.randn(1, 3, 34, 50)
    resized = torch.nn.functional.interpolate(image, (28, 56), mode="bilinear", align_corners=True)
    assert encoder.input_size(34, 50) == (28, 56) and encoder.input_size(35, 49) == (42, 56)
    for one, other in zip(encoder(image), encoder(resized), strict=True):
        assert torch.equal(one, other)


def test_a_graph_leaves_images_of_whole_patches_as_they_are():
    """A graph for any size interpolates always; that must change nothing where nothing is to be done."""
    image = torch.randn(2, 3, 42, 56)
    same = torch.nn.functional.interpolate(image, (42, 56), mode="bilinear", align_corners=True)
    assert torch.equal(same, image)


@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_images_are_resized_for_encoders_of_one_size(size, network):
    kwargs = {"img_size": size}
    model = small(network, "beit_base_patch16_224", decoder_type="linear", encoder_kwargs=kwargs).eval()
    assert model.encoder.plan.only_size == size
    image = torch.randn(1, 3, 80, 50)
    resized = torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=True)
    with torch.no_grad():
        levels, logits = model.encode(image), model(image).logits
        expected = model.encode(resized)
    assert levels.high.shape[-2:] == (size[0] // 16, size[1] // 16)
    assert all(torch.equal(one, other) for one, other in zip(levels, expected, strict=True))
    assert logits.shape == (1, 5, 80, 50) and logits.isfinite().all()


# ------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    "depth, expected",
    [(12, (2, 5, 8, 11)), (6, (0, 2, 3, 5)), (3, (0, 1, 2))],
)
def test_levels_lie_evenly_over_the_depth(depth, expected):
    """Those that UniMatch V2 takes of twelve."""
    kwargs = {**SHALLOW, "depth": depth}
    assert plan_encoder("vit_tiny_patch16_224", None, kwargs).options["out_indices"] == expected


def test_blocks_of_ones_own(network, tmp_path):
    options = {"encoder_kwargs": {"depth": 6}, "out_indices": [0, 2, 3, 4]}
    model = small(network, "vit_tiny_patch16_224", **options).eval()
    assert len(model.encoder.body.model.blocks) == 5  # what lies behind the last is left out
    model.save_pretrained(tmp_path)
    assert CorrMatchForSegmentation.from_pretrained(tmp_path).config.out_indices == [0, 2, 3, 4]
    for wrong in ([0, 2, 3, 6], [2, 0, 3, 4], [0, 0, 1, 2]):
        with pytest.raises(ValueError, match=r"increasing block numbers of encoder .*, 0 to 5, not \["):
            small(network, "vit_tiny_patch16_224", encoder_kwargs={"depth": 6}, out_indices=wrong)
    with pytest.raises(ValueError, match=r"out_indices select blocks.*'resnet18' has a pyramid"):
        network(out_indices=[0, 1])


def test_levels_can_be_copied():
    levels = CorrMatchFeatures([torch.ones(1), torch.zeros(2)])
    again = copy.deepcopy(levels)
    assert type(again) is CorrMatchFeatures and torch.equal(again.high, levels.high) and len(again) == 2


def test_planning_even_the_largest_takes_seconds_and_no_memory():
    plan = plan_encoder("vit_giant_patch14_dinov2", None, {})
    assert plan.options["out_indices"] == (9, 19, 29, 39) and plan.strides == (14,) * 4


# ------------------------------------------------------------------------------------ training and graphs


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "beit_base_patch16_224"]
)
def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less(name, network):
    model = small(network, name).train()
    model.correlation.dropout.p = 0.0
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    labels = torch.randint(5, (2, 64, 64), generator=generator)
    gradients, kept = [], []
    for on in (False, True):
        if on:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.zero_grad()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t
        ):
            loss = model(images, labels=labels).loss
        kept.append(sum(sizes))
        loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters()})
    for key in gradients[0]:
        torch.testing.assert_close(gradients[1][key], gradients[0][key], rtol=1e-3, atol=1e-5)
    assert kept[1] < kept[0]
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


@pytest.mark.parametrize(
    "name, decoder", [("vit_small_patch14_dinov2", "linear"), ("vit_small_patch16_dinov3", "dpt")]
)
def test_compiles_to_one_graph(name, decoder, network):
    model, image = small(network, name, decoder_type=decoder).eval(), torch.randn(2, 3, 49, 67)
    with torch.no_grad():
        expected = model(image).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(image).logits, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name, decoder", [("vit_small_patch14_reg4_dinov2", "dpt"), ("eva02_tiny_patch14_224", "linear")]
)
def test_precision_layout_and_a_batch_of_one(name, decoder, network):
    model = small(network, name, decoder_type=decoder).eval()
    images, labels = torch.randn(2, 3, 49, 67), torch.randint(5, (2, 49, 67))
    with torch.no_grad():
        expected = model(images, labels=labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(images, labels=labels)
    assert autocast.query.dtype == torch.bfloat16
    assert autocast.loss.dtype == autocast.correlation_logits.dtype == torch.float32
    torch.testing.assert_close(autocast.loss, expected.loss, rtol=0.02, atol=0)

    in_pixels = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found = in_pixels(images.to(memory_format=torch.channels_last), output_correlation=True)
    for key in ("logits", "correlation_logits"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)

    # No norm looks at the batch: in train mode, too, an image alone gives what it gives among others.
    alone = model.train()(images[:1], labels=labels[:1])
    torch.testing.assert_close(alone.logits, expected.logits[:1], rtol=1e-4, atol=1e-5)
    model(images[:1, :, :14, :14], labels=labels[:1, :14, :14]).loss.backward()  # of one patch
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# -------------------------------------------------------------------------------------------- weight files


def weight_file(tmp_path, name, **kwargs):
    """Of the whole timm model, with a classifier of its own and no weight left at zero."""
    model = timm.create_model(name, num_classes=7, **ALL[name][0], **kwargs)
    state = {key: value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value
             for key, value in model.state_dict().items()}  # fmt: skip
    save_file(state, tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


@pytest.mark.parametrize("name", ALL)
def test_weights_from_a_file(name, config, tmp_path):
    path = weight_file(tmp_path, name)
    mine = config(encoder_name=name, encoder_kwargs=ALL[name][0], decoder_type="linear")
    model = CorrMatchForSegmentation.from_encoder_pretrained(mine, path)
    state = load_file(path)
    for key, value in model.encoder.body.model.state_dict().items():
        key = key if key in state else f"fc_{key}"  # the final norm of models that average their tokens
        assert torch.equal(value, state[key]), key
    assert model.config.encoder_origin == "whole.safetensors"


@pytest.mark.parametrize(
    "name, tokens", [("vit_small_patch14_dinov2", 1), ("vit_small_patch14_reg4_dinov2", 0)]
)
def test_position_embeddings_of_another_image_size_are_resampled(name, tokens, config, tmp_path):
    """Those of patches alone; the class token's, where it has one, is as it was."""
    path = weight_file(tmp_path, name, img_size=56)
    mine = config(encoder_name=name, encoder_kwargs={**SHALLOW, "img_size": 70}, decoder_type="dpt")
    state = CorrMatchForSegmentation.from_encoder_pretrained(mine, path).encoder.body.model.state_dict()
    found, stored = state["pos_embed"], load_file(path)["pos_embed"]
    grid = stored[:, tokens:].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (5, 5), mode="bicubic", antialias=True)
    torch.testing.assert_close(found[:, tokens:], grid.flatten(2).transpose(1, 2))
    torch.testing.assert_close(found[:, :tokens], stored[:, :tokens])
    others = load_file(path)
    assert all(torch.equal(value, others[key]) for key, value in state.items() if key != "pos_embed")


def test_patches_of_another_size_are_resampled(config, tmp_path):
    """The new weights see in an enlarged patch what the file's see in the patch."""
    name = "vit_small_patch14_dinov2"
    path = weight_file(tmp_path, name, img_size=56)
    kwargs = {**SHALLOW, "img_size": 64, "patch_size": 16}
    mine = config(encoder_name=name, encoder_kwargs=kwargs, decoder_type="dpt")
    model = CorrMatchForSegmentation.from_encoder_pretrained(mine, path)
    state, stored = model.encoder.body.model.state_dict(), load_file(path)
    assert model.config.output_stride == 16 and torch.equal(state["pos_embed"], stored["pos_embed"])
    patches = torch.randn(4, 3, 14, 14)
    larger = torch.nn.functional.interpolate(patches, (16, 16), mode="bicubic", antialias=True)
    expected, found = (
        torch.einsum("nchw,dchw->nd", each, weights["patch_embed.proj.weight"])
        for each, weights in ((patches, stored), (larger, state))
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "lacking", ["pos_embed", "blocks.2.ls1.gamma", "norm.weight", "blocks.3.attn.qkv.bias"]
)
def test_missing_weights_are_listed(lacking, config, tmp_path):
    path = weight_file(tmp_path, "vit_small_patch14_dinov2")
    state = load_file(path)
    del state[lacking]
    save_file(state, path)
    mine = config(encoder_name="vit_small_patch14_dinov2", encoder_kwargs=SHALLOW, decoder_type="dpt")
    with pytest.raises(ValueError, match=f"lacks weights of encoder .*{lacking}"):
        CorrMatchForSegmentation.from_encoder_pretrained(mine, path)


@pytest.mark.parametrize("lacking", ["pos_embed", "reg_token", "blocks.2.ls1.gamma"])
def test_incomplete_encoders_are_refused(lacking, network, tmp_path):
    """Bare parameters, which transformers would leave as memory found them."""
    small(network, "vit_small_patch14_reg4_dinov2").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[f"encoder.body.model.{lacking}"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks weights of encoder .*{lacking}"):
        CorrMatchForSegmentation.from_pretrained(tmp_path)


def test_a_configuration_that_asks_for_large_tables_is_refused(network, tmp_path):
    """Relative positions need memory that no weight accounts for."""
    small(network, "beit_base_patch16_224").save_pretrained(tmp_path)
    config = CorrMatchConfig.from_pretrained(tmp_path)
    config.encoder_kwargs = {**FIXED, "img_size": 4096}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another model|lacks weights"):
        CorrMatchForSegmentation.from_pretrained(tmp_path)


def test_timms_initialisation_survives():
    torch.manual_seed(3)
    expected = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True, **SHALLOW)
    torch.manual_seed(3)
    config = CorrMatchConfig(
        encoder_name="vit_small_patch14_dinov2", encoder_kwargs=SHALLOW, decoder_type="dpt", num_labels=5
    )
    state = CorrMatchForSegmentation(config).encoder.body.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())

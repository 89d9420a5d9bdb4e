"""Every recipe parses, and the ablations reach what the paper varies."""

import pytest
import timm
import torch

from corrmatch_hf import CorrMatchForSegmentation
from corrmatch_hf.commands.arguments import RECIPES, parse
from corrmatch_hf.commands.train import GROUPS
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import UniMatchV2Options
from corrmatch_hf.methods.corrmatch import SOFT_LOSSES
from corrmatch_hf.methods.dynamic_threshold import UPDATES
from corrmatch_hf.model.configuration_corrmatch import CORRELATION_POSITIONS

ABLATIONS = sorted((RECIPES / "ablations").glob("*.yaml"))


def read(path):
    _, _, model, training, _, options = parse("train", *GROUPS, args=["--config", str(path)])
    return model, training, options


@pytest.mark.parametrize("path", [*sorted(RECIPES.glob("*.yaml")), *ABLATIONS], ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path):
    read(path)


def test_an_ablation_is_the_recipe_but_for_what_it_names():
    whole = read(RECIPES / "pascal.yaml")
    for path in ABLATIONS:
        named = {line.split(":")[0] for line in path.read_text().splitlines() if line[0] != "#"} - {"base"}
        changed = {
            key for one, other in zip(whole, read(path), strict=True) for key, value in vars(one).items()
            if vars(other)[key] != value
        }  # fmt: skip
        assert changed and changed <= named, path


# Of UniMatch V2's paper: crop, passes, GPUs, images on each.
UNIMATCH_V2 = {"pascal": (518, 60, 4, 4), "cityscapes": (798, 180, 4, 2), "ade20k": (518, 60, 4, 2)}


@pytest.mark.parametrize("dataset", UNIMATCH_V2)
@pytest.mark.parametrize("size, decoder_channels, width", [("small", 64, 384), ("base", 128, 768)])
def test_the_recipes_of_unimatch_v2(dataset, size, decoder_channels, width):
    """And what they ask for can be built: on the meta device, for the contents take a download."""
    crop, passes, gpus, images = UNIMATCH_V2[dataset]
    arguments, training, options = read(RECIPES / f"{dataset}_dinov2_{size}.yaml")
    assert isinstance(options, UniMatchV2Options) and options.confidence_threshold == 0.95
    assert (training.crop_size, training.num_epochs, training.per_device_batch_size) == (crop, passes, images)
    assert training.lr_reference_batch == gpus * images and not training.freeze_encoder
    assert training.learning_rate == 5e-6
    assert training.learning_rate * training.head_lr_multiplier == pytest.approx(2e-4)
    assert (training.optimizer, training.weight_decay, training.cutmix_partner) == ("adamw", 0.01, "reversed")
    if dataset == "cityscapes":
        assert options.labeled_loss == "ohem" and options.ohem_min_kept == gpus * 200_000
        assert (training.eval_window, training.eval_stride) == (crop, int(crop * 2 / 3))
    else:
        assert options.labeled_loss == "ce" and training.eval_window is None
    assert arguments.encoder_weights == "timm" and timm.get_pretrained_cfg(arguments.encoder_name).hf_hub_id
    with torch.device("meta"):
        model = CorrMatchForSegmentation(arguments.config(num_labels=21, correlation_head=False))
    assert crop % model.encoder.plan.size_multiple == 0
    assert model.encoder.channels == [width] * 4 and model.decoder.fused_channels == decoder_channels


def test_the_ablations_cover_every_choice():
    found = [read(path) for path in ABLATIONS]
    assert {model.correlation_position for model, _, _ in found} == set(CORRELATION_POSITIONS)
    assert {options.threshold_update for *_, options in found} == set(UPDATES)
    assert {options.soft_loss for *_, options in found} == set(SOFT_LOSSES)
    assert {options.shape_sampling for *_, options in found} == {"random", "uniform"}
    assert {options.num_shapes for *_, options in found} == {16, 32, 64, 128, 256}


def test_a_base_that_leads_in_a_circle_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(InputError, match="leads back"):
        read(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: none.yaml\n")
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read(tmp_path / "a.yaml")

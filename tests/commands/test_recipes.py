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
    steps = ["--max_steps", "1"] if path.stem == "paper" else []  # it goes with data of any size
    _, _, model, training, _, options = parse("train", *GROUPS, args=["--config", str(path), *steps])
    return model, training, options


@pytest.mark.parametrize("path", [*sorted(RECIPES.glob("*.yaml")), *ABLATIONS], ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path):
    assert [text for group in read(path) for text in group.idle()] == []


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


def chosen(*args):
    choice, _, _, training, _, options = parse(
        "train", *GROUPS, args=args, default_recipe="synthetic", photos_recipe="photos"
    )
    return choice.method, training.optimizer, options


def test_photos_of_ones_own_have_a_recipe_unless_something_else_is_chosen():
    own = ("--data_dir", "photos")
    method, optimizer, options = chosen(*own)
    assert (method, optimizer) == ("gatematch", "adamw") and options.teacher_rounds == 2
    assert chosen(*own, "--confidence_threshold", "0.9", "--num_epochs", "2")[2].confidence_threshold == 0.9
    for other in (("--config", "paper"), ("--method", "corrmatch"), ("--optimizer", "sgd")):
        assert chosen(*own, "--max_steps", "1", *other)[:2] == ("corrmatch", "sgd")
    assert chosen("--dataset_name", "synthetic", "--max_steps", "1")[:2] == ("corrmatch", "sgd")
    method, optimizer, options = chosen()  # the built-in set, by its own recipe
    assert (method, optimizer, options.threshold) == ("gatematch", "adamw", "global")
    assert chosen(*own, "--config", "photos", "--method", "supervised")[:2] == ("supervised", "adamw")
    # The recipe's options of its own method leave those of others as they are.
    for other in ("fixmatch", "unimatch", "unimatch_v2", "ipixmatch"):
        options = chosen(*own, "--config", "photos", "--method", other)[2]
        assert options == type(options)()


def test_the_papers_recipe_is_what_corrmatch_does_by_default():
    paper = read(RECIPES / "paper.yaml")
    plain = parse("train", *GROUPS, args=["--method", "corrmatch", "--max_steps", "1"])
    assert vars(paper[1]) == vars(plain[3]) and vars(paper[2]) == vars(plain[5])

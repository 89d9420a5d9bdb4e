"""Command line and YAML are one thing, and mistakes in either are named."""

import json

import pytest
import yaml

from corrmatch_hf.commands import check, evaluate
from corrmatch_hf.commands.arguments import RECIPES, parse
from corrmatch_hf.commands.train import GROUPS
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import CorrMatch, Supervised
from corrmatch_hf.training import TrainingConfig

from ..conftest import write_synthetic


def test_command_line_overrides_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("method: corrmatch\ncrop_size: 99\nlearning_rate: 1e-2\nnum_shapes: 7\nnum_epochs: 3\n")
    _, _, model, config, method, options = parse(
        "train",
        *GROUPS,
        args=["--config", str(path), "--crop_size", "65", "--output_stride=8", "--max_steps", "5"],
    )
    assert (config.crop_size, config.learning_rate, model.output_stride) == (65, 0.01, 8)
    assert (config.max_steps, config.num_epochs) == (5, None), "the command line's length replaces the YAML's"
    assert method is CorrMatch and options.num_shapes == 7


def test_one_yaml_serves_several_methods(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("num_shapes: 7\nmax_steps: 1\n")
    *_, method, options = parse("train", *GROUPS, args=["--config", str(path), "--method", "supervised"])
    assert method is Supervised and not hasattr(options, "num_shapes")


def test_check_accepts_the_yaml_of_a_training(tmp_path, capsys):
    path, photos = tmp_path / "run.yaml", tmp_path / "photos"
    write_synthetic(photos, 2, 1)
    path.write_text(
        f"data_dir: {photos}\nmethod: gatematch\nencoder_name: test_resnet\nmax_steps: 1\nnum_shapes: 7\nnum_workers:\n"
    )
    check.main(["--config", str(path)])
    assert "labelled    2 images" in capsys.readouterr().out
    # Not evaluate, whose options for sliding windows have other names than those of training.
    with pytest.raises(InputError, match="'encoder_name'"):
        evaluate.main(["--config", str(path), "--model", "nothing"])
    path.write_text(path.read_text() + "max_stebs: 1\n")
    with pytest.raises(InputError, match=r"Unknown option in .* 'max_stebs': did you mean 'max_steps'"):
        check.main(["--config", str(path)])


def test_the_default_configuration_is_for_the_built_in_data_only():
    encoder = yaml.safe_load((RECIPES / "synthetic.yaml").read_text())["encoder_name"]
    assert parse("train", *GROUPS, args=[], default_recipe="synthetic")[2].encoder_name == encoder
    named = ["--data_dir", "x", "--max_steps", "1"]
    assert parse("train", *GROUPS, args=named, default_recipe="synthetic")[2].encoder_name == "resnet50"


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        ("crop_sise: 3", [], "crop_size"),
        ("method: corrmatsch", [], "corrmatch"),
        ("- a list", [], "option: value"),
        ("seed: null", [], "seed in .* is None"),
        ("crop_size: [33]", [], "give one value"),
        ("a: [", [], "not valid YAML"),
        ("seed: 1\nmax_steps: 2\nseed: 3", [], "it has seed more than once"),
        ("", ["--method", "supervized"], "supervised"),
    ],
)
def test_mistakes(tmp_path, text, args, message):
    path = tmp_path / "run.yaml"
    path.write_text(text or "max_steps: 1")
    with pytest.raises(InputError, match=message):
        parse("train", *GROUPS, args=["--config", str(path), *args])


def test_names_and_colours_of_classes_may_be_yaml_themselves(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data_dir: photos\nid2label: {7: road, 26: car, 0: null}\nlabel_colors: [[0, 0, 0], [1, 2, 3]]\nmax_steps: 1\n"
    )
    data = next(
        each for each in parse("train", *GROUPS, args=["--config", str(path)]) if hasattr(each, "id2label")
    )
    assert json.loads(data.id2label) == {"7": "road", "26": "car", "0": None}
    assert json.loads(data.label_colors) == [[0, 0, 0], [1, 2, 3]]


def test_yaml_values_are_read_as_the_command_line_reads_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("max_steps: 2.5\nstreaming: perhaps\n")
    with pytest.raises(
        InputError, match=r"--max_steps is '2\.5'; give a whole number.*--streaming is 'perhaps'"
    ):
        parse("train", *GROUPS, args=["--config", str(path)])
    with pytest.raises(InputError, match=r"--learning_rate is 'fast'; give a number"):
        parse("train", *GROUPS, args=["--max_steps", "1", "--learning_rate", "fast"])


@pytest.mark.parametrize(
    ("args", "streaming", "channels_last"),
    [
        ([], False, True),
        (["--streaming", "--channels_last", "False"], True, False),
        (["--streaming", "True", "--no_channels_last"], True, False),
        (["--streaming=yes", "--channels-last=0"], True, False),
    ],
)
def test_switches(args, streaming, channels_last):
    _, data, _, config, _, _ = parse("train", *GROUPS, args=["--max_steps", "1", *args])
    assert (data.streaming, config.channels_last) == (streaming, channels_last)


def test_a_drawn_share_on_the_command_line_replaces_the_count_of_the_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("labeled_count: 12\nmax_steps: 1\ndata_dir: photos")
    data = parse("train", *GROUPS, args=["--config", str(path), "--labeled_fraction", "0.5"])[1]
    assert (data.labeled_count, data.labeled_fraction) == (None, 0.5)


def test_values_of_many_parts(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "max_steps: 1\nencoder_weights: none\nencoder_name: test_vit\ndecoder: dpt\nencoder_kwargs: {depth: 8}\n"
        "pyramid_channels: [4, 8, 16, 32]\n"
    )
    model = parse("train", *GROUPS, args=["--config", str(path), "--out_indices", "[0, 2, 4, 7]"])[2]
    config = model.config()
    assert config.encoder_kwargs == {"depth": 8} and config.out_indices == [0, 2, 4, 7]
    assert config.pyramid_channels == [4, 8, 16, 32]
    words = [
        "--encoder_kwargs",
        '{"depth": 9}',
        "--out_indices",
        "0",
        "2",
        "4",
        "8",
        "--pyramid_channels=[1, 2, 3, 4]",
    ]
    config = parse("train", *GROUPS, args=["--config", str(path), *words])[2].config()
    assert config.encoder_kwargs == {"depth": 9} and config.out_indices == [0, 2, 4, 8]
    assert config.pyramid_channels == [1, 2, 3, 4]
    for option, value in (("out_indices", "1 2"), ("out_indices", '["a"]'), ("encoder_kwargs", "[1]")):
        with pytest.raises(InputError, match=f"--{option} is .*; give"):
            parse("train", *GROUPS, args=["--config", str(path), f"--{option}", value])


def test_the_last_of_a_repeated_option_counts(tmp_path):
    (tmp_path / "a.yaml").write_text("max_steps: 1")
    args = [
        "--config",
        "synthetic",
        "--config",
        str(tmp_path / "a.yaml"),
        "--method=cps",
        "--method",
        "fixmatch",
    ]
    choice, *_, config, method, options = parse("train", *GROUPS, args=args)
    assert (choice.method, method.name, config.max_steps) == ("fixmatch", "fixmatch", 1)
    assert isinstance(options, method.Options)
    for args in (["--config"], ["--config="]):
        with pytest.raises(InputError, match="--config needs a file"):
            parse("train", *GROUPS, args=args)


def test_a_config_of_version_0_1_with_its_removed_options(tmp_path):
    path = tmp_path / "training_config.yaml"
    path.write_text(
        "max_steps: 1\nrecolor_on_device: false\ncpu_threads: 2\ncard_pictures: true\nmixed_precision: no"
    )
    assert parse("train", *GROUPS, args=["--config", str(path)])[3].mixed_precision == "no"
    path.write_text("max_steps: 1\ncard_pictures: false")
    with pytest.raises(InputError, match="card_pictures was removed"):
        parse("train", *GROUPS, args=["--config", str(path)])


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"1: a", b"method: [cps]", b""])
def test_broken_yaml(text, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    with pytest.raises(InputError):
        parse("train", *GROUPS, args=["--config", str(path)])


def test_missing_yaml():
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        parse("train", *GROUPS, args=["--config", "nowhere.yaml"])


def test_all_mistakes_are_in_one_message_before_anything_is_loaded(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "crop_sise: 3\nnum_shapse: 4\nseed: [1]\ndata_dir: nowhere\nmomentum: 2\nlabeled_fraction: 0\n"
    )
    args = [
        "--crop_size",
        "-5",
        "--num_shapes",
        "0",
        "--soft_weight",
        "-1",
        "--output_stride",
        "7",
        "--learning_rat",
        "1",
    ]
    with pytest.raises(InputError) as error:
        parse("train", *GROUPS, args=["--config", str(path), *args])
    for said in (
        "'crop_sise'", "'num_shapse'", "seed in ", "'--learning_rat'", "--labeled_fraction is 0.0", "output_stride",
        "--crop_size is -5", "--momentum is 2.0", "neither was given", "--num_shapes is 0", "--soft_weight is -1.0",
    ):  # fmt: skip
        assert said in str(error.value), said


def test_unknown_option_names_the_nearest():
    with pytest.raises(InputError, match=r"'--crop_sise': did you mean '--crop_size'.*\?$"):
        parse("train", *GROUPS, args=["--crop_sise", "3", "--max_steps", "1"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cps_weight", "1"], "--cps_weight is an option of --method cps, not of corrmatch"),
        (["--method", "supervised", "--teacher_decay", "1"], "--method .* and of .*, not of supervised"),
        (["--xyzw", "1"], "'--xyzw': corrmatch train --help-all lists the [0-9]+ that exist"),
        (
            ["--output_stride", "none"],
            "--output_stride is 'none'; give a whole number, or leave the option out",
        ),
        (["--learning_rate", "-1e-3"], "--learning_rate is -0.001; it must be above 0"),
    ],
)
def test_a_wrong_option_or_value_is_named_with_its_remedy(args, message):
    with pytest.raises(InputError, match=message):
        parse("train", *GROUPS, args=["--max_steps", "1", *args])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_size": -1}, "--crop_size is -1"),
        ({"scale_max": float("inf")}, "--scale_max is inf"),
        ({"report_to": "tensorbord"}, "'tensorboard'"),
        ({"learning_rate": 0}, "--learning_rate is 0"),
        ({"optimizer": "adam"}, "sgd, adamw"),
        ({"scale_min": 2, "scale_max": 1}, "--scale_max"),
        ({"ema_decay": 1.0}, "--ema_decay"),
        ({"num_epochs": 3}, "both were given"),
        ({"max_steps": None}, "neither was given"),
        ({"cutmix_partner": "me"}, "same_image, batch, reversed"),
        ({"overwrite": True, "resume_from_checkpoint": "latest"}, "--overwrite cannot be combined"),
        ({"resume_from_checkpoint": ""}, "--resume_from_checkpoint is empty"),
        ({"eval_stride": 4}, "--eval_window"),
        ({"layer_decay": 0.0}, "--layer_decay is 0.0"),
        ({"layer_decay": 1.5}, "--layer_decay is 1.5"),
        (
            {"layer_decay": 0.5, "freeze_encoder": True},
            "--layer_decay cannot be combined with --freeze_encoder",
        ),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig(**({"max_steps": 1} | values)).check()

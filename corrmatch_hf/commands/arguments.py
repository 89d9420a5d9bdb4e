"""What the example commands accept: dataclasses read from the command line and from YAML alike."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from transformers import HfArgumentParser

from ..data.load import load_semi_dataset
from ..data.options import DataOptions
from ..data.semi_dataset import SemiDataset
from ..errors import InputError, refuse, unknown_name
from ..methods import METHODS, Method, method_class
from ..model import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from ..model.configuration_corrmatch import DECODERS
from ..training.config import option


@dataclass
class DataArguments:
    """Where the images are. Without a dataset the built-in synthetic one is made."""

    dataset_name: str | None = option(
        None,
        "Hub id, or anything `datasets.load_dataset` reads; the built-in synthetic set if nothing is named.",
    )
    dataset_config_name: str | None = option(None, "Configuration of the Hub dataset.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of the Hub dataset.")
    data_dir: str | None = option(
        None,
        "Local folder: split/{images,masks}, or JPEGImages + SegmentationClass; root of the lists' entries.",
    )
    train_images: str | None = option(None, "Folder of training images, if the layout is another.")
    train_masks: str | None = option(None, "Folder of training masks.")
    validation_images: str | None = option(None, "Folder of validation images.")
    validation_masks: str | None = option(None, "Folder of validation masks.")
    labeled_list: str | None = option(
        None, "Text file with an 'image mask' or 'image' a line: the labelled images."
    )
    unlabeled_list: str | None = option(None, "The same for the unlabelled images; masks in it are not read.")
    validation_list: str | None = option(None, "The same for validation.")
    labeled_fraction: float | None = option(None, "Share of the training images to use with their masks.")
    labeled_count: int | None = option(None, "Number of training images to use with their masks.")
    split_seed: int = option(0, "Seed of the draw of labelled images.")
    extra_unlabeled: str | None = option(None, "Folder or dataset with further images, without masks.")
    streaming: bool = option(False, "Read the unlabelled images as a stream (pools too large to list).")
    train_split: str = option("train", "Name of the training split.")
    validation_split: str | None = option(None, "Name of the split to evaluate on; found if not given.")
    image_column: str | None = option(None, "Column of the images; found if not given.")
    label_column: str | None = option(None, "Column of the masks; found if not given.")
    id2label: str | None = option(None, 'JSON file with the classes\' names, {"0": "road", ...}.')
    num_labels: int | None = option(None, "Number of classes, where no file names them; found if not given.")
    reduce_labels: bool = option(False, "Mask value 0 means ignored, and classes start at 1 (ADE20K).")
    ignore_index: int = option(255, "Mask value of the pixels that do not count.")
    label_colors: str | None = option(
        None, "JSON file with the classes' colours [[r, g, b], ...] for RGB-coded masks."
    )

    def load(self) -> SemiDataset:
        """The dataset these arguments describe."""
        return load_semi_dataset(**dataclasses.asdict(self))

    def problems(self) -> list[str]:
        """What cannot work, a sentence each without its full stop, before anything is read."""
        return DataOptions(**dataclasses.asdict(self)).problems()


JSON_OPTIONS = {"encoder_kwargs": dict, "out_indices": list, "pyramid_channels": list}


@dataclass
class ModelArguments:
    """The network."""

    encoder_name: str = option(
        "resnet50", "timm name of an encoder with a pyramid of features, or of a plain vision transformer."
    )
    encoder_weights: str = option(
        "timm", "'timm' for timm's pretrained weights from the Hub, 'none', or a .safetensors or .pth file."
    )
    output_stride: int | None = option(
        None,
        "Stride of the encoder's last features: 8 (the paper), 16 or 32; if not given 16 where it can, else its own.",
    )
    encoder_kwargs: str | None = option(
        None, """Further arguments of the timm encoder, as JSON: '{"img_size": 384}'."""
    )
    out_indices: str | None = option(
        None,
        "Blocks of a plain transformer whose outputs the decoder sees, as JSON: '[4, 11, 17, 23]'; if not given four "
        "evenly over its depth.",
    )
    decoder: str = option(
        "deeplabv3plus",
        "deeplabv3plus for encoders with a pyramid, dpt for plain transformers, linear (the lightest) for both.",
        DECODERS,
    )
    correlation_position: str = option(
        "encoder",
        "Features the correlation head takes (paper table 8).",
        ("encoder", "aspp", "fusion", "classifier"),
    )
    correlation_scale: str = option(
        "scores",
        "What is divided by sqrt(D): scores before the softmax (published runs), or rows after it (the paper).",
        ("scores", "rows"),
    )
    correlation_channels: int = option(256, "Channels of the correlation head's projection.")
    aspp_channels: int = option(256, "Channels of each branch of the ASPP.")
    low_level_channels: int = option(48, "Channels of the low-level features in the decoder.")
    decoder_channels: int = option(256, "Channels of the fused features of deeplabv3plus and dpt.")
    pyramid_channels: str | None = option(
        None,
        "Channels of dpt's four levels, as JSON: '[256, 512, 1024, 1024]'; if not given an eighth, a quarter, a half "
        "and all of the encoder's.",
    )
    gradient_checkpointing: bool = option(
        False, "Recompute the encoder in the backward pass: less memory, slower."
    )

    def build(
        self, data: SemiDataset, correlation_head: bool
    ) -> tuple[CorrMatchForSegmentation, CorrMatchImageProcessor]:
        """The model for the dataset's classes, and the processor with its encoder's normalisation."""
        try:
            config = self._config(
                correlation_head=correlation_head, ignore_index=data.ignore_index, id2label=data.id2label
            )
            if self.encoder_weights == "none":
                model = CorrMatchForSegmentation(config)
            else:
                weights = None if self.encoder_weights == "timm" else self.encoder_weights
                model = CorrMatchForSegmentation.from_encoder_pretrained(config, weights)
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
        if self.gradient_checkpointing:
            model.activation_checkpointing_enable()
        pretrained = timm.get_pretrained_cfg(self.encoder_name)
        normalisation = (
            {"image_mean": list(pretrained.mean), "image_std": list(pretrained.std)} if pretrained else {}
        )
        processor = CorrMatchImageProcessor(ignore_index=data.ignore_index, **normalisation)
        return model, processor

    def problems(self) -> list[str]:
        """What cannot work, a sentence each without its full stop, before anything is built."""
        found = []
        try:
            self._config()
        except ValueError as error:
            found.append(str(error).rstrip("."))
        weights = self.encoder_weights
        if weights not in ("timm", "none") and not Path(weights).is_file():
            found.append(f"--encoder_weights {weights}: there is no such file; give one, or 'timm' or 'none'")
        return found

    def _config(self, **others) -> CorrMatchConfig:
        own = {
            name: value for name, value in vars(self).items() if name in CorrMatchConfig.__dataclass_fields__
        }
        for name, kind in JSON_OPTIONS.items():
            if own[name] is not None:
                own[name] = _from_json(name, own[name], kind)
        return CorrMatchConfig(**own, **others)


@dataclass
class MethodArguments:
    """Which method; its options follow from the choice."""

    method: str = option("corrmatch", "Training method.", tuple(METHODS))


def parse(
    *groups: type,
    args: Sequence[str] | None = None,
    default_config: Path | None = None,
    description: str = "",
) -> tuple[Any, ...]:
    """Instances of the dataclasses `groups`; with `MethodArguments` among them, the method's class and options, too.

    `--config FILE.yaml` gives defaults that the command line overrides; `default_config` is taken when neither
    `--config` nor a dataset is named.

    Raises:
        InputError: everything at once that cannot work: unknown keys of the YAML and unknown options, with the nearest
            name, and what the dataclasses' `problems()` say of their values.
    """
    problems: list[str] = []
    args = list(sys.argv[1:] if args is None else args)
    config_path = _value_of("--config", args, remove=True)
    named = any(
        a.split("=")[0] in ("--dataset_name", "--data_dir", "--train_images", "--labeled_list") for a in args
    )
    if config_path is None and default_config is not None and not named:
        config_path = str(default_config)
    values = _read_yaml(config_path) if config_path else {}
    types = list(groups)
    method: type[Method] | None = None
    if MethodArguments in groups:
        method = method_class(_value_of("--method", args) or values.get("method") or MethodArguments.method)
        types.append(method.Options)
    given = {a.split("=")[0].lstrip("-") for a in args if a.startswith("--")}
    for pair in (("max_steps", "num_epochs"), ("labeled_count", "labeled_fraction")):
        for one, other in (pair, pair[::-1]):
            if one in given and other not in given:  # the command line's choice replaces the YAML's
                values.pop(other, None)
    parser = HfArgumentParser(types, description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="YAML file with defaults for all options.")
    known = {field.name for cls in types for field in dataclasses.fields(cls)}
    elsewhere = {field.name for cls in METHODS.values() for field in dataclasses.fields(cls.Options)}
    for key in list(values):
        if key in known:
            continue
        if method is not None and key in elsewhere:
            del values[key]  # another method's option: one YAML serves several methods
            continue
        problems.append(str(unknown_name(f"option in {config_path}", key, known)).rstrip("."))
        del values[key]
    optional = {field.name for cls in types for field in dataclasses.fields(cls) if field.default is None}
    for key, value in list(values.items()):
        if key in JSON_OPTIONS and isinstance(value, JSON_OPTIONS[key]):
            values[key] = json.dumps(value)
            continue
        if isinstance(value, list | dict) or (value is None and key not in optional):
            problems.append(f"{key} in {config_path} is {value!r}; give one value")
            del values[key]
            continue
        # As text, so that a value from YAML is read exactly as one from the command line.
        values[key] = None if value is None else str(value)
    parser.set_defaults(**values)
    *parsed, _, unused = parser.parse_args_into_dataclasses(args=args, return_remaining_strings=True)
    flags = [f"--{name}" for name in sorted(known)]
    problems += [
        str(unknown_name("option", each.split("=")[0], flags)).rstrip(".")
        for each in unused
        if each.startswith("-")
    ] or [f"Unknown argument {each!r}: options start with --" for each in unused]
    if method is not None:  # for training; to evaluate, a training split need not be named
        for group in parsed:
            problems += getattr(group, "problems", list)()
    refuse(problems)
    if method is not None:
        return (*parsed[:-1], method, parsed[-1])
    return tuple(parsed)


def _from_json(name: str, text: str, kind: type) -> dict | list:
    """An option whose value is JSON.

    Raises:
        ValueError: it is none, or of another kind; of a list, something other than numbers.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    numbers = kind is dict or (isinstance(value, list) and all(type(each) is int for each in value))
    if not isinstance(value, kind) or not numbers:
        example = '{"img_size": 384}' if kind is dict else "[4, 11, 17, 23]"
        raise ValueError(f"--{name} is {text!r}; give JSON such as '{example}'")
    return value


def _value_of(flag: str, args: list[str], remove: bool = False) -> str | None:
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            value, end = args[i + 1], i + 2
        elif arg.startswith(f"{flag}="):
            value, end = arg.split("=", 1)[1], i + 1
        else:
            continue
        if remove:
            del args[i:end]
        return value
    return None


def _read_yaml(path: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The options of a file, on top of those of the file that it names as `base`, relative to itself."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"--config {path}: no such file.") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path} must hold 'option: value' lines.")
    if "base" not in values:
        return values
    seen = (*seen, Path(path).resolve())
    base = Path(path).parent / str(values.pop("base"))
    if base.resolve() in seen:
        raise InputError(f"--config {path}: base {base} leads back to a file that it came from.")
    return _read_yaml(str(base), seen) | values


# -------------------- The command line that started this process, for the record.


def launch_command() -> str:
    """As it would be typed again. Flags of the launcher itself are not known to the script it starts."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        launcher = ["accelerate", "launch"]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    else:
        launcher = ["python"]
    return shlex.join([*launcher, *sys.argv])

"""Checkpoints: writing and reading them, which of them are whole, and whether one fits the run that resumes.

checkpoints/step_00000500/
    model.safetensors, optimizer.bin, ...    written by Accelerate: the method, optimiser, schedule, average, seeds
    trainer_state.json                       step, metrics, options, ...
    stream_0.json, stream_1.json, ...        with a stream: how far each process has read its shards
    checksums.json                           written last: size and SHA-256 of all the others
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..distributed import succeeded_everywhere
from ..errors import InputError
from ..methods.base import Method
from ..text import library_versions, without_tokens
from .atomic_write import delete, move_folder, recover_folder, remove_folder
from .config import TrainingConfig
from .output_folder import reason, warn_not_saved

STATE_FILE = "trainer_state.json"
CHECKSUMS = "checksums.json"
_NAME = re.compile(r"step_(\d+)")

# Options that may change between the parts of a run: they do not affect what is trained.
RESUMABLE_OPTIONS = {
    "output_dir", "overwrite", "resume_from_checkpoint", "eval_steps", "eval_window", "eval_stride", "eval_batch_size",
    "save_steps", "max_checkpoints", "logging_steps", "report_to", "num_workers", "on_bad_sample",
    "save_inference_only", "push_to_hub", "hub_model_id", "hub_private", "hub_revision", "hub_strategy", "hub_license",
    "ddp_timeout", "on_non_finite", "max_skipped_steps",
}  # fmt: skip

# Fields of the model's configuration that decide which weights there are.
ARCHITECTURE = (
    "encoder_name", "encoder_kwargs", "out_indices", "pyramid_channels", "output_stride", "num_labels",
    "aspp_channels", "low_level_channels", "decoder_channels", "decoder_separable", "correlation_head",
    "correlation_position",
)  # fmt: skip


DECIDING_LIBRARIES = ("corrmatch_hf", "torch", "timm", "transformers")


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, whole or corrupt."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


# Writing


def write_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    stream_state: dict[str, Any] | None = None,
) -> Path | None:
    """Write everything that a resumed run needs and delete old checkpoints; all processes call this together.

    Args:
        accelerator: holds model, optimiser, schedule and average.
        folder: of the checkpoints.
        step: after which the checkpoint is written.
        state: the content of `trainer_state.json`.
        keep: how many checkpoints are kept.
        stream_state: how far this process has read its shards of a stream.

    Returns:
        The checkpoint, or None where any process failed to write it: a warning is printed, and older ones stay.
    """
    path = checkpoint_path(folder, step)
    temporary = folder / f".{path.name}.writing"
    if accelerator.is_main_process:
        delete(temporary)
    accelerator.wait_for_everyone()
    failure = None
    try:
        accelerator.save_state(str(temporary))
        if stream_state is not None:
            _stream_file(temporary, accelerator.process_index).write_text(json.dumps(stream_state))
    except Exception as error:  # whatever it is, the model can still be saved in another way
        failure = error
    if succeeded_everywhere(failure, accelerator.device) and accelerator.is_main_process:
        try:
            text = without_tokens(json.dumps(state, indent=2, default=str))
            (temporary / STATE_FILE).write_text(text, encoding="utf-8")
            write_checksums(temporary)
            move_folder(temporary, path)
        except Exception as error:
            failure = error
    if succeeded_everywhere(failure, accelerator.device):
        if accelerator.is_main_process:
            rotate(folder, keep, path)
        return path
    if accelerator.is_main_process:
        delete(temporary)
    if failure is not None:
        warn_not_saved(f"the checkpoint of step {step}", folder.parent, failure)
    accelerator.wait_for_everyone()
    return None


def packed_map(class_ids: np.ndarray) -> dict[str, Any]:
    """Class ids (H, W) as JSON values: compressed 16-bit numbers, in digits that cannot look like a token."""
    content = zlib.compress(class_ids.astype("<u2").tobytes())
    return {"shape": list(class_ids.shape), "zlib": content.hex()}


def unpacked_map(packed: dict[str, Any]) -> np.ndarray:
    """The class ids (H, W) of `packed_map`."""
    content = zlib.decompress(bytes.fromhex(packed["zlib"]))
    return np.frombuffer(content, dtype="<u2").reshape(packed["shape"]).astype(np.int64)


def write_checksums(path: Path) -> None:
    """The last file of a checkpoint: names, sizes and SHA-256 of all the others."""
    files = {p.relative_to(path).as_posix(): _fingerprint(p) for p in sorted(path.rglob("*")) if p.is_file()}
    (path / CHECKSUMS).write_text(json.dumps(files, indent=2), encoding="utf-8")


def rotate(folder: Path, keep: int, newest: Path) -> None:
    """Delete all checkpoints but the last `keep` up to `newest`, the one just written.

    Checkpoints of later steps come from a run that was resumed at an earlier step, or are corrupt; they would be
    mistaken for the latest. What cannot be deleted is only warned about: the new checkpoint is written.
    """
    found = list_checkpoints(folder)
    end = found.index(newest) + 1
    for path in (*found[end:], *found[: max(end - keep, 0)]):
        try:
            remove_folder(path)
        except OSError as error:
            print(
                f"\nwarning: could not delete the old checkpoint {path}: {reason(error)}. The new one, {newest.name}, "
                "is saved, and the training goes on; delete the old one yourself.",
                file=sys.stderr,
            )


def clean_up(folder: Path) -> None:
    """Remove what a killed process left half-written or half-deleted in the folder of checkpoints."""
    for left in folder.glob(".step_*") if folder.is_dir() else ():
        if match := re.fullmatch(r"\.(step_\d+)\.(writing|old)", left.name):
            recover_folder(folder / match[1])


# Reading


def find_checkpoint(name: str, folder: Path) -> Path:
    """The checkpoint for `--resume_from_checkpoint name`; "latest" is the newest one in `folder` that is whole.

    Raises:
        InputError: there is none, or the one named is corrupt.
    """
    if name == "latest":
        found = list_checkpoints(folder)
        for path in reversed(found):
            if (problem := find_corruption(path)) is None:
                return path
            warnings.warn(
                f"The checkpoint {path} is corrupt ({problem}); trying the one before.", stacklevel=6
            )
        raise InputError(
            f"--resume_from_checkpoint latest: there is no {'whole ' if found else ''}checkpoint in {folder}; "
            "leave the option out to start anew, or name the folder of a checkpoint."
        )
    path = Path(name)
    if not (path / STATE_FILE).is_file():
        raise InputError(
            f"--resume_from_checkpoint {name} is not a checkpoint ({STATE_FILE} is missing); "
            "name a step_... folder, or 'latest'."
        )
    if problem := find_corruption(path):
        raise InputError(
            f"--resume_from_checkpoint {name} is corrupt ({problem}); name another checkpoint, or 'latest'."
        )
    return path


def find_corruption(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where every file is as it was written."""
    try:
        files = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        expected = {name: [entry["bytes"], entry["sha256"]] for name, entry in files.items()}
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    for name, (size, digest) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} of {size} bytes"
        if _fingerprint(file)["sha256"] != digest:
            return f"{name} does not match its checksum"
    return None if STATE_FILE in expected else f"{STATE_FILE} is missing"


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def read_state(path: Path) -> dict[str, Any]:
    """The content of `trainer_state.json`."""
    return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))


def read_stream_state(path: Path, process: int) -> dict[str, Any] | None:
    """How far a process had read its shards of a stream; None where it read no shards of its own."""
    file = _stream_file(path, process)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _stream_file(path: Path, process: int) -> Path:
    return path / f"stream_{process}.json"


def load_checkpoint(accelerator: Accelerator, optimizer: torch.optim.Optimizer, path: Path) -> dict[str, Any]:
    """Load model, optimiser, schedule and average; returns the content of `trainer_state.json`."""
    try:
        accelerator.load_state(str(path))
    except (RuntimeError, ValueError, KeyError) as error:  # weights are missing, or differ in shape or number
        raise InputError(
            f"The checkpoint {path} does not fit the options of the method; resume with the options it was started "
            "with."
        ) from error
    # The fused optimiser walks through flat memory, so its state needs the memory format of the weights, whatever
    # --channels_last was when the checkpoint was written.
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return read_state(path)


# Whether a checkpoint fits


def architecture(method: Method, config: TrainingConfig) -> dict[str, Any]:
    """What must be equal for a checkpoint to be resumed; it is recorded in each of them."""
    return {
        "method": method.name,
        "ema": config.ema_decay is not None,
        # These two decide which weights are trained, and so the content of the optimiser.
        "freeze_encoder": config.freeze_encoder,
        "layer_decay": config.layer_decay,
        "teacher": getattr(method.options, "teacher", None),
        "decoder": method.segmentation_model.config.decoder_type,
        **{name: getattr(method.segmentation_model.config, name) for name in ARCHITECTURE},
    }


def deciding_versions() -> dict[str, str]:
    """{library: version} of what a run's numbers depend on; it is recorded in each checkpoint."""
    found = library_versions()
    return {name: found[name] for name in DECIDING_LIBRARIES if name in found}


def check_resumable(
    path: Path, method: Method, data: dict[str, str], config: TrainingConfig, max_steps: int, processes: int
) -> list[str]:
    """Refuse a checkpoint that a run cannot resume from.

    Args:
        path: a whole checkpoint.
        method, config, max_steps, processes: of the run that resumes.
        data: the `identity` of its dataset.

    Returns:
        A sentence for each reason why the resumed run will differ from an uninterrupted one.
    """
    saved = read_state(path)
    if saved["step"] > max_steps:
        raise InputError(
            f"The checkpoint {path} is of step {saved['step']}, but the run ends at step {max_steps}: raise "
            "--max_steps, or name an earlier checkpoint."
        )
    here = architecture(method, config)
    # Earlier versions recorded less: they had one decoder, and the rest is not known.
    there = here | {"decoder": "deeplabv3plus", "decoder_separable": False} | saved["architecture"]
    different = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if different:
        raise InputError(
            f"The checkpoint {path} has another architecture: {', '.join(different)}. "
            "Resume with the options it was started with."
        )
    # Options that the checkpoint did not record, or that no longer exist, are not compared.
    if saved.get("data", {}).get("unlabelled") == "a stream":  # earlier versions knew one order
        saved["config"].setdefault("stream_order", "total")
    before, options = saved["config"], dataclasses.asdict(config) | dataclasses.asdict(method.options)
    if before.get("card_pictures") is False and config.push_to_hub:
        raise InputError(  # the removed option kept the photos private
            f"The checkpoint {path} was written with --card_pictures False, an option that was removed, and "
            "--push_to_hub would publish validation photos: resume with --push_to_hub False, delete predictions.png "
            f"and samples from {config.output_dir}, then run: corrmatch push {config.output_dir}"
        )
    changes = [
        f"--{name} was {before[name]!r} when the checkpoint was written and is {value!r} now; the resumed run will not "
        "equal an uninterrupted one, and the optimiser keeps its own learning rate and weight decay."
        for name, value in options.items()
        if name not in RESUMABLE_OPTIONS and name in before and before[name] != value
    ]
    if different := _then_and_now(saved.get("data", {}), data, "{}: {} then, {} now"):
        changes.append(
            f"The checkpoint was written by a training on other data ({different}; the hexadecimal numbers "
            "are digests of file names and sizes). The resumed run will not equal an uninterrupted one; if this is not "
            "meant, give the data options it was started with."
        )
    versions = dict.fromkeys(DECIDING_LIBRARIES, "not installed") | deciding_versions()
    if different := _then_and_now(saved.get("versions", {}), versions, "{} {} then, {} now"):
        changes.append(
            f"The checkpoint was written with other versions ({different}); the resumed run may not equal "
            "an uninterrupted one."
        )
    if saved["processes"] != processes:
        changes.append(
            f"The checkpoint was written by {saved['processes']} processes and there are {processes} now. With the "
            "same total batch, images and augmentation stay the same, but BatchNorm's statistics (per process on "
            "CPUs), drop path and the order of sums differ."
        )
    return changes


def _then_and_now(then: dict[str, str], now: dict[str, str], form: str) -> str:
    """What differs, each as `form` of its name and both values; empty where nothing does."""
    return "; ".join(
        form.format(name, was, now.get(name)) for name, was in then.items() if was != now.get(name)
    )

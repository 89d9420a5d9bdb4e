"""Checkpoints: where they are, which of them are whole, and whether one belongs to a run."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

from ..errors import InputError
from .atomic_write import recover_folder, remove_folder

STATE_FILE = "trainer_state.json"
CHECKSUMS = "checksums.json"
_NAME = re.compile(r"step_(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first; `damage` says whether they are whole."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def rotate(folder: Path, keep: int, written: Path) -> None:
    """Delete all but the newest `keep` checkpoints up to the one just written.

    Those of later steps belong to a course of the run that was left, or are damaged; they would pass for the latest.
    """
    found = checkpoints(folder)
    end = found.index(written) + 1
    for path in (*found[end:], *found[: max(end - keep, 0)]):
        remove_folder(path)


def clean_up(folder: Path) -> None:
    """Remove what a killed process left half-written, half-deleted or half-replaced in the folder of checkpoints."""
    for left in folder.glob(".step_*") if folder.is_dir() else ():
        if match := re.fullmatch(r"\.(step_\d+)\.(writing|old)", left.name):
            recover_folder(folder / match[1])


def write_checksums(path: Path) -> None:
    """The last file of a checkpoint: names, sizes and SHA-256 of all the others."""
    files = {p.relative_to(path).as_posix(): _fingerprint(p) for p in sorted(path.rglob("*")) if p.is_file()}
    (path / CHECKSUMS).write_text(json.dumps(files, indent=2), encoding="utf-8")


def damage(path: Path) -> str | None:
    """What is wrong with the checkpoint, in a few words; None where every file is as it was written."""
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
            return f"{name} is not as it was written"
    return None if STATE_FILE in expected else f"{STATE_FILE} is missing"


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def find_checkpoint(name: str, folder: Path) -> Path:
    """The checkpoint a user means by `--resume_from_checkpoint name`: for "latest" the newest that is whole.

    Raises:
        InputError: there is none, or the one named is damaged.
    """
    if name == "latest":
        found = checkpoints(folder)
        for path in reversed(found):
            if (problem := damage(path)) is None:
                return path
            warnings.warn(
                f"The checkpoint {path} is damaged ({problem}); taking the one before.", stacklevel=4
            )
        raise InputError(
            f"--resume_from_checkpoint latest: there is no {'whole ' if found else ''}checkpoint in {folder}; "
            "leave the option out to start anew, or name a checkpoint folder."
        )
    path = Path(name)
    if not (path / STATE_FILE).is_file():
        raise InputError(
            f"--resume_from_checkpoint {name}: no checkpoint there ({STATE_FILE} is missing); "
            "name a step_... folder, or 'latest'."
        )
    if problem := damage(path):
        raise InputError(
            f"--resume_from_checkpoint {name}: that checkpoint is damaged ({problem}); name another, or 'latest'."
        )
    return path


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))


# Options that may change between the parts of a run without changing what is trained.
FREE = {
    "output_dir", "overwrite", "resume_from_checkpoint", "eval_steps", "eval_window", "eval_stride", "eval_batch_size",
    "save_steps", "max_checkpoints", "logging_steps", "report_to", "num_workers", "cpu_threads", "on_bad_sample",
    "save_inference_only", "card_pictures", "push_to_hub", "hub_model_id", "hub_private", "hub_revision",
    "hub_strategy", "hub_license", "ddp_timeout", "on_non_finite",
    "max_skipped_steps",
}  # fmt: skip


def changes(saved: dict[str, Any], options: dict[str, Any], processes: int) -> list[str]:
    """A sentence for everything that keeps the resumed run from equalling an uninterrupted one.

    Args:
        saved: the checkpoint's state.
        options, processes: those of the run that goes on from it.
    """
    config = saved["config"]
    found = [
        f"--{name} was {config[name]!r} when the checkpoint was written and is {value!r} now; the resumed run will not "
        "equal an uninterrupted one, and the optimiser keeps its own learning rate and weight decay."
        for name, value in options.items()
        if name not in FREE and name in config and config[name] != value
    ]
    if saved["processes"] != processes:
        found.append(
            f"The checkpoint was written by {saved['processes']} processes and there are {processes} now. With the "
            "same total batch the images and their augmentation stay the same; BatchNorm's statistics (per process on "
            "CPUs), drop path and the order of sums do not."
        )
    return found


def check_same_architecture(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint that another model or method wrote, naming what differs."""
    different = [
        f"{key} is {saved.get(key)!r} there and {current.get(key)!r} here"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key)
    ]
    if different:
        raise InputError(
            f"The checkpoint {path} is of another architecture: {', '.join(different)}. "
            "Resume with the options it was started with."
        )

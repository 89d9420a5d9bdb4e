"""Folders on disk that are either whole or not there: written aside, then renamed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"step_(\d+)")


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write into; on success it takes the place of `path`, on failure `path` is untouched."""
    aside = path.with_name(f".{path.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    publish_folder(aside, path)


def publish_folder(aside: Path, path: Path) -> None:
    """Put the finished folder `aside` in the place of `path`."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    aside.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and (path / STATE_FILE).is_file()
    ]
    return [path for _, path in sorted(found)]


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        shutil.rmtree(path)


def find_checkpoint(name: str, folder: Path) -> Path:
    """The checkpoint a user means by `--resume_from_checkpoint name`."""
    if name == "latest":
        found = checkpoints(folder)
        if not found:
            raise InputError(
                f"--resume_from_checkpoint latest: there is no checkpoint in {folder}; "
                "leave the option out to start anew, or name a checkpoint folder."
            )
        return found[-1]
    path = Path(name)
    if not (path / STATE_FILE).is_file():
        raise InputError(
            f"--resume_from_checkpoint {name}: no checkpoint there ({STATE_FILE} is missing); "
            "name a step_... folder, or 'latest'."
        )
    return path


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))


# Options that may change between the parts of a run without changing what is trained.
FREE = {
    "output_dir", "overwrite", "resume_from_checkpoint", "eval_steps", "eval_window", "eval_stride", "eval_batch_size",
    "save_steps", "max_checkpoints", "logging_steps", "report_to", "num_workers", "cpu_threads", "on_bad_sample",
    "save_inference_only", "card_pictures", "push_to_hub", "hub_model_id", "hub_private", "hub_revision",
    "hub_strategy", "hub_license",
}  # fmt: skip


def changed_options(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """A sentence for each option that was another when the checkpoint was written."""
    return [
        f"--{name} was {saved[name]!r} when the checkpoint was written and is {value!r} now; the resumed run will not "
        "equal an uninterrupted one, and the optimiser keeps its own learning rate and weight decay."
        for name, value in current.items()
        if name not in FREE and name in saved and saved[name] != value
    ]


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

"""The output folder of a run: its files, when a run may use a folder, and what happens when it cannot be written."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..errors import InputError
from .atomic_write import recover_folder

# The code that is saved with a model. Version 0.1 had further files, which remain where its runs are resumed.
CODE = tuple(path.name for path in (Path(__file__).parents[1] / "model").glob("*_corrmatch.py"))
OLD_CODE = (
    "decoder_dpt_corrmatch.py", "decoder_linear_corrmatch.py", "encoder_levels_corrmatch.py",
    "encoder_weights_corrmatch.py",
)  # fmt: skip
# Everything that a run writes. `--overwrite` deletes these and nothing else.
RUN_FILES = (
    "checkpoints", "best", "model.safetensors", "config.json", "preprocessor_config.json", "metrics.json",
    "training_log.jsonl", "training_config.yaml", "curves.png", "predictions.png", "samples", "report.html",
    "run.json", "README.md", "handler.py", "requirements.txt", *CODE, *OLD_CODE,
)  # fmt: skip
CONFIGURATION = "training_config.yaml"  # by which the folder of a run is recognised
LOCK = ".corrmatch.lock"  # of the run that works in the folder


class SaveError(RuntimeError):
    """The run has ended, but its result is not in the output folder. The message names where it is and the remedy."""


class EvaluationError(RuntimeError):
    """The run has ended and its model is saved, but it could not be evaluated. The message names reason and remedy."""


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that a new run must not write into."""
    if folder.is_file():
        raise InputError(f"--output_dir {folder} is a file; name a folder.")
    if not folder.is_dir() or all(path.name == LOCK for path in folder.iterdir()):
        return
    if not (folder / CONFIGURATION).exists():
        raise InputError(
            f"--output_dir {folder} is not empty and holds no run of this package; choose another folder."
        )
    if not overwrite:
        raise InputError(
            f"--output_dir {folder} already holds a run; choose another folder, resume the run with "
            "--resume_from_checkpoint latest, or replace it with --overwrite True."
        )


def repair_output_folder(folder: Path) -> None:
    """Remove what a killed process left half-written, apart from checkpoints, before a run resumes."""
    recover_folder(folder / "best")
    shutil.rmtree(folder / ".writing", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def delete_run(folder: Path) -> None:
    """Delete the files of an earlier run, last the one by which its folder is recognised."""
    for name in sorted(RUN_FILES, key=CONFIGURATION.__eq__):
        path = folder / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


def delete_old_code(folder: Path) -> None:
    """Delete what an earlier version saved beside a model and this version does not: it would be published, too."""
    for name in OLD_CODE:
        (folder / name).unlink(missing_ok=True)


def write_or_rescue(folder: Path, write: Callable[[Path], None], in_checkpoint: bool) -> SaveError | None:
    """Call `write(folder)`; where that fails, write into a temporary folder instead.

    Args:
        folder: the output folder.
        write: writes the trained model and its report into a folder.
        in_checkpoint: whether the last checkpoint holds the final step as well.

    Returns:
        None, or the error to raise, which names where the model is.
    """
    try:
        write(folder)
        return None
    except (OSError, SafetensorError) as error:
        failed = f"The result could not be saved in the output folder {folder}: {reason(error)}"
    remedy = (
        " The last checkpoint is complete, too: free some disk space, and finish with --resume_from_checkpoint latest."
        if in_checkpoint
        else ""
    )
    try:
        rescue = Path(tempfile.mkdtemp(prefix="corrmatch_hf_"))
        write(rescue)
    except (OSError, SafetensorError) as error:
        return SaveError(f"{failed}; nor in {tempfile.gettempdir()}: {reason(error)}.{remedy}")
    return SaveError(f"{failed}. The trained model is in {rescue} instead; move it from there.{remedy}")


def warn_not_saved(what: str, folder: Path, error: Exception) -> None:
    """Print that `what` is not in the output folder, while the training goes on."""
    free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"
    print(
        f"\nwarning: could not save {what} in {folder}: {reason(error)}. {free} are free there. Files saved before are "
        "unchanged, and the training goes on.",
        file=sys.stderr,
    )


def reason(error: Exception) -> str:
    """The first line of an error's message, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

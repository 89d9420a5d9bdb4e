"""Publishing the folder of a trained model on the Hub, in one commit."""

from __future__ import annotations

import json
import shlex
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..errors import InputError
from ..model import CorrMatchForSegmentation
from ..model.configuration_corrmatch import REQUIREMENTS
from ..text import presentable, presentable_values
from .load import load_saved
from .model_card import card_for_push, record_for_push
from .upload import UploadError as UploadError  # raised by push_folder
from .upload import open_repository, upload_errors

# The files of a folder that are published; all others (checkpoints, notes, secrets) are not.
PUBLISHED = (
    "model*.safetensors", "model.safetensors.index.json", "config.json", "preprocessor_config.json",
    "*_corrmatch.py", "handler.py", "requirements.txt", "README.md", "run.json", "metrics.json",
    "training_config.yaml", "training_log.jsonl", "curves.png", "predictions.png", "samples/*.jpg", "samples/*.png",
)  # fmt: skip
# Texts with paths, which are published with the last part of absolute ones only, and without secrets.
RECORDS = ("training_config.yaml", "training_log.jsonl", "metrics.json")


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    inference_only: bool = False,
    token: str | None = None,
    message: str = "Upload model",
) -> str:
    """Publish a folder written by training, `save_pretrained` or the converter, in one commit.

    The weights, config, processor, code, card, metrics and pictures of the folder are uploaded, and the files for
    Inference Endpoints. The card and its snippets name `repo_id`. Files of these kinds that are in the repository, but
    no longer in the folder, are deleted there. The folder is not changed.

    Args:
        folder: of the model.
        repo_id: "user/name", or "name" in your own namespace.
        private: make a new repository private.
        revision: branch to commit to, created if it does not exist; by default the main one.
        inference_only: publish the model without its correlation head.
        token: by default that of `hf auth login` or HF_TOKEN.
        message: of the commit.

    Returns:
        The address of the published model.

    Raises:
        InputError: the folder contains no model or no processor; the repository is public, although `private` is set.
        UploadError: the Hub cannot be reached or rejects the upload. The message ends with the command to try again.
    """
    folder = Path(folder)
    check_folder(folder)
    options: dict[str, Any] = {"private": private, "revision": revision, "inference_only": inference_only}
    with upload_errors(
        f"push {folder} to {repo_id}", f"Try again: {retry_command(folder, repo_id, **options)}"
    ):
        repo_id = open_repository(repo_id, private=private, revision=revision, token=token)
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as aside:
            files = _files(folder, Path(aside), repo_id, inference_only)
            operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
            # Delete leftovers of an earlier push: old shards would be loaded, and old photos would stay public.
            operations += [
                CommitOperationDelete(name)
                for name in api.list_repo_files(repo_id, revision=revision)
                if name not in files and _is_published(name)
            ]
            commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return f"{commit.repo_url}/tree/{quote(revision)}" if revision else str(commit.repo_url)


def check_folder(folder: Path) -> None:
    """Raises InputError if `folder` contains no saved model."""
    if not folder.is_dir():
        raise InputError(
            f"The folder {folder} does not exist: give the output folder of a training or of save_pretrained."
        )
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise InputError(
            f"{folder} contains no saved model (config.json and model.safetensors): give the output folder "
            "of a finished training or of save_pretrained."
        )
    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(
            f"{folder} contains a model, but no image processor, which users of the model need: save one with "
            f"CorrMatchImageProcessor().save_pretrained({str(folder)!r})."
        )


def retry_command(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    inference_only: bool = False,
) -> str:
    """The shell command that publishes the folder."""
    words = ["corrmatch", "push", str(folder), repo_id]
    words += ["--private"] * private + ["--revision", revision or ""] * bool(revision)
    return shlex.join(words + ["--inference_only"] * inference_only)


def _is_published(name: str) -> bool:
    return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in PUBLISHED)


def _files(folder: Path, aside: Path, repo_id: str, inference_only: bool) -> dict[str, Path | bytes]:
    """{name in the repository: local file or content}. `aside` is an empty folder for temporary files."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files: dict[str, Path | bytes] = {
        **endpoint_files(),
        **{n: folder / n for n in names if _is_published(n)},
    }
    if inference_only:
        model, _ = load_saved(str(folder))
        if not isinstance(model, CorrMatchForSegmentation):
            raise InputError(
                f"{folder} contains a {type(model).__name__}, without a correlation head: leave out --inference_only."
            )
        model.save_pretrained(aside, inference_only=True)
        files = {name: path for name, path in files.items() if not name.startswith("model")}
        files |= {path.name: path for path in aside.iterdir()}
    files |= {n: _presentable_record(folder / n).encode() for n in RECORDS if n in files}
    files["README.md"] = card_for_push(folder, repo_id, inference_only=inference_only).encode()
    if (record := record_for_push(folder, repo_id, inference_only=inference_only)) is not None:
        files["run.json"] = record.encode()
    return files


def _presentable_record(path: Path) -> str:
    """The text of one of `RECORDS`, as it is published."""
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".yaml":
            options = presentable_values(yaml.safe_load(text))
            return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        if path.suffix == ".jsonl":
            rows = (presentable_values(json.loads(line)) for line in text.splitlines())
            return "".join(f"{json.dumps(row)}\n" for row in rows)
        return f"{json.dumps(presentable_values(json.loads(text)), indent=2)}\n"
    except (ValueError, yaml.YAMLError):  # somebody edited it
        return presentable(text)


def endpoint_files() -> dict[str, bytes]:
    """{name: content} of the files for Inference Endpoints: `handler.py` and the `requirements.txt` that it needs."""
    return {
        "handler.py": Path(__file__).with_name("handler.py").read_bytes(),
        "requirements.txt": "".join(f"{line}\n" for line in REQUIREMENTS).encode(),
    }


def write_endpoint(folder: str | Path) -> None:
    """Write the files for Inference Endpoints into the folder of a saved model."""
    for name, contents in endpoint_files().items():
        Path(folder, name).write_bytes(contents)

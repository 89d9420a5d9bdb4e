"""A trained model's folder onto the Hub, in one commit."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
)

from ..errors import InputError
from ..model import CorrMatchForSegmentation  # registers it with the Auto classes
from ..model.configuration_corrmatch import REQUIREMENTS
from ..text import presentable, without_tokens
from .model_card import card_for_push, record_for_push

# What a repository gets of a folder; whatever else lies there (checkpoints, notes, secrets) stays at home.
PUBLISHED = (
    "model*.safetensors", "model.safetensors.index.json", "config.json", "preprocessor_config.json",
    "*_corrmatch.py", "handler.py", "requirements.txt", "README.md", "run.json", "metrics.json",
    "training_config.yaml", "training_log.jsonl", "curves.png", "predictions.png", "samples/*.jpg", "samples/*.png",
)  # fmt: skip
# Of these, the texts that name files, whose paths may begin with somebody's home.
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
    """Publish a folder that training, `save_pretrained` or the converter wrote, as one commit.

    The repository gets the weights, config, processor, code, card, figures and pictures of the folder, and what
    Inference Endpoints need. The card and its snippets name `repo_id`. Files of that kind that an earlier push left and
    the folder lacks are removed. The folder is not changed.

    Args:
        folder: of the model.
        repo_id: "user/name"; "name" is taken in your own namespace.
        private: make a new repository private.
        revision: branch to commit to, made if it does not exist; by default the main one.
        inference_only: publish the model without its correlation head.
        token: by default the one of `hf auth login` or HF_TOKEN.
        message: of the commit.

    Returns:
        The address of the published model.

    Raises:
        InputError: the folder holds no model or no processor; a public repository where a private one is asked for.
        UploadError: the Hub cannot be reached or refuses. The message ends with the command to try again.
    """
    folder = Path(folder)
    check_folder(folder)
    options = {"private": private, "revision": revision, "inference_only": inference_only}
    with upload_errors(
        f"push {folder} to {repo_id}", f"Try again: {retry_command(folder, repo_id, **options)}"
    ):
        repo_id = open_repository(repo_id, private=private, revision=revision, token=token)
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as aside:
            files = _files(folder, Path(aside), repo_id, inference_only)
            operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
            # What an earlier push left and this folder lacks: old shards would be loaded, old photos stay public.
            operations += [
                CommitOperationDelete(name)
                for name in api.list_repo_files(repo_id, revision=revision)
                if name not in files and _is_published(name)
            ]
            commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return f"{commit.repo_url}/tree/{quote(revision)}" if revision else str(commit.repo_url)


def check_folder(folder: Path) -> None:
    """Raises InputError where `folder` holds no saved model."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: name one that training or save_pretrained wrote.")
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise InputError(
            f"{folder} holds no saved model (config.json and model.safetensors): name the output folder of a finished "
            "run, or one that save_pretrained wrote."
        )
    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(
            f"{folder} holds a model without its image processor, so nobody could use it: save one beside it with "
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
    """What is published: name in the repository -> file or contents. `aside` is an empty folder to write to."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files: dict[str, Path | bytes] = {
        **endpoint_files(),
        **{n: folder / n for n in names if _is_published(n)},
    }
    if inference_only:
        model, _ = load_saved(str(folder))
        if not isinstance(model, CorrMatchForSegmentation):
            raise InputError(
                f"{folder} holds a {type(model).__name__}, which has no correlation head to leave out."
            )
        model.save_pretrained(aside, inference_only=True)
        files = {name: path for name, path in files.items() if not name.startswith("model")}
        files |= {path.name: path for path in aside.iterdir()}
    files |= {
        n: presentable((folder / n).read_text(encoding="utf-8")).encode() for n in RECORDS if n in files
    }
    files["README.md"] = card_for_push(folder, repo_id, inference_only=inference_only).encode()
    if (record := record_for_push(folder, repo_id, inference_only=inference_only)) is not None:
        files["run.json"] = record.encode()
    return files


# -------------------- Repositories on the Hub: opening one, and what can go wrong on the way, said in one sentence and without secrets.


class UploadError(RuntimeError):
    """The Hub could not be reached or refused; nothing is lost here."""


@contextmanager
def upload_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Turns whatever the Hub's client raises into an `UploadError`: "Could not `what`: reason. `remedy`"."""
    try:
        yield
    except (InputError, UploadError):
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hints = {
            401: " Log in with `hf auth login` or set HF_TOKEN.",
            403: " The token has no right to write there.",
        }
        reason = without_tokens(" ".join(str(error).split())).rstrip(".") or type(error).__name__
        # Without the cause, whose own text may hold the token that went into a header.
        raise UploadError(f"Could not {what}: {reason}.{hints.get(status, '')} {remedy}".rstrip()) from None


def open_repository(
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Make the repository and the branch where they do not exist; returns the full id, "user/name".

    Called before a long training, this finds a wrong id or token while it costs nothing. Errors of the Hub's client
    come as they are: see `upload_errors`.

    Raises:
        InputError: the repository exists and is public, though a private one is asked for.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise InputError(
            f"The {repo_type} {repo_id} exists on the Hub and is public, but is to be private: choose another id, or "
            "change its visibility in its settings."
        )
    if revision:
        api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    # That it exists says nothing about the right to write to it: ask for an upload, and send nothing.
    probe = [CommitOperationAdd("README.md", b"-")]
    api.preupload_lfs_files(repo_id, probe, repo_type=repo_type, revision=revision)
    return repo_id


# -------------------- The two files that let an Inference Endpoint run a published model.


def endpoint_files() -> dict[str, bytes]:
    """Name -> contents of what lies beside the weights: `handler.py` and the packages it needs."""
    return {
        "handler.py": Path(__file__).with_name("handler.py").read_bytes(),
        "requirements.txt": "".join(f"{line}\n" for line in REQUIREMENTS).encode(),
    }


def write_endpoint(folder: str | Path) -> None:
    """Writes them into the folder of a saved model."""
    for name, contents in endpoint_files().items():
        Path(folder, name).write_bytes(contents)


# -------------------- A saved or published model, back again.


def load_saved(name: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The model, in eval mode, and the image processor of a folder or a Hub repository.

    CorrMatch runs this package's code, never code of the repository, whatever its config.json asks for. Other semantic
    segmentation models of transformers load too.

    Raises:
        InputError: nothing there, or what is there is no such model.
    """
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of a broken or hostile file transformers raises anything
        reason = " ".join(str(error).split()).rstrip(".")
        reason = reason if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {reason}"
        raise InputError(
            f"No segmentation model could be loaded from {name!r}: give a folder that training wrote, with "
            f"config.json and model.safetensors, or the id of a model on the Hub. ({reason}.)"
        ) from error
    return model.eval(), processor

"""Repositories on the Hub: creating them, and clear upload errors without secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError
from ..text import without_tokens


class UploadError(RuntimeError):
    """The Hub cannot be reached or rejects the upload. Local files are unchanged."""


def check_repo_id(repo_id: str) -> None:
    """Raises InputError if `repo_id` is not a valid repository id. Needs no network."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is not a valid repository id: {str(error).rstrip('.')}.") from error


@contextmanager
def upload_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Turns the errors of the Hub's client into an `UploadError`: "Could not `what`: reason. `remedy`"."""
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
        # Without its cause, whose message may contain the token of the request.
        raise UploadError(f"Could not {what}: {reason}.{hints.get(status, '')} {remedy}".rstrip()) from None


def open_repository(
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Create the repository and the branch if they do not exist; returns the full id, "user/name".

    Called before a long training, it finds a wrong id or token at once. Errors of the Hub's client are not converted:
    see `upload_errors`.

    Raises:
        InputError: the repository is public, although a private one is requested.
    """
    api = HfApi(token=token)
    space_sdk = "static" if repo_type == "space" else None
    repo_id = api.create_repo(
        repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=space_sdk
    ).repo_id
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise InputError(
            f"The {repo_type} {repo_id} exists on the Hub and is public, but --private is set: choose another id, or "
            "change the visibility in its settings."
        )
    if revision:
        api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    # An existing repository may be read-only for this token: request an upload without sending anything.
    probe = [CommitOperationAdd("README.md", b"-")]
    api.preupload_lfs_files(repo_id, probe, repo_type=repo_type, revision=revision)
    return repo_id

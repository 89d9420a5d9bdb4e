"""Repositories on the Hub: opening one, and what can go wrong on the way, said in one sentence and without secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError

from corrmatch_hf.errors import InputError
from corrmatch_hf.publish.tokens import without_tokens


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

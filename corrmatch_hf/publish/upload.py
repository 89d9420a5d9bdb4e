"""What can go wrong on the way to the Hub, said in one sentence and without secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        raise UploadError(f"Could not {what}: {reason}.{hints.get(status, '')} {remedy}".rstrip()) from error

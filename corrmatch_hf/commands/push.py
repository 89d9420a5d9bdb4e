"""`corrmatch push`: a trained model's folder -> the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from ..errors import InputError
from ..options import Options, option
from . import COMMANDS
from .arguments import parse

DESCRIPTION = f"{COMMANDS['push']} The token is that of `hf auth login`, or HF_TOKEN."
EXAMPLES = """
corrmatch push outputs/run user/model
corrmatch push outputs/run user/model --private --revision wider-crops
corrmatch push outputs/run user/model --inference_only       # smaller
"""


@dataclass
class PushOptions(Options):
    """What is published, and where."""

    folder: str = option(
        MISSING,
        "Folder written by training, `save_pretrained` or the converter.",
        positional=True,
        metavar="FOLDER",
    )
    repo_id: str = option(
        MISSING,
        "user/name on the Hub; a name alone is taken in your namespace.",
        positional=True,
        metavar="REPO_ID",
    )
    private: bool = option(False, "Make a new repository private.", common=True)
    revision: str | None = option(None, "Branch to commit to, created if it does not exist.", common=True)
    inference_only: bool = option(
        False, "Leave out the correlation head, which only training needs.", common=True
    )
    message: str = option("Upload model", "Message of the commit.", common=True)


def main(args: Sequence[str]) -> None:
    """Publish the folder and print its address."""
    (options,) = parse("push", PushOptions, args=args, description=DESCRIPTION, examples=EXAMPLES)
    from transformers.utils import logging

    from ..hub.push import push_folder

    logging.disable_progress_bar()
    print(f"published: {push_folder(**vars(options))}")


def errors() -> tuple[type[Exception], ...]:
    from ..hub.push import UploadError

    return (InputError, UploadError)

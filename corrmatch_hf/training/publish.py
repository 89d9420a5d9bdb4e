"""Publishing a run on the Hub: checked before hours of training, and never the reason to lose a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import ModelCard

from ..errors import InputError
from ..hub.push import UploadError, open_repository, retry_command, upload_errors
from ..text import without_tokens
from .config import TrainingConfig


def check_hub_access(config: TrainingConfig) -> None:
    """Create the repository, and refuse a run whose result could not be published to it."""
    try:
        with upload_errors(f"open {config.hub_repository}"):
            if config.hub_license:
                ModelCard(f"---\nlicense: {config.hub_license}\n---\n").validate()
            open_repository(config.hub_repository, private=config.hub_private, revision=config.hub_revision)
    except UploadError as error:
        raise InputError(
            f"--push_to_hub will fail: {error} Or train without it, and publish later: {_push_command(config)}"
        ) from None


def publish_or_warn(push: Callable[[], str | None], config: TrainingConfig) -> str | None:
    """Call `push` and print the address it returns. Upload errors are only warned about: the trained model survives."""
    try:
        url = push()
    except UploadError as error:
        print(f"warning: {error} The model is kept in {config.output_dir}.", file=sys.stderr)
        return None
    except (Exception, KeyboardInterrupt) as error:
        reason = without_tokens(str(error)) or "interrupted."
        print(f"warning: not published: {reason} Try again: {_push_command(config)}", file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            raise
        return None
    if url is not None:  # None on all processes but the main one
        print(f"published: {url}")
    return url


def _push_command(config: TrainingConfig) -> str:
    return retry_command(
        Path(config.output_dir),
        config.hub_repository,
        private=config.hub_private,
        revision=config.hub_revision,
    )

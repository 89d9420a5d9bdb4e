"""Publish a trained model's folder on the Hub, in one commit.

    python examples/push.py outputs/run user/model
    python examples/push.py outputs/run user/model --private --revision wider-crops
    python examples/push.py outputs/run user/model --inference_only       # smaller: without the correlation head

The token is the one of `hf auth login`, or HF_TOKEN.
"""

import argparse
import sys

from transformers.utils import logging

from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.push import UploadError, push_folder


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", help="Folder that training, save_pretrained or the converter wrote.")
    parser.add_argument("repo_id", help="user/name on the Hub; a name alone is taken in your namespace.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to commit to, made if it does not exist.")
    parser.add_argument(
        "--inference_only",
        action="store_true",
        help="Leave out the correlation head, which training alone needs.",
    )
    parser.add_argument("--message", default="Upload model", help="Message of the commit.")
    logging.disable_progress_bar()
    print(f"published: {push_folder(**vars(parser.parse_args(args)))}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, UploadError) as error:
        sys.exit(f"error: {error}")

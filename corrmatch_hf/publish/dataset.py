"""A dataset onto the Hub: pictures and masks, the names of the classes, and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from datasets import DatasetDict
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from corrmatch_hf.errors import InputError
from corrmatch_hf.publish.dataset_card import dataset_card
from corrmatch_hf.publish.upload import open_repository, upload_errors


def check_repo_id(repo_id: str) -> None:
    """Raises InputError where no repository can have this id; worth asking before long work."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no id of a repository: {str(error).rstrip('.')}.") from error


def push_dataset(
    splits: DatasetDict,
    repo_id: str,
    *,
    id2label: Mapping[int, str],
    masks: Mapping[str, int],
    pixels: Mapping[str, Sequence[int]],
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    retry: str = "",
) -> str:
    """Publish a dataset, in a commit for its pictures and one for its card and `id2label.json`.

    A dataset that is there already is replaced, its card too, but for what was added to the card's front matter.
    After a failure the same call goes on: what was uploaded completely is not uploaded again.

    Args:
        splits: with the columns `image` and `label`; files that they name are uploaded.
        repo_id: "user/name"; "name" is taken in your own namespace.
        id2label, masks, pixels, license: for the card, see `dataset_card`.
        private: make a new repository private.
        revision: branch to commit to, made if it does not exist; by default the main one.
        token: by default the one of `hf auth login` or HF_TOKEN.
        retry: the command that does this again, for the message of a failure.

    Returns:
        The address of the published dataset.

    Raises:
        InputError: a public repository where a private one is asked for.
        UploadError: the Hub cannot be reached or refuses. The message ends with `retry`.
    """
    api = HfApi(token=token)
    with upload_errors(f"push the dataset to {repo_id}", f"Try again: {retry}" if retry else ""):
        repo_id = open_repository(
            repo_id, repo_type="dataset", private=private, revision=revision, token=token
        )
        images = {name: len(split) for name, split in splits.items()}
        card = dataset_card(
            repo_id, images=images, masks=masks, pixels=pixels, id2label=id2label, license=license
        )
        card.validate()  # finds a licence that the Hub does not know
        pushed = splits.push_to_hub(repo_id, revision=revision, token=token)
        readme = api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=pushed.oid)
        whole = DatasetCard.load(readme, ignore_metadata_errors=True)
        for key, value in card.data.to_dict().items():
            whole.data[key] = value
        whole.text = card.text
        names = json.dumps(
            {str(i): name for i, name in sorted(id2label.items())}, indent=2, ensure_ascii=False
        )
        files = {"README.md": str(whole), "id2label.json": f"{names}\n"}
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, text.encode()) for name, text in files.items()],
            commit_message="Describe the dataset",
            repo_type="dataset",
            revision=revision,
        )
    return f"{commit.repo_url}/tree/{quote(revision)}" if revision else str(commit.repo_url)

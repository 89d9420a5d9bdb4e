"""Publishing a dataset on the Hub: pictures, masks, class names and a card."""

from __future__ import annotations

import json
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi

from .dataset_card import dataset_card
from .dataset_export import ExportedFolder
from .upload import open_repository, upload_errors


def push_dataset(
    data: ExportedFolder,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    retry: str = "",
) -> str:
    """Publish a dataset: one commit for its pictures, and one for its card and `id2label.json`.

    An existing dataset and its card are replaced, except for additions to the card's front matter. After a failure,
    the same call resumes: completely uploaded files are not uploaded again.

    Args:
        data: from `export_folder`.
        repo_id: "user/name", or "name" in your own namespace.
        license: the Hub's identifier, such as "cc-by-4.0"; None leaves it out of the card.
        private: make a new repository private.
        revision: branch to commit to, created if it does not exist; by default the main one.
        token: by default that of `hf auth login` or HF_TOKEN.
        retry: the command that repeats this, for error messages.

    Returns:
        The address of the published dataset.

    Raises:
        InputError: the repository is public, although `private` is set.
        UploadError: the Hub cannot be reached or rejects the upload. The message ends with `retry`.
    """
    api = HfApi(token=token)
    with upload_errors(f"push the dataset to {repo_id}", f"Try again: {retry}" if retry else ""):
        repo_id = open_repository(
            repo_id, repo_type="dataset", private=private, revision=revision, token=token
        )
        card = dataset_card(
            repo_id,
            images={name: len(split) for name, split in data.splits.items()},
            masks=data.masks,
            pixels=data.pixels,
            id2label=data.id2label,
            license=license,
        )
        card.validate()  # rejects licences that the Hub does not know
        pushed = data.splits.push_to_hub(repo_id, revision=revision, token=token)
        readme = api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=pushed.oid)
        whole = _merged_card(readme, card)
        names = {str(i): name for i, name in sorted(data.id2label.items())}
        files = {
            "README.md": str(whole),
            "id2label.json": json.dumps(names, indent=2, ensure_ascii=False) + "\n",
        }
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, text.encode()) for name, text in files.items()],
            commit_message="Describe the dataset",
            repo_type="dataset",
            revision=revision,
        )
    return f"{commit.repo_url}/tree/{quote(revision)}" if revision else str(commit.repo_url)


def _merged_card(readme: str, card: DatasetCard) -> DatasetCard:
    """`card`, with the front matter of the file `readme` where it says more: `datasets` describes the columns there."""
    merged = DatasetCard.load(readme, ignore_metadata_errors=True)
    for key, value in card.data.to_dict().items():
        merged.data[key] = value
    merged.text = card.text
    return merged

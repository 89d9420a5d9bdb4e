"""A dataset onto the Hub: pictures and masks, the names of the classes, and a card."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import datasets
import numpy as np
from datasets import DatasetDict
from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from tqdm import tqdm

from ..data.images import read_photo
from ..data.load import load_semi_dataset
from ..data.masks import Color
from ..data.semi_dataset import SemiDataset
from ..data.sources.folders import SPLIT_NAMES, Folder
from ..data.sources.hub import read_by_datasets
from ..data.sources.lists import Pair
from ..errors import InputError
from ..text import percent
from .push import open_repository, upload_errors


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


# -------------------- A local folder made ready to be shared: every picture read once, every mask a PNG of class ids.


IGNORED = 255  # in shared masks, as every reader of such datasets expects
SHOWN = 20  # problems that are told one by one
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})


@dataclass(frozen=True)
class ExportedFolder:
    """What `export_folder` makes.

    splits: the columns `image` and `label` (None where there is no mask), as paths, of the splits "train",
        "validation", "test" and "unlabeled" as far as the folder has them.
    pixels: of each split with masks, how many pixels show each class, and at the end how many are ignored.
    masks: of each split, how many images have one.
    rewritten: how many masks are not the folder's own files.
    left_out: splits of the folder with other names.
    """

    splits: datasets.DatasetDict
    id2label: dict[int, str]
    pixels: dict[str, list[int]]
    masks: dict[str, int]
    rewritten: int
    left_out: list[str]


def export_folder(
    folder: str | os.PathLike,
    aside: str | os.PathLike,
    *,
    id2label: Mapping[int, str] | Sequence[str] | str | None = None,
    reduce_labels: bool = False,
    ignore_index: int = 255,
    label_colors: Mapping[int, Color] | Sequence[Color] | str | None = None,
) -> ExportedFolder:
    """All splits of a folder (see `folders.Folder`), with masks of one kind: ids 0 ... K-1, and 255 for 'ignore'.

    Masks that are such PNGs of one channel already stay the files they are; others are written anew below
    `aside`, an empty folder that must live as long as the result. Photos stay as they are. `load_semi_dataset`
    makes the same training set of the result, without options, as of the folder with these.

    Args:
        id2label, reduce_labels, ignore_index, label_colors: what the folder's masks mean, as for
            `load_semi_dataset`.

    Raises:
        InputError: no such folder, no layout that is understood, no training masks, more than 255 classes; or
            pictures that cannot be used: unreadable, an id without a class, mask and photo of different size. All
            of these are named.
    """
    folder = Path(folder)
    layout = Folder(folder)
    if read_by_datasets(str(folder)):
        raise InputError(
            f"{folder} holds tables or metadata that `datasets` reads itself: publish it with "
            "datasets.load_dataset(...).push_to_hub(...)."
        )
    found = {name: pairs for name in SPLIT_NAMES if (pairs := layout.split(name))}
    if "train" not in found:
        there = f"only {', '.join(layout.splits())}" if layout.splits() else "no folder of images"
        raise InputError(
            f"{folder} has no training images, {there}: expected train/images + train/masks, images/train + "
            "masks/train, images + masks, or JPEGImages + SegmentationClass."
        )
    semi = load_semi_dataset(
        data_dir=str(folder),
        id2label=id2label,
        reduce_labels=reduce_labels,
        ignore_index=ignore_index,
        label_colors=label_colors,
    )
    if semi.num_labels > IGNORED:
        raise InputError(
            f"{folder} has {semi.num_labels} classes, but masks of 8 bits hold at most {IGNORED} and 'ignore'."
        )
    work = [(pair, folder, Path(aside), semi) for pairs in found.values() for pair in pairs]
    results = _checked(work)
    splits, pixels, masks, rewritten = datasets.DatasetDict(), {}, {}, 0
    for name, pairs in found.items():
        done = [next(results) for _ in pairs]
        labels = [label for label, _ in done]
        counts = [count for _, count in done if count is not None]
        columns = {"image": [pair.image for pair in pairs], "label": labels}
        splits[name] = datasets.Dataset.from_dict(columns, features=FEATURES)
        masks[name] = len(counts)
        rewritten += sum(label != pair.mask for label, pair in zip(labels, pairs, strict=True))
        if counts:
            pixels[name] = np.sum(counts, axis=0).tolist()
    usual = set().union(*([name, *others] for name, others in SPLIT_NAMES.items()))
    left_out = [name for name in layout.splits() if name not in usual]
    return ExportedFolder(splits, semi.id2label, pixels, masks, rewritten, left_out)


def _checked(work: Sequence[tuple]) -> Iterable[tuple[str | None, np.ndarray | None]]:
    """The results of `_export` in order, or one error that names every picture which cannot be used."""

    def attempt(task: tuple) -> tuple | InputError:
        try:
            return _export(*task)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        progress = tqdm(pool.map(attempt, work), total=len(work), desc="checking", unit="image", disable=None)
        results = list(progress)
    problems = [str(result) for result in results if isinstance(result, InputError)]
    if problems:
        more = [f"... and {len(problems) - SHOWN} more."] if len(problems) > SHOWN else []
        head = f"{len(problems)} of {len(work)} images cannot be published:"
        raise InputError("\n".join([head, *problems[:SHOWN], *more]))
    return iter(results)


def _export(pair: Pair, folder: Path, aside: Path, semi: SemiDataset) -> tuple[str | None, np.ndarray | None]:
    """The path of the mask to share, and its pixels of each class and ignored ones; None without a mask."""
    image = {"path": pair.image, "bytes": None}
    if pair.mask is None:
        read_photo(image, pair.image)
        return None, None
    row = {"image": image, "label": {"path": pair.mask, "bytes": None}, "file": pair.image}
    _, ids = semi.read_labeled(row)
    values = np.where(ids == semi.ignore_index, IGNORED, ids).astype(np.uint8)
    counts = np.bincount(values.ravel(), minlength=IGNORED + 1)
    counts = np.append(counts[: semi.num_labels], counts[IGNORED])
    if _is_stored(pair.mask, values):
        return pair.mask, counts
    path = aside / Path(pair.mask).relative_to(folder).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return str(path), counts


def _is_stored(path: str, values: np.ndarray) -> bool:
    """Whether the file is a PNG of one channel with just these values."""
    with Image.open(path) as picture:
        plain = picture.format == "PNG" and picture.mode in ("L", "P")
        return plain and np.array_equal(np.asarray(picture), values)


# -------------------- The README of a published dataset: what is in it, what its masks mean, how to load it and train on it.


SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}

MASKS = """\
`label` is a PNG of one channel, as large as its `image` turned upright. Its values are the class ids below; pixels of
value 255 belong to none and do not count. `id2label.json` holds the names."""

LOAD = """\
from datasets import load_dataset

row = load_dataset({name}, split="train")[0]
row["image"], row["label"]  # two PIL images{missing}
"""

TRAIN = """\
With corrmatch-hf, {what}:

```bash
corrmatch train --dataset_name {name}{option}
```"""


def dataset_card(
    repo_id: str,
    *,
    images: Mapping[str, int],
    masks: Mapping[str, int],
    pixels: Mapping[str, Sequence[int]],
    id2label: Mapping[int, str],
    license: str | None = None,
) -> DatasetCard:
    """The card of a dataset with the columns `image` and `label`.

    Args:
        repo_id: "user/name".
        images, masks: of each split, how many images it has, and how many of them have a mask.
        pixels: of each split with masks, how many pixels show each class, and at the end how many are ignored.
        id2label: the classes' names.
        license: as the Hub writes it, such as "cc-by-4.0"; None says nothing.
    """
    title, total = repo_id.split("/")[-1], sum(images.values())
    data = DatasetCardData(
        pretty_name=title,
        task_categories=["image-segmentation"],
        tags=["semantic-segmentation", "semi-supervised"],
        size_categories=[next((text for limit, text in SIZES.items() if total < limit), "n>10M")],
        license=license,
    )
    unlabeled = total - sum(masks.values())
    text = f"{total:,} images for semantic segmentation into {len(id2label)} classes"
    text += (
        f"; {unlabeled:,} of them without a mask, to be learned from without labels." if unlabeled else "."
    )
    columns = [name for name in images if name in pixels]
    sections = [
        f"# {title}",
        text,
        _table(("Split", "Images", "With a mask"), ((n, f"{images[n]:,}", f"{masks[n]:,}") for n in images)),
        "## Masks",
        MASKS,
        "Share of the pixels, in percent:",
        _table(("Id", "Class", *columns), _shares(id2label, [pixels[name] for name in columns])),
        "## Use",
        f"```python\n{LOAD.format(name=json.dumps(repo_id), missing=_missing(images, masks))}```",
        _training(repo_id, images, masks),
    ]
    if license:
        sections += ["## Licence", f"`{license}`"]
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _missing(images: Mapping[str, int], masks: Mapping[str, int]) -> str:
    return "; without a mask, the label is None" if masks["train"] < images["train"] else ""


def _training(repo_id: str, images: Mapping[str, int], masks: Mapping[str, int]) -> str:
    if masks["train"] < images["train"] or "unlabeled" in images:
        what, option = "from the images with masks and those without", ""
    else:
        what, option = "with the masks of an eighth of the training images", " --labeled_fraction 0.125"
    return TRAIN.format(what=what, name=repo_id, option=option)


def _shares(id2label: Mapping[int, str], splits: Sequence[Sequence[int]]) -> Iterable[tuple[str, ...]]:
    for i, (number, name) in enumerate([*sorted(id2label.items()), (255, "*ignored*")]):
        yield str(number), name, *(percent(counts[i] / max(sum(counts), 1), 2) for counts in splits)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

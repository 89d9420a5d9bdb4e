"""The README of a published dataset: its contents, the meaning of its masks, how to load it and train on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from huggingface_hub import DatasetCard, DatasetCardData

from ..text import markdown_cell, markdown_code, percent

SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}

IGNORED = 255  # in published masks; at most 255 classes have an id below

MASKS = """\
`label` is a PNG of one channel, of the size of its `image` after EXIF orientation. Its values are the class ids below;
255 means that the pixel is ignored. `id2label.json` contains the names."""

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
        images, masks: for each split, the number of images, and of images with a mask.
        pixels: for each split with masks, the number of pixels of each class and, last, of ignored pixels.
        id2label: the class names.
        license: the Hub's identifier, such as "cc-by-4.0"; None leaves the section out.
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
    text += f"; {unlabeled:,} of them without a mask, for semi-supervised training." if unlabeled else "."
    columns = [name for name in images if name in pixels]
    sections = [
        f"# {title}",
        text,
        _table(
            ("Split", "Images", "With a mask"),
            ((n, f"{images[n]:,}", f"{masks[n]:,}") for n in images),
        ),
        "## Masks",
        MASKS,
        "Share of the pixels, in percent:",
        _table(("Id", "Class", *columns), _shares(id2label, [pixels[name] for name in columns])),
        "## Use",
        f"```python\n{LOAD.format(name=json.dumps(repo_id), missing=_missing(images, masks))}```",
        _training(repo_id, images, masks),
    ]
    if license:
        sections += ["## Licence", f"`{markdown_code(license)}`"]
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
    names = [(number, markdown_cell(name)) for number, name in sorted(id2label.items())]
    for i, (number, name) in enumerate([*names, (IGNORED, "*ignored*")]):
        yield str(number), name, *(percent(counts[i] / max(sum(counts), 1), 2) for counts in splits)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

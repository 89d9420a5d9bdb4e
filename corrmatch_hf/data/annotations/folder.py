"""Annotations -> a folder in the plain layout: train/{images,masks}, unlabeled/images, ..., id2label.json."""

from __future__ import annotations

import json
import os
import posixpath
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from ...errors import InputError
from ...text import visible
from .draw import IGNORED, draw
from .form import (
    BACKGROUND,
    BACKGROUND_NAMES,
    IGNORE_NAMES,
    ORIENTATION,
    Annotations,
    Files,
    Photo,
    Region,
    Report,
    Unusable,
)

TURNED = (
    "photos turned by their camera (EXIF), whose annotations fit the photo as it is stored: their masks were turned "
    "too; look at some of them"
)


@dataclass
class Written:
    """What a folder holds: the photos with masks of each split, those without, the names of the classes, and the
    number of the pixels without annotation: that of the class background, or 255."""

    labeled: dict[str, int]
    unlabeled: int
    id2label: dict[int, str]
    uncovered: int


def check_destination(source: Path, destination: Path) -> None:
    """Refuses to write over anything, or into the source."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists and is not empty; give a new folder.")
    inner, outer = destination.resolve(), source.resolve()
    if inner == outer or outer in inner.parents:
        raise InputError(f"{destination} lies inside {source}; give a folder elsewhere.")


def write_folder(
    annotations: Annotations,
    files: Files,
    destination: Path,
    report: Report,
    validation_fraction: float | None = None,
    seed: int = 0,
    id2label: dict[int, str] | None = None,
) -> Written:
    """Draws the masks and copies the photos unchanged; the destination appears when everything is done.

    Args:
        validation_fraction: the share of the photos with masks that become validation photos, at random by `seed`.
        id2label: the numbers that the masks shall have; by default the classes are numbered as they are found.
    """
    ids = class_ids(annotations.classes) if id2label is None else given_ids(annotations.classes, id2label)
    photos = []
    for photo in annotations.photos:
        with report.skip(photo.file):
            files.header(photo.file)
            photos.append(photo)
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        aside.chmod(0o777 & ~_umask())
        masks = _write_masks(photos, files, aside, ids, report, id2label)
        splits = _choose_splits(photos, masks, validation_fraction, seed)
        _place(photos, splits, masks, files, aside, report)
        if id2label is None:
            id2label = {0: BACKGROUND} | {number: name for name, number in ids.items() if number > 0}
        text = json.dumps(id2label, indent=1, ensure_ascii=False)
        (aside / "id2label.json").write_text(f"{text}\n", encoding="utf-8")
        (aside / "drawn").rmdir()
        if destination.is_dir():
            destination.rmdir()  # it is empty
        aside.rename(destination)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    labeled = Counter(split for split, photo in zip(splits, photos, strict=True) if photo.file in masks)
    ordered = {split: labeled[split] for split in ("train", "validation", "test") if labeled[split]}
    return Written(ordered, sum(split == "unlabeled" for split in splits), id2label, ids[BACKGROUND])


def class_ids(names: list[str]) -> dict[str, int]:
    """{class: id}: what no region covers is background, 0; the classes follow in their order."""
    ids = dict.fromkeys((BACKGROUND, *BACKGROUND_NAMES), 0)
    folded = {*BACKGROUND_NAMES, *IGNORE_NAMES}
    for name in dict.fromkeys(names):
        if name.lower() not in folded:
            ids[name] = max(ids.values()) + 1
        elif name.lower() in BACKGROUND_NAMES:
            ids[name] = 0
    if max(ids.values()) >= IGNORED:
        raise InputError(
            f"The annotations have {max(ids.values())} classes, but masks hold at most {IGNORED - 1} and background."
        )
    return ids


def given_ids(names: list[str], id2label: dict[int, str]) -> dict[str, int]:
    """{class: id} of numbers that are given, without those classes of the annotations that have none.

    What no region covers, or one of the class background, is ignored if background is none of the given classes.
    """
    ids = {name: number for number, name in id2label.items()}
    if len(ids) < len(id2label):
        raise InputError("--id2label gives two classes the same name; give each its own.")
    for number in id2label:
        if not 0 <= number < IGNORED:
            raise InputError(f"--id2label names the class {number}, but masks hold 0 to {IGNORED - 1}.")
    background = next((n for name, n in ids.items() if name.lower() in BACKGROUND_NAMES), IGNORED)
    also = (name for name in names if name.lower() in BACKGROUND_NAMES)
    return dict.fromkeys((*BACKGROUND_NAMES, *also), background) | ids


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _write_masks(
    photos: list[Photo],
    files: Files,
    aside: Path,
    ids: dict[str, int],
    report: Report,
    given: dict[int, str] | None,
) -> dict[str, Path]:
    """{photo: its mask, drawn into a folder aside}."""
    masks: dict[str, Path] = {}
    seen: set[str | None] = set()
    unknown: set[str] = set()
    (aside / "drawn").mkdir()
    for photo in tqdm(photos, desc="drawing masks", unit="photo", disable=None):
        if photo.regions is None:
            continue
        with report.skip(photo.file):
            regions = photo.regions() if callable(photo.regions) else photo.regions
            regions = [_normalized(region, ids) for region in regions]
            if new := {region.label for region in regions if region.label is not None} - ids.keys():
                unknown |= new
                raise Unusable("annotations of an unknown class")
            mask, drawn = _draw_upright(photo, regions, files, ids, report)
            if not regions and ids[BACKGROUND] == IGNORED:
                raise Unusable("photos whose annotation is empty, kept as unlabelled")
            if not regions:
                report.add("photos whose annotation is empty: all of them is background", photo.file)
            if regions and all(label is None or ids[label] == IGNORED for label in drawn):
                raise Unusable("photos without any usable annotation, kept as unlabelled")
            masks[photo.file] = aside / "drawn" / f"{len(masks)}.png"
            Image.fromarray(mask).save(masks[photo.file])
            seen |= drawn
    if unknown and given is not None:
        raise InputError(
            f"--id2label does not name {visible(', '.join(sorted(unknown)))}, which is annotated; it names "
            f"{', '.join(given.values())}. Add the missing names, or leave out --id2label."
        )
    if not seen - {None, *BACKGROUND_NAMES}:
        raise InputError("\n".join([f"No photo of {files.root} has a usable annotation.", *report.lines()]))
    for name in ids:
        if name.lower() not in BACKGROUND_NAMES and name not in seen:
            report.add("classes without annotation", name)
    return masks


def _normalized(region: Region, ids: dict[str, int]) -> Region:
    """The region with the label None if it is to be ignored."""
    label = region.label
    if label is not None and label not in ids and label.lower() in IGNORE_NAMES:
        region.label = None
    return region


def _draw_upright(
    photo: Photo, regions: list[Region], files: Files, ids: dict[str, int], report: Report
) -> tuple[np.ndarray, set[str | None]]:
    """The mask of a photo as it is displayed, and the labels that were drawn.

    Tools show photos upright, as EXIF tells, and so are their annotations, unless the sizes say otherwise.
    """
    stored, turned = files.header(photo.file)
    shown = files.shown_size(photo.file)
    if photo.size in (None, shown):
        return draw(regions, *shown, ids, report, photo.file)
    if photo.size != stored:
        raise Unusable("photos of another size than their annotations, kept as unlabelled")
    mask, drawn = draw(regions, *stored, ids, report, photo.file)
    report.add(TURNED, photo.file)
    picture = Image.fromarray(mask)
    picture.getexif()[ORIENTATION] = turned
    return np.asarray(ImageOps.exif_transpose(picture)), drawn


def _choose_splits(
    photos: list[Photo], masks: dict[str, Path], fraction: float | None, seed: int
) -> list[str]:
    """The folder of each photo; all photos without a mask come to "unlabeled"."""
    splits = [photo.split if photo.file in masks else "unlabeled" for photo in photos]
    if fraction is None:
        return splits
    if "validation" in splits:
        raise InputError("The annotations have validation photos already; leave out --validation_fraction.")
    train = [i for i, split in enumerate(splits) if split == "train"]
    count = max(1, round(fraction * len(train)))
    if count >= len(train):
        raise InputError(
            f"--validation_fraction {fraction} of {len(train)} photos with masks leaves none for training; leave it "
            "out, or annotate more photos."
        )
    for i in random.Random(seed).sample(train, count):
        splits[i] = "validation"
    return splits


def _place(
    photos: list[Photo], splits: list[str], masks: dict[str, Path], files: Files, aside: Path, report: Report
) -> None:
    """Copies the photos and moves their masks to where they belong."""
    common = _common_folders(photos, splits)
    taken: set[str] = set()
    for photo, split in zip(photos, splits, strict=True):
        inner = posixpath.relpath(photo.file, common[split] or ".")
        stem, suffix = posixpath.splitext(inner)
        free, number = stem, 1
        while f"{split}/{free}".lower() in taken:
            number += 1
            free = f"{stem}_{number}"
        if free != stem:
            report.add("photos renamed, since another has the same name", f"{photo.file} -> {free}{suffix}")
        taken.add(f"{split}/{free}".lower())
        target = aside / split / "images" / f"{free}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files.root / photo.file, target)
        if photo.file in masks:
            mask = aside / split / "masks" / f"{free}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            masks[photo.file].rename(mask)


def _common_folders(photos: list[Photo], splits: list[str]) -> dict[str, str]:
    """The deepest folder that holds all photos of a split; their paths are kept from there on."""
    folders: dict[str, set[str]] = {}
    for photo, split in zip(photos, splits, strict=True):
        folders.setdefault(split, set()).add(posixpath.dirname(photo.file))
    return {split: posixpath.commonpath(found) if "" not in found else "" for split, found in folders.items()}

"""Which mask belongs to which photo, by the names of the files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from ...errors import InputError
from ...text import some
from .lists import Pair

# Words that people and tools add to the name of a mask, or of a photo.
MASK_WORDS = {
    "mask", "masks", "label", "labels", "labeled", "seg", "segmentation", "segmented", "gt", "gtfine", "gtcoarse",
    "groundtruth", "truth", "annotation", "annotated", "labelids", "labeltrainids", "matte", "trimap", "target", "l",
}  # fmt: skip
PHOTO_WORDS = {"image", "img", "photo", "picture", "rgb", "leftimg8bit", "sat", "original", "orig", "input"}
SUFFIX_WORDS = {"jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "jp2", "avif", "jfif"}  # photo.jpg.png
SHOWN = 3  # files in a note


class Pairing(NamedTuple):
    """Photos with their masks, where they have one."""

    pairs: list[Pair]
    notes: list[str]  # how names that differ were paired, a sentence each
    unused: list[str]  # masks that fit no photo


def pair(photos: Mapping[str, str], masks: Mapping[str, str]) -> Pairing:
    """Pair the files of two mappings from the relative path without suffix to the path.

    Names must be equal, or equal but for capitals, the coding of accents, or added words: photo_mask.png,
    mask_photo.png, photo.jpg.png, and photo_leftImg8bit.png with photo_gtFine_labelIds.png.

    Raises:
        InputError: two masks may belong to one photo, or a mask to two photos.
    """
    chosen = {stem: stem for stem in photos.keys() & masks.keys()}  # photo -> mask
    plain: dict[str, list[str]] = defaultdict(list)
    for stem in photos:
        if stem not in chosen:
            for name in {stem, _without(stem, PHOTO_WORDS), _without(stem, SUFFIX_WORDS)}:
                if stem not in plain[_folded(name)]:
                    plain[_folded(name)].append(stem)
    claims: dict[str, list[str]] = defaultdict(list)
    for stem in masks:
        if stem in chosen:
            continue
        names = {stem, _without(stem, MASK_WORDS), _without(stem, SUFFIX_WORDS)}
        names.add(_without(_without(stem, SUFFIX_WORDS), MASK_WORDS))
        found = sorted({photo for name in names for photo in plain.get(_folded(name), ())})
        if len(found) > 1:
            raise InputError(
                f"The mask {masks[stem]} may belong to {photos[found[0]]} or {photos[found[1]]}: give it the name of "
                "its photo."
            )
        if found:
            claims[found[0]].append(stem)
    for photo, candidates in claims.items():
        if len(candidates) > 1:
            listed = some((os.path.basename(masks[stem]) for stem in sorted(candidates)), SHOWN)
            raise InputError(
                f"The photo {photos[photo]} may have {len(candidates)} masks, {listed}: keep one of them, or name the "
                "pairs in a --labeled_list."
            )
        chosen[photo] = candidates[0]
    notes = []
    if claims:
        examples = [
            f"{os.path.basename(masks[chosen[p]])} with {os.path.basename(photos[p])}" for p in sorted(claims)
        ]
        notes.append(
            f"{len(claims)} masks whose names differ from their photos' were paired: {some(examples, SHOWN)}."
        )
    taken = set(chosen.values())
    pairs = [Pair(path, masks.get(chosen[stem]) if stem in chosen else None) for stem, path in photos.items()]
    return Pairing(pairs, notes, [path for stem, path in masks.items() if stem not in taken])


def beside(files: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Photos and masks that lie in one folder, apart. `files`: {path relative to the folder: path}.

    A mask is called like a photo with a word for masks, or like a JPEG photo but with the suffix of PNG or .npy.
    """
    stems: dict[str, list[str]] = defaultdict(list)
    for name in files:
        stems[os.path.splitext(name)[0]].append(name)
    masks: dict[str, str] = {}
    for stem, names in stems.items():
        base = _without(_without(stem, SUFFIX_WORDS), MASK_WORDS)
        if base != stem and (base in stems or _without(stem, SUFFIX_WORDS) in stems):
            masks[stem] = files[names[0]]
        elif len(names) == 2:
            exact = [name for name in names if os.path.splitext(name)[1].lower() in (".png", ".npy", ".gif")]
            if len(exact) == 1:
                masks[stem] = files[exact[0]]
    taken = set(masks.values())
    return {os.path.splitext(name)[0]: path for name, path in files.items() if path not in taken}, masks


def _folded(name: str) -> str:
    """The name in small letters; macOS codes an accent and its letter apart, other systems together."""
    return unicodedata.normalize("NFC", name).lower()


def _without(stem: str, words: set[str]) -> str:
    """The name without words of this kind at its end, or else at its start."""
    folder, name = os.path.split(stem)
    parts = re.split(r"([_\-. ]+)", name)
    end = len(parts)
    while end > 1 and parts[end - 1].lower() in words:
        end -= 2
    start = 0
    if end == len(parts):
        while start < end - 1 and parts[start].lower() in words:
            start += 2
    return os.path.join(folder, "".join(parts[start:end])) if folder else "".join(parts[start:end])

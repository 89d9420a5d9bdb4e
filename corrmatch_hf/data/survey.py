"""What the masks of a dataset hold, and which classes follow from it.

Ids become classes as they are only where that is plausible. Everything else is refused with the option that says what
the masks mean, or, where there is one obvious reading, read so and told.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np

from ..errors import InputError
from ..text import some
from .classes import Classes, numbered_names
from .masks import JPEG_REMEDY, Color, MaskFormat, open_mask, voc_colors
from .semi_dataset import mask_file, spread_rows

SCANNED_MASKS = 2000  # masks of each part that are read to find the number of classes
SAMPLED_MASKS = 64  # masks of each part that are read if it is known
MOST_VALUES = 128  # different ids, or colours, that people give without naming the classes
SHOWN = 12  # ids or colours in a message


@dataclass
class MaskSurvey:
    """The contents of some masks, before any reading of them."""

    masks: int = 0
    ids: dict[int, str] = field(default_factory=dict)  # number -> the first mask that holds it
    colors: Counter[Color] = field(default_factory=Counter)  # of masks in colours -> masks that hold it
    jpeg: list[str] = field(default_factory=list)  # files
    palettes: dict[int, dict[Color, str]] = field(
        default_factory=dict
    )  # number -> its colours -> a file with it
    halves: dict[int, str] = field(
        default_factory=dict
    )  # 1 or 255, the only number beside 0 -> the first file
    unreadable: InputError | None = None  # the first one

    @property
    def is_black_and_white(self) -> bool:
        """Whether 0 and 255 (of 16 bits: 65535) are all that the masks hold."""
        return set(self.ids) in ({0, 255}, {0, 65535}) and not self.colors


def survey_masks(parts: Sequence[datasets.Dataset | None], limit: int) -> MaskSurvey:
    """Read `limit` masks of each part, evenly spread. Unreadable ones are skipped; the first error is kept."""
    survey = MaskSurvey()
    for part in parts:
        if part is None:
            continue
        for row in spread_rows(part.remove_columns("image") if "image" in part.column_names else part, limit):
            if row["label"] is None:
                continue
            try:
                _add(survey, row)
            except InputError as error:
                survey.unreadable = survey.unreadable or error
    return survey


def _add(survey: MaskSurvey, row: dict) -> None:
    file = mask_file(row)
    raw = open_mask(row["label"], file)
    survey.masks += 1
    if raw.jpeg:
        survey.jpeg.append(file)
        return  # its values are not those that were drawn
    values = raw.values
    if values.ndim == 3 and (values == values[..., :1]).all():  # ids, saved as R = G = B
        values = values[..., 0]
    if values.ndim == 2:
        ids = [int(v) for v in np.unique(values)]
        survey.ids = dict.fromkeys(ids, file) | survey.ids
        if ids in ([0, 1], [0, 255]):
            survey.halves.setdefault(ids[1], file)
        if raw.palette is not None:
            for i in ids:
                color = tuple(raw.palette[i].tolist())
                survey.palettes.setdefault(i, {}).setdefault(color, file)
        return
    colors = np.unique(values.reshape(-1, 3), axis=0)
    if len(survey.colors) <= 16 * MOST_VALUES:  # a photo has tens of thousands
        survey.colors.update(map(tuple, colors[: 16 * MOST_VALUES].tolist()))


def settle_classes(
    classes: Classes | None,
    num_labels: int | None,
    mask_format: MaskFormat,
    survey: MaskSurvey,
    ignored_given: bool,
) -> Classes:
    """The classes of a dataset, with what was assumed in `notes`.

    Args:
        classes: as the user or the dataset names them; None if nobody does.
        num_labels: their number, if it is given without names.
        mask_format: how the user says that the masks are coded.
        ignored_given: whether the user gave the ignore value, so that 255 is not taken for a class.

    Raises:
        InputError: the masks do not tell what their classes are.
    """
    notes = []
    if survey.jpeg:
        notes.append(f"{len(survey.jpeg)} masks are JPEGs ({survey.jpeg[0]}): {JPEG_REMEDY}.")
    if mask_format.label_colors is None and (differing := _differing_palettes(survey)):
        notes.append(differing)
    count = len(classes.id2label) if classes else num_labels
    if set(survey.ids) == {0, 1, 255} and len(survey.halves) == 2 and not ignored_given:
        notes.append(
            f"Some masks hold 0 and 1 alone ({survey.halves[1]}), others 0 and 255 ({survey.halves[255]}): 255 is read "
            "as 'ignore'. If it means the same as 1, write 1 in its place in these masks; if not, --ignore_index 255 "
            "confirms it."
        )
    plain = mask_format.label_colors is None and not mask_format.reduce_labels
    if (
        survey.is_black_and_white and plain and count in (None, 2)
        and not (ignored_given and mask_format.ignore_index in survey.ids)
        and (classes is None or classes.label_ids is None)
    ):  # fmt: skip
        names = (
            classes.id2label
            if classes
            else numbered_names(2)
            if count
            else {0: "background", 1: "foreground"}
        )
        white = max(survey.ids)
        notes.append(
            f"The masks hold 0 and {white} alone: read as the classes {names[0]!r} and {names[1]!r} (if {white} means "
            f"'ignore', say so with --ignore_index {white})."
        )
        return Classes(names, label_ids=(0, white), notes=tuple(notes))
    if classes is not None:
        return Classes(classes.id2label, classes.label_ids, classes.ignored_ids, (*classes.notes, *notes))
    if num_labels is not None:
        return Classes(numbered_names(num_labels), notes=tuple(notes))
    ids, gaps = _guessed_ids(mask_format, survey)
    return Classes(numbered_names(ids[-1] + 1), notes=(*notes, *gaps))


def _differing_palettes(survey: MaskSurvey) -> str | None:
    for i, colors in sorted(survey.palettes.items()):
        if len(colors) > 1:
            (one, first), (other, second) = list(colors.items())[:2]
            return (
                f"The palettes of the masks differ: {i} has the colour {one} in {first} and {other} in {second}, so "
                "the same number may mean different classes. If the colours are right, give them with --label_colors."
            )
    return None


def _guessed_ids(mask_format: MaskFormat, survey: MaskSurvey) -> tuple[list[int], list[str]]:
    """The class ids in the masks, sorted, and a note on those below the highest that never occur."""
    if survey.masks == 0 and survey.unreadable is not None:
        raise survey.unreadable
    ids = set(survey.ids)
    if survey.colors:
        ids |= _ids_of_colors(mask_format, survey)
    ids -= {mask_format.ignore_index}
    if mask_format.reduce_labels:
        ids = {i - 1 for i in ids - {0}}
    found = sorted(ids)
    if survey.jpeg and 2 * len(survey.jpeg) > survey.masks:
        raise InputError(
            f"{len(survey.jpeg)} of {survey.masks} masks are JPEGs ({survey.jpeg[0]}), so that their classes cannot be "
            f"told: {JPEG_REMEDY} from their source."
        )
    if not found or found[-1] < 1:
        held = "no class id but 0" if found else "no class id"
        raise InputError(
            f"The masks contain {held} (and the ignore value {mask_format.ignore_index}): check --ignore_index "
            "and --reduce_labels; black and white masks need --label_colors '[[0, 0, 0], [255, 255, 255]]'."
        )
    if found[0] < 0:
        raise InputError(
            f"The masks hold the negative id {found[0]}: give it as --ignore_index, or map it to a class."
        )
    if len(found) > MOST_VALUES or found[-1] > 255:
        raise InputError(
            f"The masks hold {len(found)} different values up to {found[-1]}: they look like numbers of objects "
            "(instance ids), like photos, or like masks that were resized with interpolation. Give masks of class "
            f"ids; if every value is a class, say so with --num_labels {found[-1] + 1}."
        )
    absent = [i for i in range(found[-1]) if i not in ids]
    blurred = len(found) > SHOWN
    if len(absent) > len(found):
        where = f" ({found[-1]} in {survey.ids[found[-1]]})" if found[-1] in survey.ids else ""
        raise InputError(
            f"The masks hold the values {some(found)}{where}, so that most of the ids from 0 to {found[-1]} never "
            f"occur. Say which classes these are: {_naming(found, mask_format)}, or, if the other ids are classes that "
            f"these masks do not show, --num_labels {found[-1] + 1}."
            + (" If the masks were resized with interpolation, make them anew without." if blurred else "")
        )
    start = " If they start at 1, give --reduce_labels." if found[0] == 1 else ""
    gaps = f"No mask that was read holds the ids {some(absent)}; the classes are 0 to {found[-1]} all the same.{start}"
    return found, [gaps] if absent else []


def _naming(found: list[int], mask_format: MaskFormat) -> str:
    """The option that names these ids, ready to paste."""
    if mask_format.reduce_labels or len(found) > SHOWN:
        return "name them with --id2label"
    names = {str(i): f"class {i}" for i in found}
    return f"--id2label '{json.dumps(names)}' (null instead of a name: ignored)"


def _ids_of_colors(mask_format: MaskFormat, survey: MaskSurvey) -> set[int]:
    """The ids of masks in colours, which must be PASCAL VOC's where no colours are given."""
    if mask_format.label_colors is not None:
        return set(range(len(mask_format.label_colors)))
    table = {color: i for i, color in enumerate(voc_colors())}
    *_, border = table
    ids = {table.get(color, -1) for color in survey.colors if color != border}
    missing = len([i for i in range(max(ids) + 1) if i not in ids])
    if -1 not in ids and missing <= len(ids):
        return ids
    colors = sorted(survey.colors)
    if len(colors) > SHOWN:
        raise InputError(
            f"The masks are pictures in more than {SHOWN} colours, and not in PASCAL VOC's: give the colour of every "
            "class with --label_colors. If they have thousands of colours, they are photos, or were saved as JPEG or "
            "resized with interpolation."
        )
    listed = json.dumps([list(color) for color in colors])
    raise InputError(
        f"The masks are pictures in {len(colors)} colours. Say which classes these are: --label_colors '{listed}', "
        "with the colours in the order of the classes, and --id2label to name them."
    )

"""`report.html`: a run on one page, to be read on a phone too. One file, no JavaScript, nothing from the network."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import Environment, Template
from PIL import Image, ImageDraw

from ..evaluation.confusion_matrix import ConfusionMatrix
from ..evaluation.inference import evaluating
from ..model import correlation_rows, resize
from ..ops.region_propagation import region_propagation
from ..ops.region_propagation.rows import row_shapes
from ..pictures import class_palette
from ..pictures.overlay import blend
from ..text import percent
from .atomic_write import write_text

if TYPE_CHECKING:
    from .report import RunFacts

PAGE = "report.html"
LOOKED_AT = 24  # evaluation photos, evenly spread; the best and worst of them are shown
SECONDS = 45  # after which no further photo is looked at, so that the end of a run stays quick
SHOWN = 3  # best photos, and worst ones
WIDTH = 340  # of a picture in pixels
CORRELATION_SIDE = 512  # photos are shrunk to it for correlation maps
POINTS = 3  # of each photo whose correlation is shown
SHAPES = 128  # for region propagation, as many as CorrMatch samples by default
LARGEST_MATRIX = 25  # classes; of more, only the most frequent confusions are listed
CONFUSIONS = 8
WRONG, UNKNOWN = (220, 38, 38), (160, 160, 160)


@dataclass
class Look:
    """An evaluation photo uint8 (H, W, 3), its truth and prediction (H, W), and how far they agree."""

    file: str
    photo: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    mean_iou: float


def write_report_page(folder: Path, facts: RunFacts) -> None:
    """Write `report.html` into `folder`."""
    palette = class_palette(facts.data.id2label, facts.data.label_colors)
    looks, confusion = _look(facts)
    looks.sort(key=lambda look: look.mean_iou)
    few = min(SHOWN, len(looks) // 2 or len(looks))
    worst, best = looks[:few], looks[::-1][: min(SHOWN, len(looks) - few)]
    result = facts.result()
    correlations, propagations = _examined([*best[:1], *worst[:1]], facts, palette)
    page = _template().render(
        title=f"{facts.method} on {facts.data.name}",
        result=result,
        data=facts.data,
        unlabeled=len(facts.data.unlabeled) if hasattr(facts.data.unlabeled, "__len__") else None,
        uses_unlabeled=facts.uses_unlabeled,
        duration=_duration(facts.seconds),
        curves=_curves(facts, palette),
        classes=list(_classes(facts, result, palette)),
        figures=FIGURES,
        groups=[
            (name, [_pictures(look, palette) for look in some])
            for name, some in (("Best", best), ("Worst", worst))
            if some
        ],
        looked_at=len(looks),
        matrix=_matrix(confusion, facts.data.id2label),
        confusions=_confusions(confusion, facts.data.id2label),
        correlations=correlations,
        propagation=propagations,
    )
    write_text(folder / PAGE, page)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    return environment.from_string(Path(__file__).with_name("report.html.jinja").read_text("utf-8"))


# Evaluation photos


def _look(facts: RunFacts) -> tuple[list[Look], ConfusionMatrix]:
    """Some evaluation photos with predictions, and the confusion matrix over them."""
    data = facts.data
    total = ConfusionMatrix(data.num_labels, data.ignore_index)
    looks, end = [], time.monotonic() + SECONDS
    for sample in facts.examples(LOOKED_AT):
        if time.monotonic() > end:
            break
        prediction = facts.predict(sample["image"])
        own = ConfusionMatrix(data.num_labels, data.ignore_index)
        own.update(prediction, sample["label"])
        total += own
        if (mean_iou := own.compute()["mean_iou"]) is not None:
            photo = sample["image"].permute(1, 2, 0).numpy()
            name = Path(sample["file"]).name
            small, label, predicted = _small(photo, sample["label"].numpy(), prediction.numpy())
            looks.append(Look(name, small, label, predicted, mean_iou))
    return looks, total


def _small(photo: np.ndarray, *maps: np.ndarray) -> tuple[np.ndarray, ...]:
    """A photo and its maps, shrunk to twice the width that is shown, so that many fit into memory."""
    height, width = photo.shape[:2]
    scale = min(1.0, 2 * WIDTH / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [
        np.asarray(Image.fromarray(m.astype(np.int32)).resize(size, Image.Resampling.NEAREST)) for m in maps
    ]
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)), *small


def _pictures(look: Look, palette: np.ndarray) -> dict[str, Any]:
    """A photo as the page shows it."""
    known = (look.label >= 0) & (look.label < len(palette))
    grey = np.repeat(look.photo.mean(2, keepdims=True), 3, axis=2) * 0.5 + 100
    errors = np.where((known & (look.label != look.prediction))[..., None], WRONG, grey)
    errors = np.where(known[..., None], errors, 255)
    pictures = {
        "photo": Image.fromarray(look.photo),
        "truth": blend(look.photo, look.label, palette, 0.5),
        "prediction": blend(look.photo, look.prediction, palette, 0.5),
        "errors": Image.fromarray(errors.astype(np.uint8)),
    }
    return {
        "file": look.file,
        "mean_iou": look.mean_iou,
        "pictures": {name: _jpeg(picture) for name, picture in pictures.items()},
    }


# Classes


FIGURES = {  # of pseudo-labels: key -> heading
    "share": "share",
    "confidence": "confidence",
    "kept_ratio": "counted",
    "propagated_ratio": "after propagation",
    "threshold": "threshold",
    "accuracy": "right",
    "propagated_accuracy": "right after propagation",
}


def _classes(facts: RunFacts, result: dict[str, Any], palette: np.ndarray) -> Iterator[dict[str, Any]]:
    """A row of the table for each class."""
    final = (result["final"] or result["best"] or {}).get("per_class") or {}
    evaluated = dict(zip(facts.data.id2label, final.values(), strict=False))  # in the order of the ids
    pseudo = result["pseudo_labels"] or {}
    for number, name in facts.data.id2label.items():
        yield {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*palette[number].tolist()),
            "evaluated": evaluated.get(number),
            "pseudo": pseudo.get(name),
        }


def _matrix(confusion: ConfusionMatrix, id2label: dict[int, str]) -> list[tuple[str, list[float | None]]]:
    """(true class, share of its pixels predicted as each class); nothing for too many classes."""
    counts = confusion.matrix.cpu().double()
    if len(id2label) > LARGEST_MATRIX or not counts.sum():
        return []
    shares = counts / counts.sum(1, keepdim=True)  # NaN for a class that does not occur
    return [
        (id2label[c], [None if value != value else value for value in shares[c].tolist()])
        for c in range(len(id2label))
    ]


def _confusions(confusion: ConfusionMatrix, id2label: dict[int, str]) -> list[tuple[str, str, float]]:
    """The most frequent errors: (true class, predicted class, share of the true class's pixels)."""
    counts = confusion.matrix.cpu().double().fill_diagonal_(0)
    truth = confusion.matrix.cpu().double().sum(1)
    order = counts.flatten().argsort(descending=True, stable=True)[:CONFUSIONS].tolist()
    pairs = [divmod(place, len(id2label)) for place in order]
    return [
        (id2label[t], id2label[p], (counts[t, p] / truth[t]).item()) for t, p in pairs if counts[t, p] > 0
    ]


# Correlation and propagation


def _examined(
    looks: list[Look], facts: RunFacts, palette: np.ndarray
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Correlation maps of some photos, and what region propagation does to their labels, where a method has them."""
    correlations: list[dict[str, Any]] = []
    propagations: list[dict[str, Any]] = []
    if not facts.model.config.correlation_head or not facts.uses_unlabeled:
        return correlations, propagations
    threshold = _propagation_threshold(facts)
    for look in looks:
        query, key, logits = _query_and_key(look, facts)
        correlations.append(_correlation(look, query, key, facts.data.id2label))
        if threshold is not None:
            propagations.append(_propagation(look, query, key, logits, threshold, palette))
    return correlations, propagations


def _propagation_threshold(facts: RunFacts) -> float | None:
    """The last threshold of the log; None where the method propagates no regions."""
    rows = [row for row in facts.rows if "threshold" in row and "propagated_ratio" in row]
    return rows[-1]["threshold"] if rows and facts.options.get("propagation") == "region" else None


@torch.no_grad()
def _query_and_key(look: Look, facts: RunFacts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query and key (1, D, h, w) and logits (1, K, H, W) of a photo, shrunk to `CORRELATION_SIDE`."""
    photo = Image.fromarray(look.photo)
    photo.thumbnail((CORRELATION_SIDE, CORRELATION_SIDE))
    pixel_values = facts.normalized(torch.from_numpy(np.array(photo)).permute(2, 0, 1))
    with evaluating(facts.model):
        features = facts.model.encode(pixel_values)
        decoded = facts.model.decode(features)
        query, key = facts.model.correlate(features, decoded)
    return query, key, resize(decoded.logits, pixel_values.shape[-2:]).float()


def _correlation(
    look: Look, query: torch.Tensor, key: torch.Tensor, id2label: dict[int, str]
) -> dict[str, Any]:
    """Where a photo looks like some of its pixels: one in each of its largest classes."""
    from matplotlib import colormaps  # half a second that the first step need not wait for

    h, w = query.shape[-2:]
    height, width = look.label.shape
    ids, counts = np.unique(look.prediction, return_counts=True)
    shown = []
    for number in ids[np.argsort(-counts, kind="stable")][:POINTS].tolist():
        y, x = _inside(look.prediction == number)
        place = min(y * h // height, h - 1) * w + min(x * w // width, w - 1)
        row = correlation_rows(query, key, torch.tensor([place]).to(query.device))[0, 0]  # (h, w)
        heat = (row - row.min()) / (row.max() - row.min()).clamp(min=1e-12)
        heat = Image.fromarray(heat.cpu().numpy()).resize((width, height), Image.Resampling.BILINEAR)
        colors = colormaps["magma"](np.asarray(heat))[..., :3] * 255
        picture = Image.fromarray((0.4 * look.photo + 0.6 * colors).astype(np.uint8))
        radius = max(3, width // 60)
        for r, fill in ((radius + 2, "black"), (radius, "white")):
            ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), fill=fill)
        shown.append((id2label[number], _jpeg(picture)))
    return {"file": look.file, "photo": _jpeg(Image.fromarray(look.photo)), "maps": shown}


def _inside(region: np.ndarray) -> tuple[int, int]:
    """The pixel of a region that is nearest to its median."""
    places = np.argwhere(region)
    distance = np.abs(places - np.median(places, axis=0)).sum(1)
    y, x = places[distance.argmin()]
    return int(y), int(x)


def _propagation(
    look: Look,
    query: torch.Tensor,
    key: torch.Tensor,
    logits: torch.Tensor,
    threshold: float,
    palette: np.ndarray,
) -> dict[str, Any]:
    """Confident pseudo-labels before and after region propagation."""
    confidence, labels = logits.softmax(1).max(1)
    size = tuple(labels.shape[-2:])
    positions = query.shape[-2] * query.shape[-1]
    index = torch.linspace(0, positions - 1, SHAPES, device=query.device).long()
    shapes = row_shapes(correlation_rows(query, key, index), size)
    confident = confidence >= threshold
    after = region_propagation(labels, confident, shapes, threshold, logits.shape[1])
    photo = np.asarray(Image.fromarray(look.photo).resize(size[::-1]))
    entry: dict[str, Any] = {
        "file": look.file,
        "photo": _jpeg(Image.fromarray(photo)),
        "threshold": threshold,
    }
    for name, (ids, counted) in {"before": (labels, confident), "after": after}.items():
        shown = torch.where(counted, ids, -1)[0].cpu().numpy()
        picture = np.asarray(blend(photo, shown, palette, 0.75)).copy()
        picture[shown < 0] = UNKNOWN
        entry[name] = _jpeg(Image.fromarray(picture))
        entry[f"{name}_ratio"] = counted.float().mean().item()
    return entry


# Pictures


def _curves(facts: RunFacts, palette: np.ndarray) -> dict[str, str]:
    """The curves for wide screens, and in one column for phones."""
    if not facts.rows:
        return {}
    from ..pictures import training_curves  # imports matplotlib

    return {
        name: _png(training_curves(facts.rows, classes=(facts.data.id2label, palette), columns=columns))
        for name, columns in (("wide", 3), ("narrow", 1))
    }


def _png(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    # A palette of 128 colours: a third of the size.
    picture = Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _jpeg(picture: Image.Image) -> str:
    picture = picture.copy()
    picture.thumbnail((WIDTH, WIDTH))
    file = io.BytesIO()
    picture.save(file, format="jpeg", quality=78, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

"""The README of a model's folder, which is also its card on the Hub.

The template `model_card.md` is filled with the facts of the run. They are also saved in `run.json`, so that the card
can be written again under another name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, Template

from ..errors import InputError
from ..methods.citations import citation_of
from ..model import CorrMatchConfig, CorrMatchForSegmentation
from ..text import (
    markdown_cell,
    markdown_code,
    percent,
    presentable_command,
    presentable_values,
    visible,
    without_tokens,
)

REQUIRED = ("encoder_name", "output_stride", "id2label")
DECODERS = {"deeplabv3plus": "DeepLabV3+", "dpt": "DPT", "linear": "a linear decoder"}

PARTS = ("run", "metrics", "best", "pictures", "samples", "options", "command", "versions")

FACTS = {
    "dataset": "Data",
    "dataset_config": "Configuration",
    "dataset_split": "Evaluation split",
    "dataset_revision": "Revision",
    "labeled_images": "Labelled images",
    "unlabeled_images": "Unlabelled images",
    "validation_images": "Evaluation images",
    "method": "Method",
    "steps": "Steps",
    "total_batch": "Total batch",
    "crop_size": "Crop",
    "seed": "Seed",
    "device": "Device",
    "processes": "Processes",
    "seconds": "Training time",
}

MEANS = {
    "mean_iou": "Mean IoU over the classes present",
    "mean_iou_all_classes": "Mean IoU over all classes, absent ones as 0",
    "mean_accuracy": "Mean accuracy of the classes",
    "pixel_accuracy": "Pixel accuracy",
}

PSEUDO_LABELS = {
    "share": "Share",
    "confidence": "Confidence",
    "kept_ratio": "Counted",
    "propagated_ratio": "Counted after propagation",
    "threshold": "Threshold",
    "accuracy": "Right",
    "propagated_accuracy": "Right after propagation",
}

# Part of the file format: cards written by earlier versions must be recognised.
SEAL = "\n<!-- Written by corrmatch-hf from run.json ({digest}). Change it freely: your words are kept. -->\n"


def write_run_card(
    folder: str | Path,
    *,
    run: Mapping[str, Any],
    metrics: Mapping[str, object] | None = None,
    best: Mapping[str, object] | None = None,
    pictures: Mapping[str, str] | None = None,
    samples: Sequence[Mapping[str, str]] | None = None,
    options: Mapping[str, object] | None = None,
    command: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write the arguments to `folder/run.json`, and the card made from them to `folder/README.md`; returns the card.

    Tokens, passwords and keys are replaced by ***, absolute paths by their last part. A card that was edited is not
    overwritten.

    Args:
        folder: of the saved model.
        run: facts of the run. Required are "encoder_name", "output_stride" and "id2label". Shown if given and not
            None: "decoder", "method", "dataset" (its name), "parameters", "labeled_images", "unlabeled_images",
            "validation_images" (counts), "steps", "total_batch", "crop_size", "seed", "processes", "device",
            "seconds" (of training), "effect" (of unlabelled images, in words), "starving" (classes, in words),
            "pseudo_labels" ({class: figures}), "dataset_config", "dataset_split" (of
            the metrics), "dataset_revision", "encoder_origin" (Hub id or file of the encoder's initial weights, "none"
            if random), "license" (of the weights, as on the Hub), "inference_only" (whether the correlation head was
            left out), and the Hub ids "hub_model_id", "dataset_id" and "base_model" (of the encoder).
        metrics: of the saved weights, from `evaluate_segmentation`; and their "step" if known.
        best: {"step", "mean_iou"} of the best evaluation of the run.
        pictures: {file name in the folder: caption}.
        samples: [{"image", "output", "title"}] photos in the folder with predictions, shown by the Hub as examples.
        options: all options of the run, shown as YAML.
        command: the shell command of the run.
        versions: of the libraries, from `library_versions`.

    Raises:
        InputError: a required fact is missing, or a picture is not in the folder.
    """
    folder = Path(folder)
    missing = [key for key in REQUIRED if run.get(key) is None]
    if missing:
        raise InputError(f"The card of {folder} needs {', '.join(missing)}: give them in `run`.")
    parts = (run, metrics, best, pictures, samples, options, command, versions)
    facts = dict(zip(PARTS, parts, strict=True))
    facts = _presentable(json.loads(json.dumps(facts, default=str)))  # with paths and tuples as JSON values
    shown = [*(pictures or {}), *(sample[key] for sample in samples or () for key in ("image", "output"))]
    if lost := [file for file in shown if not (folder / file).is_file()]:
        raise InputError(
            f"The card of {folder} shows {', '.join(lost)}, which does not exist: save it first."
        )

    record = json.dumps(facts, indent=2, ensure_ascii=False)
    _replace(folder / "run.json", f"{record}\n")
    name = run.get("hub_model_id")
    text = _render(facts, name or str(folder), title=name.split("/")[-1] if name else folder.resolve().name)
    path = folder / "README.md"
    if not path.is_file() or _is_sealed(path.read_text(encoding="utf-8")):  # else somebody edited it
        _replace(path, _sealed(text))
    return path


def remove_run_card(folder: Path) -> None:
    """Delete what `write_run_card` wrote, apart from a card that somebody edited."""
    (folder / "run.json").unlink(missing_ok=True)
    card = folder / "README.md"
    if card.is_file() and _is_sealed(card.read_text(encoding="utf-8", errors="replace")):
        card.unlink()


def _replace(path: Path, text: str) -> None:
    """Write a file at once: a card that was cut off would be taken for one that somebody edited."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def card_for_push(folder: str | Path, repo_id: str, *, inference_only: bool = False) -> str:
    """The README with which a model's folder is published.

    A card of `write_run_card` is written again with the name `repo_id`, without pictures that no longer exist. In an
    edited one only the name in its snippets is changed; a card without `run.json` is kept as it is. Without any card, a
    short one is made from `config.json`.

    Args:
        folder: of the model.
        repo_id: "user/name".
        inference_only: the model is published without its correlation head.

    Raises:
        InputError: `run.json` is corrupt; or there is no card and the model is not a CorrMatch model.
    """
    folder = Path(folder)
    record, card = folder / "run.json", folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    if text is not None and not (record.is_file() and _is_sealed(text)):
        return without_tokens(_renamed(text, repo_id) if record.is_file() else text)
    facts = _facts_for_push(folder, repo_id, inference_only)
    text = _render(facts, repo_id, title=repo_id.split("/")[-1])
    return _sealed(text) if record.is_file() else text


def record_for_push(folder: str | Path, repo_id: str, *, inference_only: bool = False) -> str | None:
    """The `run.json` to publish with the card; None if the folder has none."""
    if not Path(folder, "run.json").is_file():
        return None
    facts = _facts_for_push(Path(folder), repo_id, inference_only)
    return f"{json.dumps(_presentable(facts), indent=2, ensure_ascii=False)}\n"


def _facts_for_push(folder: Path, repo_id: str, inference_only: bool) -> dict[str, Any]:
    """The facts of a folder that is published as `repo_id`."""
    record = folder / "run.json"
    facts = _read_facts(record) if record.is_file() else _facts_of_config(folder)
    pictures = {
        file: caption for file, caption in (facts["pictures"] or {}).items() if (folder / file).is_file()
    }
    samples = [
        sample
        for sample in facts["samples"] or ()
        if (folder / sample["image"]).is_file() and (folder / sample["output"]).is_file()
    ]
    run = facts["run"] | {"hub_model_id": repo_id}
    if inference_only and CorrMatchConfig.from_pretrained(folder).correlation_head:
        run |= {"inference_only": True, "parameters": _parameters(folder, correlation_head=False)}
    return facts | {"run": run, "pictures": pictures, "samples": samples}


def _renamed(text: str, name: str) -> str:
    """A card with another model name in its snippets; unchanged if it has none of our snippets."""
    old = re.search(r'pipeline\("image-segmentation", model=("(?:[^"\\\n]|\\.)+")', text)
    return text.replace(old.group(1), _quoted(name)) if old else text


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        complete = all(facts["run"].get(key) is not None for key in REQUIRED)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise InputError(
            f"{path} does not contain the facts of a run: move it away to publish README.md as it is, or move "
            "both away to publish a short card."
        )
    return dict.fromkeys(PARTS) | facts


def _facts_of_config(folder: Path) -> dict[str, Any]:
    """The facts in a model's config, for folders without `run.json`."""
    values = CorrMatchConfig.get_config_dict(str(folder))[0]
    if values.get("model_type") != CorrMatchConfig.model_type:
        raise InputError(
            f"{folder} contains a model of type {values.get('model_type')!r}, not a CorrMatch model: write "
            "a README.md for it first."
        )
    config = CorrMatchConfig.from_dict(values)
    origin = config.encoder_origin
    run = {
        "encoder_name": config.encoder_name,
        "decoder": config.decoder_type,
        "output_stride": config.output_stride,
        "id2label": config.id2label,
        "parameters": _parameters(folder, config.correlation_head),
        "encoder_origin": origin,
        "base_model": origin if origin and origin.startswith("timm/") else None,
        "converted_from": getattr(config, "converted_from", None),
    }
    return dict.fromkeys(PARTS) | {"run": run}


def _parameters(folder: Path, correlation_head: bool) -> int:
    """The number of parameters of the model in a folder, with or without its correlation head."""
    config = CorrMatchConfig.from_pretrained(folder, correlation_head=correlation_head)
    return sum(p.numel() for p in CorrMatchForSegmentation(config).parameters())


def _presentable(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts without secrets and without folders in absolute paths."""
    command = facts["command"] and presentable_command(facts["command"])
    return presentable_values(facts) | {"command": command and visible(command)}


@cache
def _template() -> Template:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"cell": markdown_cell, "code": markdown_code, "quoted": _quoted}
    environment.filters["percent"] = partial(percent, digits=2)
    return environment.from_string(Path(__file__).with_name("model_card.md").read_text(encoding="utf-8"))


def _render(facts: Mapping[str, Any], name: str, title: str) -> str:
    """The card of these facts (JSON values), for a model that is loaded by `name`."""
    run = {key: value for key, value in facts["run"].items() if value is not None}
    decoder = run.get("decoder", "deeplabv3plus")  # the only one in earlier versions
    dataset = markdown_cell(run.get("dataset", ""))
    if "dataset_id" in run:
        dataset = f"[{dataset}](https://huggingface.co/datasets/{run['dataset_id']})"
    per_class = (facts["metrics"] or {}).get("per_class") or {}
    absent = [label for label, values in per_class.items() if values["frequency"] == 0]
    seen = [
        {"name": label, "iou": values["iou"]} for label, values in per_class.items() if values["frequency"]
    ]

    text = _template().render(
        dict(facts)
        | {
            "front_matter": _front_matter(run, facts["metrics"], facts["samples"], title).to_yaml(),
            "title": title,
            "name": name,
            "run": run,
            "decoder": DECODERS.get(decoder, decoder),
            "reference": citation_of(run.get("method")),
            "dataset": dataset,
            "classes": [label for _, label in sorted(run["id2label"].items(), key=lambda item: int(item[0]))],
            "means": MEANS,
            "pseudo_figures": _pseudo_figures(run),
            "absent": absent,
            "seen": sorted(seen, key=lambda each: each["iou"]),
            "facts": _facts(run),
            "options": facts["options"]
            and yaml.safe_dump(facts["options"], sort_keys=False, allow_unicode=True),
        }
    )
    return without_tokens(text)


def _sealed(text: str) -> str:
    """The card with its checksum, which shows whether it was edited."""
    return text + SEAL.format(digest=hashlib.sha256(text.encode()).hexdigest()[:16])


def _is_sealed(text: str) -> bool:
    body, comment, _ = text.rpartition(SEAL.split("{")[0])
    return bool(comment) and text == _sealed(body)


def _front_matter(
    run: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    samples: Sequence[Mapping[str, str]] | None,
    title: str,
) -> ModelCardData:
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=run.get("dataset_id", run["dataset"]),
            dataset_name=run["dataset"],
            dataset_config=run.get("dataset_config"),
            dataset_split=run.get("dataset_split"),
            dataset_revision=run.get("dataset_revision"),
            metric_type=kind,
            metric_name=name,
            metric_value=round(metrics[kind], 4),
        )
        for kind, name in (("mean_iou", "Mean IoU"), ("pixel_accuracy", "Pixel accuracy"))
        if metrics and metrics.get(kind) is not None and "dataset" in run  # required by the Hub
    ]
    method = run.get("method", CorrMatchConfig.model_type)
    semi = ["semi-supervised"] if "method" in run and method != "supervised" else []
    widget = [
        {"src": sample["image"], "example_title": sample["title"], "output": {"url": sample["output"]}}
        for sample in samples or ()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", "semantic-segmentation", *semi, method, "timm", "custom_code"],
        license=run.get("license"),
        base_model=run.get("base_model"),
        datasets=[run["dataset_id"]] if "dataset_id" in run else None,
        metrics=[result.metric_type for result in results] or None,
        model_name=title if results else None,
        eval_results=results or None,
        widget=widget or None,
    )


def _pseudo_figures(run: Mapping[str, Any]) -> dict[str, str]:
    """The columns of the table of pseudo-labels that this run has."""
    first = next(iter(run.get("pseudo_labels", {}).values()), {})
    return {key: title for key, title in PSEUDO_LABELS.items() if key in first}


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    """The rows of the training table."""
    rows = {title: str(run[key]) for key, title in FACTS.items() if key in run}
    if "seconds" in run:
        rows[FACTS["seconds"]] = _duration(round(run["seconds"]))
    return rows


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _quoted(text: str) -> str:
    """A text as a string literal of Python."""
    return json.dumps(text, ensure_ascii=False)

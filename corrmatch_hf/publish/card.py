"""The README of a trained model's folder, also its card on the Hub: the facts of the run and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from corrmatch_hf.errors import InputError

FACTS = {
    "dataset": "Data",
    "labeled_images": "Labelled images",
    "unlabeled_images": "Unlabelled images",
    "validation_images": "Evaluation images",
    "method": "Method",
    "steps": "Steps",
    "total_batch": "Total batch",
    "crop_size": "Crop",
    "seed": "Seed",
}

USE = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

name = {name}
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True)

image = Image.open("photo.jpg").convert("RGB")
with torch.no_grad():
    outputs = model(**processor(images=image, return_tensors="pt"))
size = (image.height, image.width)
label_map = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
for i in label_map.unique().tolist():
    print(f"{{model.config.id2label[i]}}: {{(label_map == i).float().mean():.1%}}")
"""


def write_run_card(
    folder: str | Path,
    *,
    run: Mapping[str, object],
    metrics: Mapping[str, object] | None = None,
    best: Mapping[str, object] | None = None,
    pictures: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
) -> Path:
    """Writes `folder/README.md`, with valid front matter for the Hub, and returns its path.

    Args:
        folder: where the model was saved.
        run: what is known of the run. "method", "encoder_name", "output_stride", "dataset" (its name) and
            "id2label" must be there. Shown where given and not None: "parameters", "labeled_images",
            "unlabeled_images", "validation_images" (counts), "steps", "total_batch", "crop_size", "seed",
            and "reference" (the method's paper, in Markdown). For the front matter:
            "hub_model_id", "dataset_id" and "base_model" (Hub ids).
        metrics: of the weights in the folder, from `evaluate_segmentation`; and "step" where known.
        best: {"step", "mean_iou"} of the weights in `folder/best`.
        pictures: {file name in the folder: caption}.
        options: every option of the run, written out as YAML.

    Raises:
        InputError: a fact that must be there is missing, or a picture is not in the folder.
    """
    folder = Path(folder)
    missing = [k for k in ("method", "encoder_name", "output_stride", "dataset", "id2label") if k not in run]
    if missing:
        raise InputError(f"The card of {folder} lacks {', '.join(missing)}: give them in `run`.")
    lost = [file for file in pictures or {} if not (folder / file).is_file()]
    if lost:
        raise InputError(f"The card of {folder} shows {', '.join(lost)}, which is not there: save it first.")

    name = str(run.get("hub_model_id") or folder.resolve().name)
    sections = [f"# {name.split('/')[-1]}", _introduction(run), "## Run", _facts(run)]
    if metrics:
        sections += ["## Results", *_results(metrics, best)]
    if pictures:
        sections += [
            "## Pictures",
            *(f"![{caption}]({file})\n\n{caption}" for file, caption in pictures.items()),
        ]
    sections += [
        "## Use",
        "The model's code travels with its weights: `transformers` and `timm` are all it needs, and\n"
        "`trust_remote_code` lets it run. Where `corrmatch_hf` is imported, leave that argument out.",
        f"```python\n{USE.format(name=json.dumps(str(run.get('hub_model_id') or folder)))}```",
    ]
    if options:
        sections += ["## Options", f"```yaml\n{_yaml(options)}```"]

    card = ModelCard(f"---\n{_front_matter(run, metrics, name).to_yaml()}\n---\n\n" + "\n\n".join(sections))
    path = folder / "README.md"
    path.write_text(f"{card}\n", encoding="utf-8")
    return path


def _front_matter(
    run: Mapping[str, object], metrics: Mapping[str, object] | None, name: str
) -> ModelCardData:
    results = None
    if metrics and metrics.get("mean_iou") is not None:
        results = [
            EvalResult(
                task_type="image-segmentation",
                dataset_type=str(run.get("dataset_id") or run["dataset"]),
                dataset_name=str(run["dataset"]),
                metric_type="mean_iou",
                metric_name="Mean IoU",
                metric_value=round(metrics["mean_iou"], 4),
            )
        ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "semi-supervised", "corrmatch", "timm"],
        license="apache-2.0",
        base_model=run.get("base_model"),
        datasets=[run["dataset_id"]] if run.get("dataset_id") else None,
        metrics=["mean_iou"] if results else None,
        model_name=name if results else None,
        eval_results=results,
    )


def _introduction(run: Mapping[str, object]) -> str:
    size = f" ({run['parameters']:,} parameters)" if run.get("parameters") is not None else ""
    text = (
        f"Semantic segmentation into {len(run['id2label'])} classes: DeepLabV3+ on the timm encoder "
        f"`{run['encoder_name']}` at output stride {run['output_stride']}{size}, trained with the method "
        f"`{run['method']}` of corrmatch-hf."
    )
    return f"{text} {run['reference']}" if run.get("reference") else text


def _facts(run: Mapping[str, object]) -> str:
    rows = [(title, str(run[key])) for key, title in FACTS.items() if run.get(key) is not None]
    names = ", ".join(str(name) for _, name in sorted(run["id2label"].items()))
    return _table(("", ""), [*rows, ("Classes", names)], align="---")


def _results(metrics: Mapping[str, object], best: Mapping[str, object] | None) -> list[str]:
    count = metrics.get("num_images")
    images = "the evaluation images" if count is None else f"{count} images"
    when = "" if metrics.get("step") is None else f", after step {metrics['step']}"
    titles = {
        "mean_iou": "Mean IoU over the classes present",
        "mean_iou_all_classes": "Mean IoU over all classes, absent ones as 0",
        "mean_accuracy": "Mean accuracy of the classes",
        "pixel_accuracy": "Pixel accuracy",
    }
    means = [(title, _percent(metrics[key])) for key, title in titles.items() if key in metrics]
    classes = [
        (name, *(_percent(values[key]) for key in ("iou", "accuracy", "frequency")))
        for name, values in metrics.get("per_class", {}).items()
    ]
    paragraphs = [f"On {images}{when}, in percent.", _table(("", ""), means)]
    if classes:
        paragraphs.append(_table(("Class", "IoU", "Accuracy", "Share of pixels"), classes))
    if best is not None:
        paragraphs.append(
            f"`best/` holds the weights with the highest mean IoU of all evaluations of the run: "
            f"{_percent(best['mean_iou'])} after step {best['step']}, chosen on the images it is reported on."
        )
    return paragraphs


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], align: str = "---:") -> str:
    lines = [head, ("---", *[align] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _yaml(options: Mapping[str, object]) -> str:
    plain = json.loads(json.dumps(options, default=str))  # paths and tuples as YAML knows them
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

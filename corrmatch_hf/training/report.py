"""What a finished run leaves: the model, its metrics, curves, predictions, a model card, a table on the screen."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.semi_dataset import EvaluationSet, SemiDataset
from ..evaluation.inference import evaluating, predict_probabilities
from ..hub.model_card import remove_run_card, write_run_card
from ..hub.push import write_endpoint
from ..methods.class_statistics import starving_classes, untaught_classes
from ..model import CorrMatchForSegmentation, CorrMatchImageProcessor
from ..pictures import class_palette, overlay, prediction_grid
from ..text import library_versions, percent, some
from .atomic_write import replaced_files, replaced_folder, write_text
from .interruption import failed_evaluation
from .output_folder import delete_old_code
from .report_page import PAGE, write_report_page

METRICS = "metrics.json"
EXAMPLES = 4  # rows of predictions.png
SAMPLES = 2  # of them with files of their own, which the Hub shows beside the model


@dataclass
class RunFacts:
    """A run as its report sees it.

    Attributes:
        method: its name.
        uses_unlabeled: whether the method looks at unlabelled images.
        advice: what the method's author advises where they did not help.
        advice_for_starving: what to try for a class that the pseudo-labels nearly lack.
        model: the trained model, which is evaluated and saved.
        processor: its image processor.
        data: what it was trained and evaluated on.
        options: every option of the run, by name.
        command: the command line, where there is one.
        total_batch: labelled images of an optimiser step.
        processes: that trained together.
        device: of this process.
        step, seconds: how long it was trained.
        supervised: "step" and "mean_iou" of the end of the part that saw labelled images alone; None without one.
        supervised_maps: of the images of predictions.png, by the model at that moment: (H, W) class ids.
        metrics, best: the newest evaluation and that of the weights in `best/`, each with its "step"; None without one.
        skipped: why training images were left out.
        skipped_steps: whose loss or gradient was not finite.
        rows: of the training log.
    """

    method: str
    uses_unlabeled: bool
    advice: str
    advice_for_starving: str
    model: CorrMatchForSegmentation
    processor: CorrMatchImageProcessor
    data: SemiDataset
    options: dict[str, Any]
    command: str | None
    total_batch: int
    processes: int
    device: torch.device
    step: int
    seconds: float
    metrics: dict[str, Any] | None
    best: dict[str, Any] | None
    supervised: dict[str, Any] | None
    supervised_maps: list[np.ndarray] | None
    skipped: list[str]
    skipped_steps: int
    rows: list[dict[str, Any]]

    def result(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        rates = [row["images_per_second"] for row in self.rows if "loss" in row]
        evaluated = self.metrics is not None and self.metrics["step"] == self.step
        result = {
            "method": self.method,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "images_per_second": round(statistics.median(rates), 2) if rates else None,
            "final": self.metrics if evaluated else None,  # of exactly these weights
            "best": self.best,
            "supervised": self.supervised,
            "effect": effect_of_unlabeled(self.supervised, self.metrics if evaluated else None, self.advice),
            "starving": " ".join(filter(None, (self.starving(), self.untaught()))) or None,
            "pseudo_labels": self.pseudo_labels(),
            "skipped": self.skipped,
            "skipped_steps": self.skipped_steps,
        }
        if self.device.type == "cuda":
            result["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
        return result

    def normalized(self, image: torch.Tensor) -> torch.Tensor:
        """Pixels (3, H, W) uint8 -> (1, 3, H, W) float32 on the device, as the model expects them."""
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return ((image.float() / 255 - mean) / std)[None].to(self.device)

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """The model's classes (H, W) int64, on the CPU, of a photo (3, H, W) uint8."""
        with evaluating(self.model):  # training may go on afterwards
            probabilities = predict_probabilities(
                self.model,
                self.normalized(image),
                window=self.options["eval_window"],
                stride=self.options["eval_stride"],
            )
        return probabilities[0].argmax(0).cpu()

    def examples(self, most: int) -> Iterator[dict[str, Any]]:
        """At most so many samples of the evaluation set, evenly spread; none without one."""
        if self.data.validation is None:
            return
        images = EvaluationSet(self.data.validation, self.data)
        count = min(most, len(images))
        yield from (images[i * len(images) // count] for i in range(count))

    def pseudo_label_rows(self) -> list[dict[str, Any]]:
        """The per-class figures of the newest rows of the log: a quarter of those that have any."""
        rows = [row["per_class"] for row in self.rows if "per_class" in row]
        return rows[-max(len(rows) // 4, 1) :] if rows else []

    def pseudo_labels(self) -> dict[str, dict[str, float | None]] | None:
        """What becomes of each class's pseudo-labels, by class name: means over `pseudo_label_rows`."""
        rows = self.pseudo_label_rows()
        if not rows:
            return None

        def mean(figure: str, c: int) -> float | None:
            known = [row[figure][c] for row in rows if figure in row and row[figure][c] is not None]
            return round(statistics.mean(known), 4) if known else None

        figures = {figure: None for row in rows for figure in row if figure != "taught"}  # in their order
        return {
            name: {figure: mean(figure, c) for figure in figures} for c, name in self.data.id2label.items()
        }

    def starving(self) -> str | None:
        """A sentence on the classes that the pseudo-labels nearly lack, with advice; None where there is none."""
        found = starving_classes(self.pseudo_label_rows())
        if not found:
            return None
        classes = "; ".join(
            f"{self.data.id2label[c]} ({percent(labeled, 2)} % of the labelled pixels, {percent(kept, 2)} % of the "
            "pseudo-labels)"
            for c, (labeled, kept) in found.items()
        )
        return f"Hardly any pseudo-labels count for {classes}. Try {self.advice_for_starving}."

    def untaught(self) -> str | None:
        """A sentence on the classes that are left to the labelled images at present, with advice; None without any."""
        names = self.data.id2label
        left = untaught_classes(self.pseudo_label_rows())
        if not left:
            return None
        classes, few = some(names[c] for c in left), len(names) - len(left) < 2
        what, of = (
            ("teach nothing", f"pixels of {classes}")
            if few
            else (f"do not teach {classes}", "of their pixels")
        )
        return (
            f"Unlabelled images {what}: the teacher finds too few {of} on the labelled ones. "
            "Train longer, or label more photos that show them (corrmatch suggest finds some)."
        )


def effect_of_unlabeled(
    supervised: dict[str, Any] | None, metrics: dict[str, Any] | None, advice: str
) -> str | None:
    """What unlabelled images changed, in words, with advice where that was not for the better; None if not known.

    Args:
        supervised: "step" and "mean_iou" of the end of the part that saw labelled images alone.
        metrics: of a later evaluation.
        advice: options to try.
    """
    if not supervised or not metrics or metrics["step"] <= supervised["step"]:
        return None
    before, after = supervised["mean_iou"], metrics["mean_iou"]
    if before is None or after is None:
        return None
    text = (
        f"With labelled images alone the mean IoU was {percent(before)} % after step {supervised['step']}, with "
        f"unlabelled ones it is {percent(after)} % after step {metrics['step']}."
    )
    if after >= before:
        return text
    hint = f" Try {advice}, or photos that look more like" if advice else " Try photos that look more like"
    return f"{text} They did not help; best/ holds the best model of the run.{hint} those that are evaluated."


def write_result(folder: Path, facts: RunFacts) -> None:
    """Write the model, `metrics.json` and the report into `folder`."""
    with replaced_files(folder) as temporary:
        save_model(temporary, facts.model, facts.processor, facts.options["save_inference_only"])
        # The figures there belong to other weights, and this process may be killed before the new ones are written.
        for name in (
            METRICS,
            PAGE,
            "predictions.png",
            *(file for i in range(1, SAMPLES + 1) for file in _sample(i)),
        ):
            (folder / name).unlink(missing_ok=True)
        remove_run_card(folder)
    delete_old_code(folder)  # now that the model above no longer needs it
    write_text(folder / METRICS, json.dumps(facts.result(), indent=2))
    write_report(folder, facts)


def save_best(
    folder: Path, model: CorrMatchForSegmentation, processor: Any, inference_only: bool, metrics: dict
) -> None:
    """Replace `folder`, `best/` of a run, by this model together with its figures, which so never part."""
    with replaced_folder(folder) as temporary:
        save_model(temporary, model, processor, inference_only)
        (temporary / METRICS).write_text(json.dumps(metrics, indent=2), encoding="utf-8")


def read_best(folder: Path) -> dict[str, Any] | None:
    """The figures of the model in `best/`, with its "step"; None where there are none."""
    try:
        figures = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return figures if {"step", "mean_iou"} <= figures.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def save_model(
    folder: Path, model: CorrMatchForSegmentation, processor: CorrMatchImageProcessor, inference_only: bool
) -> None:
    """Write weights, config and image processor into `folder`."""
    model.save_pretrained(folder, inference_only=inference_only)
    processor.save_pretrained(folder)


def write_report(folder: Path, facts: RunFacts) -> None:
    """Write curves, pictures, the model card and the files for Inference Endpoints into `folder`, beside the model."""
    result, data = facts.result(), facts.data
    pictures, samples = {}, []  # file -> caption; what the Hub shows
    if facts.rows:
        from ..pictures import training_curves  # imports matplotlib, which the first step need not wait for

        title = f"{facts.method} on {data.name}"
        palette = class_palette(data.id2label, data.label_colors)
        training_curves(facts.rows, title=title, classes=(data.id2label, palette)).savefig(
            folder / "curves.png"
        )
        pictures["curves.png"] = "Losses, threshold and evaluation over the steps."
    if rows := _predictions(facts):
        samples = _draw_predictions(folder, facts, rows)
        pictures["predictions.png"] = (
            "Photo, truth and prediction on evaluation images, with the mean IoU in each (white is ignored)."
        )
    _write_page(folder, facts)
    run = _card_facts(facts) | {key: result[key] for key in ("effect", "starving", "pseudo_labels")}
    provenance: dict[str, Any] = {
        "options": facts.options,
        "command": facts.command,
        "versions": library_versions(),
    }
    best = result["best"] and {key: result["best"][key] for key in ("step", "mean_iou")}
    write_run_card(
        folder, run=run, metrics=result["final"], best=best, pictures=pictures, samples=samples, **provenance
    )
    write_endpoint(folder)
    if best is not None and (folder / "best").is_dir():  # it is a model to publish, too
        write_run_card(
            folder / "best",
            run=run | {"effect": None, "starving": None, "pseudo_labels": None},
            metrics=result["best"],
            best=best,
            **provenance,
        )
        write_endpoint(folder / "best")


def _write_page(folder: Path, facts: RunFacts) -> None:
    """Write report.html; whatever fails there is not worth the rest of the report."""
    try:
        write_report_page(folder, facts)
    except Exception as error:
        print(f"\nwarning: {PAGE} is left out: {failed_evaluation(error)}.", file=sys.stderr)


def _card_facts(facts: RunFacts) -> dict[str, Any]:
    """The facts that `write_run_card` shows; None for those that are not known."""
    options, data, model = facts.options, facts.data, facts.model
    without_head = options["save_inference_only"] and model.correlation is not None
    saved_parts = [model.encoder, model.decoder] if without_head else [model]
    origin = model.config.encoder_origin
    unlabeled = len(data.unlabeled) if hasattr(data.unlabeled, "__len__") else None
    on_gpu = facts.device.type == "cuda"
    return {
        "method": facts.method,
        "encoder_name": model.config.encoder_name,
        "decoder": model.config.decoder_type,
        "output_stride": model.config.output_stride,
        "dataset": data.name,
        "dataset_id": data.hub_id,
        "dataset_config": options.get("dataset_config_name"),
        "dataset_revision": options.get("dataset_revision"),
        "dataset_split": options.get("validation_split"),
        "id2label": data.id2label,
        "parameters": sum(p.numel() for part in saved_parts for p in part.parameters()),
        "inference_only": without_head,
        "encoder_origin": origin or ("none" if options.get("encoder_weights") == "none" else None),
        "base_model": origin if origin and origin.startswith("timm/") else None,
        "labeled_images": len(data.labeled),
        "unlabeled_images": unlabeled if facts.uses_unlabeled else None,
        "validation_images": None if data.validation is None else len(data.validation),
        "steps": facts.step,
        "total_batch": facts.total_batch,
        "crop_size": options["crop_size"],
        "seed": options["seed"],
        "processes": facts.processes,
        "device": torch.cuda.get_device_name(facts.device) if on_gpu else facts.device.type.upper(),
        "seconds": round(facts.seconds, 1),
        "hub_model_id": options["hub_model_id"] if options["push_to_hub"] else None,
        "license": options["hub_license"],
    }


def predictions_picture(facts: RunFacts) -> Image.Image | None:
    """A row for each of some evaluation images: photo, truth and prediction; None without such images."""
    rows = _predictions(facts)
    return _grid(facts, rows) if rows else None


def _grid(facts: RunFacts, rows: list[dict[str, Any]]) -> Image.Image:
    titles = {}
    if facts.supervised_maps:
        titles["supervised"] = f"{len(facts.data.labeled)} labelled photos alone"
        titles["prediction"] = "with unlabelled photos"
    palette = class_palette(facts.data.id2label, facts.data.label_colors)
    return prediction_grid(rows, facts.data.id2label, palette, titles=titles)


def example_maps(facts: RunFacts) -> list[np.ndarray] | None:
    """What the model predicts for the images of predictions.png: class ids (H, W); None where there are none."""
    return [row["prediction"] for row in _predictions(facts)] or None


def _predictions(facts: RunFacts) -> list[dict[str, Any]]:
    """Some evaluation images, their labels and predictions; none where a photo was damaged or memory is too small."""
    try:
        rows = [
            {
                "image": sample["image"].permute(1, 2, 0).numpy(),  # (H, W, 3) uint8
                "label": sample["label"].numpy(),
                "prediction": facts.predict(sample["image"]).numpy(),
            }
            for sample in facts.examples(EXAMPLES)
        ]
        for row, supervised in zip(rows, facts.supervised_maps or (), strict=False):
            if supervised.shape == row["prediction"].shape:  # else of other images, before a resumption
                row["supervised"] = supervised
        return rows
    except Exception as error:  # whatever it is, pictures are not worth the rest of the report
        print(f"\nwarning: predictions.png is left out: {failed_evaluation(error)}.", file=sys.stderr)
        return []


def _draw_predictions(folder: Path, facts: RunFacts, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Write predictions.png and the files of `samples/`; returns the latter as `write_run_card` expects them."""
    _grid(facts, rows).save(folder / "predictions.png")
    data = facts.data
    palette = class_palette(data.id2label, data.label_colors)

    (folder / "samples").mkdir(exist_ok=True)
    samples = []
    for i, row in enumerate(rows[:SAMPLES], 1):
        image, output = _sample(i)
        sample = {"image": image, "output": output, "title": f"Evaluation photo {i}"}
        photo = Image.fromarray(row["image"])
        photo.save(folder / sample["image"], quality=90)
        overlay(photo, row["prediction"], data.id2label, palette).save(folder / sample["output"])
        samples.append(sample)
    return samples


def _sample(i: int) -> tuple[str, str]:
    """The files of a photo and of its prediction."""
    return f"samples/{i}.jpg", f"samples/{i}_overlay.png"


def summary(result: dict[str, Any], folder: Path) -> str:
    """The table that a run ends with. `result` is the content of `metrics.json`."""
    lines = ["", f"{result['method']}: {result['steps']} steps in {result['seconds']:.0f} s -> {folder}"]
    final, best = result["final"], result["best"]
    if final is not None:
        width = max(len("pixel accuracy"), *(len(name) for name in final["per_class"]))
        lines.append(f"{'class':<{width}}   IoU %  share %")
        lines += [
            f"{name:<{width}}  {percent(values['iou']):>6}   {percent(values['frequency']):>6}"
            for name, values in final["per_class"].items()
        ]
        best_text = f"(best {percent(best['mean_iou'])} at step {best['step']})"
        lines.append(f"{'mean IoU':<{width}}  {percent(final['mean_iou']):>6}   {best_text}")
        lines.append(f"{'pixel accuracy':<{width}}  {percent(final['pixel_accuracy']):>6}")
    if result["effect"]:
        lines.append(result["effect"])
    if result["starving"]:
        lines.append(result["starving"])
    if result["skipped"]:
        lines.append(f"skipped {len(result['skipped'])} unreadable images:")
        lines += [f"  {reason}" for reason in result["skipped"]]
    if result["skipped_steps"]:
        lines.append(f"skipped {result['skipped_steps']} steps whose loss or gradient was not finite")
    if "peak_gpu_memory_mib" in result:
        lines.append(f"peak GPU memory: {result['peak_gpu_memory_mib'] / 2**10:.1f} GiB")
    return "\n".join(lines)

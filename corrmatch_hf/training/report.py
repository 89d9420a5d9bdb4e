"""What a finished run leaves for people: curves, predictions beside truth, a card, and a table on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..data.semi_dataset import EvaluationSet
from ..evaluation.inference import evaluating, predict_probabilities
from ..hub.model_card import write_run_card
from ..hub.push import write_endpoint
from ..pictures import class_palette, overlay, prediction_grid, training_curves
from ..text import library_versions, percent

if TYPE_CHECKING:
    from .trainer import SemiSupervisedTrainer

EXAMPLES = 4  # pictures in predictions.png
SAMPLES = 2  # of them with files of their own, which the Hub shows beside the model


def write_report(
    trainer: SemiSupervisedTrainer, folder: Path, result: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Write curves, pictures, the model card and what Inference Endpoints need into `folder`, beside the model."""
    config, data = trainer.config, trainer.data
    model = trainer.evaluated_model
    pictures, samples = {}, []
    if rows:
        training_curves(rows, title=f"{result['method']} on {data.name}").savefig(folder / "curves.png")
        pictures["curves.png"] = "Losses, threshold and evaluation over the steps."
    if data.validation is not None and config.card_pictures:
        samples = _draw_predictions(trainer, folder)
        pictures["predictions.png"] = "Photo, truth and prediction on evaluation images (white is ignored)."
    left_out = config.save_inference_only and model.correlation is not None
    parts = [model.encoder, model.decoder] if left_out else [model]
    origin = model.config.encoder_origin
    length = len(data.unlabeled) if hasattr(data.unlabeled, "__len__") else None
    run = {
        "method": result["method"],
        "encoder_name": model.config.encoder_name,
        "decoder": model.config.decoder,
        "output_stride": model.config.output_stride,
        "dataset": data.name,
        "dataset_id": data.hub_id,
        "dataset_config": trainer.recipe.get("dataset_config_name"),
        "dataset_revision": trainer.recipe.get("dataset_revision"),
        "dataset_split": trainer.recipe.get("validation_split"),
        "id2label": data.id2label,
        "parameters": sum(p.numel() for part in parts for p in part.parameters()),
        "inference_only": left_out,
        "encoder_origin": origin or ("none" if trainer.recipe.get("encoder_weights") == "none" else None),
        "base_model": origin if origin and origin.startswith("timm/") else None,
        "labeled_images": len(data.labeled),
        "unlabeled_images": length if trainer.method.uses_unlabeled else None,
        "validation_images": None if data.validation is None else len(data.validation),
        "steps": result["steps"],
        "total_batch": trainer.total_batch,
        "crop_size": config.crop_size,
        "seed": config.seed,
        "processes": trainer.accelerator.num_processes,
        "device": _device(trainer.accelerator.device),
        "seconds": result["seconds"],
        "hub_model_id": config.hub_model_id if config.push_to_hub else None,
        "license": config.hub_license,
    }
    provenance = {
        "options": trainer.full_configuration(),
        "command": trainer.command,
        "versions": library_versions(),
    }
    best = result["best"] and {k: result["best"][k] for k in ("step", "mean_iou")}
    write_run_card(
        folder,
        run=run,
        metrics=result["final"],
        best=best,
        pictures=pictures,
        samples=samples,
        **provenance,
    )
    write_endpoint(folder)
    if best is not None and (folder / "best").is_dir():  # a model to publish, too
        write_run_card(folder / "best", run=run, metrics=result["best"], best=best, **provenance)
        write_endpoint(folder / "best")


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _draw_predictions(trainer: SemiSupervisedTrainer, folder: Path) -> list[dict[str, str]]:
    """Write predictions.png and the files of `samples/`, and return what the card says of the latter."""
    data, config = trainer.data, trainer.config
    samples = EvaluationSet(data.validation, data)
    model = trainer.evaluated_model
    mean, std = (
        torch.tensor(value).view(3, 1, 1)
        for value in (trainer.processor.image_mean, trainer.processor.image_std)
    )
    count = min(EXAMPLES, len(samples))
    rows = []
    for i in range(count):
        sample = samples[i * len(samples) // count]
        image = ((sample["image"].float() / 255 - mean) / std)[None].to(trainer.accelerator.device)
        with evaluating(model):  # and afterwards training may go on as before
            probabilities = predict_probabilities(
                model, image, window=config.eval_window, stride=config.eval_stride
            )
        rows.append(
            {
                "image": sample["image"].permute(1, 2, 0).numpy(),
                "label": sample["label"].numpy(),
                "prediction": probabilities[0].argmax(0).cpu().numpy(),
            }
        )
    palette = class_palette(data.id2label, data.label_colors)
    prediction_grid(rows, data.id2label, palette).save(folder / "predictions.png")
    (folder / "samples").mkdir(exist_ok=True)
    samples = []
    for i, row in enumerate(rows[:SAMPLES], 1):
        sample = {
            "image": f"samples/{i}.jpg",
            "output": f"samples/{i}_overlay.png",
            "title": f"Evaluation photo {i}",
        }
        photo = Image.fromarray(row["image"])
        photo.save(folder / sample["image"], quality=90)
        overlay(photo, row["prediction"], data.id2label, palette).save(folder / sample["output"])
        samples.append(sample)
    return samples


def summary(trainer: SemiSupervisedTrainer, result: dict[str, Any]) -> str:
    """The table a run ends with."""
    lines = [
        "",
        f"{result['method']}: {result['steps']} steps in {result['seconds']:.0f} s -> {trainer.output_dir}",
    ]
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
    if result["skipped"]:
        lines.append(f"skipped {len(result['skipped'])} unreadable images:")
        lines += [f"  {reason}" for reason in result["skipped"]]
    if result["skipped_steps"]:
        lines.append(f"skipped {result['skipped_steps']} steps whose loss or gradient was not finite")
    if torch.cuda.is_available():
        lines.append(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return "\n".join(lines)

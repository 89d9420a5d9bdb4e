"""What a finished run leaves for people: curves, predictions beside truth, a card, and a table on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.evaluation_set import EvaluationSet
from ..evaluation.inference import predict_probabilities
from ..publish import class_palette, prediction_grid, training_curves, write_run_card

if TYPE_CHECKING:
    from .trainer import SemiSupervisedTrainer

EXAMPLES = 4  # pictures in predictions.png

REFERENCES = {
    "corrmatch": "[CorrMatch: Label Propagation via Correlation Matching for Semi-Supervised Semantic Segmentation]"
    "(https://arxiv.org/abs/2306.04300) (CVPR 2024)"
}


def write_report(trainer: SemiSupervisedTrainer, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write curves.png, predictions.png and README.md into the output folder, and print the summary."""
    folder, config, data = trainer.output_dir, trainer.config, trainer.data
    model = trainer.evaluated_model
    pictures = {}
    if rows:
        training_curves(rows, title=f"{result['method']} on {data.name}").savefig(folder / "curves.png")
        pictures["curves.png"] = "Losses, threshold and evaluation over the steps."
    if data.validation is not None:
        _draw_predictions(trainer, folder / "predictions.png")
        pictures["predictions.png"] = "Photo, truth and prediction on evaluation images (white is ignored)."
    length = len(data.unlabeled) if hasattr(data.unlabeled, "__len__") else None
    write_run_card(
        folder,
        run={
            "method": result["method"],
            "encoder_name": model.config.encoder_name,
            "output_stride": model.config.output_stride,
            "dataset": data.name,
            "id2label": data.id2label,
            "parameters": sum(p.numel() for p in model.parameters()),
            "labeled_images": len(data.labeled),
            "unlabeled_images": length if trainer.method.uses_unlabeled else None,
            "validation_images": None if data.validation is None else len(data.validation),
            "steps": result["steps"],
            "total_batch": trainer.total_batch,
            "crop_size": config.crop_size,
            "seed": config.seed,
            "reference": REFERENCES.get(result["method"]),
        },
        metrics=result["final"],
        best=result["best"] and {k: result["best"][k] for k in ("step", "mean_iou")},
        pictures=pictures,
        options=trainer.full_configuration(),
    )
    print(summary(trainer, result))


def _draw_predictions(trainer: SemiSupervisedTrainer, path: Path) -> None:
    data, config = trainer.data, trainer.config
    samples = EvaluationSet(data.validation, data)
    model = trainer.evaluated_model.eval()
    mean, std = (
        torch.tensor(value).view(3, 1, 1)
        for value in (trainer.processor.image_mean, trainer.processor.image_std)
    )
    count = min(EXAMPLES, len(samples))
    rows = []
    for i in range(count):
        sample = samples[i * len(samples) // count]
        image = ((sample["image"].float() / 255 - mean) / std)[None].to(trainer.accelerator.device)
        with torch.no_grad():
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
    prediction_grid(rows, data.id2label, class_palette(data.id2label, data.label_colors)).save(path)


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
    if torch.cuda.is_available():
        lines.append(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share as a percentage; "-" where there is none (a class that does not occur)."""
    return "-" if value is None else f"{100 * value:.1f}"

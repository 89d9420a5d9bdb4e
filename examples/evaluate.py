"""Measure a trained model: mean IoU, accuracies, and the figures of every class.

    python examples/evaluate.py --model outputs/run --data_dir photos
    python examples/evaluate.py --model user/model --dataset_name user/dataset --split test --output test.json
    python examples/evaluate.py --model outputs/city --data_dir cityscapes --window 801       # sliding window
    torchrun --nproc_per_node 4 examples/evaluate.py --model outputs/run --data_dir photos    # on 4 GPUs

`--model` is a folder that training wrote, or a model on the Hub. The data are described as for training.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState

from corrmatch_hf.data.evaluation_set import EvaluationSet
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import evaluate_segmentation
from corrmatch_hf.publish.percent import percent
from corrmatch_hf.publish.saved import load_saved
from corrmatch_hf.training.arguments import DataArguments, parse


@dataclass
class EvaluationArguments:
    """The model, and how it is evaluated."""

    model: str = field(metadata={"help": "Folder of a trained model, or its id on the Hub."})
    split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; by default the validation split."}
    )
    window: int | None = field(
        default=None,
        metadata={"help": "Side of a sliding window in pixels; by default the whole image at once."},
    )
    stride: int | None = field(
        default=None,
        metadata={"help": "Distance of the windows in pixels; by default two thirds of the window."},
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "Image sizes to average over, such as 0.75 1.0 1.25."},
    )
    flip: bool = field(default=False, metadata={"help": "Average with the mirrored image too."})
    batch_size: int = field(default=1, metadata={"help": "Images of equal size predicted together."})
    num_workers: int = field(
        default=2, metadata={"help": "Processes that read images; 0: none but the main one."}
    )
    output: str = field(default="evaluation.json", metadata={"help": "JSON file to write the figures to."})


def main(args: list[str] | None = None) -> dict:
    # Arguments
    arguments, data_arguments = parse(
        EvaluationArguments, DataArguments, args=args, description=__doc__.split("\n")[0]
    )
    output = Path(arguments.output)
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; name a file.")
    if arguments.split is not None:
        data_arguments.validation_split = arguments.split

    # Model
    model, processor = load_saved(arguments.model)

    # Dataset
    data = data_arguments.load()
    if data.validation is None:
        raise InputError(f"{data.name} has no images to evaluate on: name a split with masks by --split.")

    names = [list(classes.values()) for classes in (model.config.id2label, data.id2label)]
    if names[0] != names[1] and "LABEL_0" not in (names[0][0], names[1][0]):
        print(f"note: the model was trained for {names[0]}, the data set has {names[1]}.", file=sys.stderr)

    # Evaluation
    process = PartialState()
    metrics = evaluate_segmentation(
        model.to(process.device),
        EvaluationSet(data.validation, data),
        num_labels=data.num_labels,
        id2label=data.id2label,
        ignore_index=data.ignore_index,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        window=arguments.window,
        stride=arguments.stride,
        scales=arguments.scales,
        flip=arguments.flip,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        rank=process.process_index,
        world_size=process.num_processes,
        progress=process.is_main_process,
    )
    if process.is_main_process:
        print(table(metrics))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written to {output}")
    process.destroy_process_group()
    return metrics


def table(metrics: dict) -> str:
    """The figures in percent, a line for each class and then the means; "-" where a class does not occur."""

    width = max(len("pixel accuracy"), *map(len, metrics["per_class"]))
    lines = [f"{'class':<{width}}  {'IoU':>7}  {'accuracy':>8}  {'share':>7}"]
    for name, values in metrics["per_class"].items():
        iou, accuracy, share = (percent(values[key], 2) for key in ("iou", "accuracy", "frequency"))
        lines.append(f"{name:<{width}}  {iou:>7}  {accuracy:>8}  {share:>7}")
    lines += [
        "",
        f"{'mean IoU':<{width}}  {percent(metrics['mean_iou'], 2):>7}   classes present in truth or prediction",
        f"{'':<{width}}  {percent(metrics['mean_iou_all_classes'], 2):>7}   all classes, absent ones as 0",
        f"{'mean accuracy':<{width}}  {percent(metrics['mean_accuracy'], 2):>7}",
        f"{'pixel accuracy':<{width}}  {percent(metrics['pixel_accuracy'], 2):>7}",
        f"{'images':<{width}}  {metrics['num_images']:>7}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")

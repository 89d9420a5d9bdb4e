"""Measure a trained model: mean IoU, accuracies, and the figures of every class.

    python examples/evaluate.py --model outputs/run --data_dir photos
    python examples/evaluate.py --model user/model --dataset_name user/dataset --split test --output test.json
    python examples/evaluate.py --model outputs/city --data_dir cityscapes --window 801       # sliding window
    python examples/evaluate.py --model outputs/run --data_dir photos --precision bf16 --batch_size 8  # faster
    torchrun --nproc_per_node 4 examples/evaluate.py --model outputs/run --data_dir photos    # on 4 GPUs

`--model` is a folder that training wrote, or a model on the Hub. The data are described as for training,
but need no training images.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState

from corrmatch_hf.commands.arguments import DataArguments, parse
from corrmatch_hf.data.semi_dataset import EvaluationSet, SemiDataset
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import evaluate_segmentation
from corrmatch_hf.evaluation.feature_quality import model_feature_quality, require_scikit_learn
from corrmatch_hf.evaluation.optimize import PRECISIONS, optimize_for_inference
from corrmatch_hf.hub.push import load_saved
from corrmatch_hf.text import percent


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
    batch_size: int = field(
        default=1, metadata={"help": "Images of equal size, or windows of one image, predicted together."}
    )
    precision: str = field(
        default="float32",
        metadata={
            "help": "Of the model: bf16 is faster on GPUs and recent CPUs, fp16 on GPUs; figures may move a little.",
            "choices": list(PRECISIONS),
        },
    )
    compile: bool = field(
        default=False, metadata={"help": "Compile the model first (takes a minute; for images of few sizes)."}
    )
    num_workers: int = field(
        default=2, metadata={"help": "Processes that read images; 0: none but the main one."}
    )
    feature_quality: bool = field(
        default=False,
        metadata={
            "help": "Also measure how well the decoder's features of 10000 random pixels separate by class "
            "(needs scikit-learn)."
        },
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
    if arguments.feature_quality:
        require_scikit_learn()  # now, not after an hour

    # Model
    model, processor = load_saved(arguments.model)

    # Dataset
    data = load_evaluated(data_arguments, arguments.split, model.config.num_labels)
    if data.validation is None:
        raise InputError(f"{data.name} has no images to evaluate on: name a split with masks by --split.")

    names = [list(classes.values()) for classes in (model.config.id2label, data.id2label)]
    if names[0] != names[1] and "LABEL_0" not in (names[0][0], names[1][0]):
        print(f"note: the model was trained for {names[0]}, the data set has {names[1]}.", file=sys.stderr)

    # Evaluation
    process = PartialState()
    samples = EvaluationSet(data.validation, data)
    both = {
        "ignore_index": data.ignore_index,
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        "num_workers": arguments.num_workers,
        "rank": process.process_index,
        "world_size": process.num_processes,
        "progress": process.is_main_process,
    }
    metrics = evaluate_segmentation(
        optimize_for_inference(
            model.to(process.device), dtype=PRECISIONS[arguments.precision], compile=arguments.compile
        ),
        samples,
        num_labels=data.num_labels,
        id2label=data.id2label,
        window=arguments.window,
        stride=arguments.stride,
        scales=arguments.scales,
        flip=arguments.flip,
        batch_size=arguments.batch_size,
        **both,
    )
    if arguments.feature_quality:
        metrics["feature_quality"] = model_feature_quality(model, samples, **both)
    if process.is_main_process:
        print(table(metrics))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written to {output}")
    process.destroy_process_group()
    return metrics


def load_evaluated(data: DataArguments, split: str | None, num_labels: int) -> SemiDataset:
    """The dataset. Where training images are missing, which `load` asks for, those to evaluate on stand in for them."""
    if data.id2label is None and data.num_labels is None and data.label_colors is None:
        data.num_labels = num_labels  # else the evaluated masks would be searched for the highest id
    if split is not None:
        data.validation_split = split
    if {data.dataset_name, data.data_dir, data.train_images, data.labeled_list} == {None}:
        data.train_images, data.train_masks = data.validation_images, data.validation_masks
        data.labeled_list = data.validation_list
    usual = (data.train_split, "validation", "val", "test")
    reason = ""
    for name in (data.validation_split,) if data.validation_split else usual:
        data.train_split = name
        try:
            return data.load()
        except InputError as error:
            reason = reason or str(error)
    reason = reason.replace("--train_split", "--split")
    raise InputError(reason.replace(f"--num_labels is {num_labels},", f"The model has {num_labels} classes,"))


def table(metrics: dict) -> str:
    """The figures in percent, a line for each class and then the means; "-" where a class does not occur."""

    figures = "Calinski-Harabasz" if "feature_quality" in metrics else "pixel accuracy"
    width = max(len(figures), *map(len, metrics["per_class"]))
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
    if "feature_quality" in metrics:
        quality = metrics["feature_quality"]
        lines += [
            "",
            f"{'silhouette':<{width}}  {quality['silhouette']:>7.3f}   over {quality['num_pixels']} pixels; 1 is best",
            f"{'Calinski-Harabasz':<{width}}  {quality['calinski_harabasz']:>7.0f}   the higher, the better",
            f"{'Davies-Bouldin':<{width}}  {quality['davies_bouldin']:>7.3f}   the lower, the better",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")

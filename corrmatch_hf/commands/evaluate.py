"""`corrmatch evaluate`: the figures of a trained model on a dataset, as a table and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..data.options import SOURCES, DataOptions
from ..errors import InputError, check_writable_file
from ..options import MOST_WORKERS, Options, option
from ..text import percent
from . import COMMANDS
from .arguments import parse

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..data.semi_dataset import SemiDataset
    from ..model import CorrMatchForSegmentation, CorrMatchImageProcessor

EXAMPLES = """
corrmatch evaluate --model outputs/run --data_dir photos
corrmatch evaluate --model user/model --dataset_name user/dataset --split test
corrmatch evaluate --model outputs/city --data_dir cityscapes --window 801
corrmatch evaluate --model outputs/run --data_dir photos --precision bf16
torchrun --nproc_per_node 4 -m corrmatch_hf evaluate --model outputs/run \\
    --data_dir photos                                            # 4 GPUs
"""
# Options of the training split alone: accepted, so that one description of a dataset serves all commands.
OF_TRAINING = (
    "train_images", "train_masks", "labeled_fraction", "labeled_count", "labeled_list", "unlabeled_list", "split_seed",
    "extra_unlabeled", "diagnose_with_masks", "streaming", "train_split", "validation_split",
)  # fmt: skip


@dataclass
class EvaluationOptions(Options):
    """The model, and how it is evaluated."""

    model: str = option(
        MISSING,
        "Folder of a trained model, or its id on the Hub.",
        group="Model",
        common=True,
        metavar="MODEL",
    )
    split: str | None = option(
        None, "Split to evaluate on; by default the validation split.", group="Evaluation", common=True
    )
    window: int | None = option(
        None,
        "Side of a sliding window in pixels; by default the whole image at once.",
        group="Evaluation",
        common=True,
    )
    stride: int | None = option(
        None,
        "Distance of the windows in pixels; by default two thirds of the window.",
        group="Evaluation",
    )
    scales: list[float] = option(
        default_factory=lambda: [1.0],
        help="Image scales to average the predictions of, such as 0.75 1.0 1.25.",
        group="Evaluation",
        at_most=100,
    )
    flip: bool = option(False, "Also average with the mirrored image.", group="Evaluation")
    batch_size: int | None = option(
        None,
        "Images of equal size, or windows of one image, to predict together; by default 4 on a GPU, and 1 on a CPU, "
        "where more are slower.",
        group="Evaluation",
        common=True,
        at_most=2**16,
    )
    precision: Literal["float32", "bf16", "fp16"] = option(
        "float32",
        "Precision of the model: bf16 is faster on GPUs and recent CPUs, fp16 on GPUs; results vary slightly.",
        group="Evaluation",
        common=True,
    )
    compile: bool = option(
        False,
        "Compile the model first: takes a minute, pays off for many images of few sizes.",
        group="Evaluation",
    )
    num_workers: int = option(
        2,
        "Processes that read images; 0 reads them in the main process.",
        group="Evaluation",
        at_least=0,
        at_most=MOST_WORKERS,
    )
    feature_quality: bool = option(
        False,
        "Also measure how well decoder features of 10000 random pixels separate by class (needs scikit-learn).",
        group="Evaluation",
    )
    output: str = option(
        "evaluation.json",
        "JSON file to write the figures to.",
        group="Evaluation",
        common=True,
        metavar="FILE",
    )

    def problems(self) -> list[str]:
        from ..evaluation.inference import inference_problems

        values = self.window, self.stride, self.scales, self.batch_size
        return [*super().problems(), *inference_problems(*values, prefix="--")]


def main(args: Sequence[str]) -> dict:
    """Print and write the figures, which are also the result."""
    options, data_options = parse(
        "evaluate",
        EvaluationOptions,
        DataOptions,
        args=args,
        description=COMMANDS["evaluate"],
        examples=EXAMPLES,
        unlisted=OF_TRAINING,
    )
    # Heavy imports come after parsing, so that --help is fast.
    from accelerate import PartialState

    from ..distributed import explain_lost_loaders
    from ..evaluation.feature_quality import require_scikit_learn
    from ..hub.load import load_saved
    from ..training.atomic_write import write_text

    output = Path(options.output)
    check_writable_file("--output", output, ".json")
    output.parent.mkdir(parents=True, exist_ok=True)  # now, not after an hour
    if options.feature_quality:
        require_scikit_learn()  # now, not after an hour

    model, processor = load_saved(options.model)
    data = load_evaluated(data_options, options.split, model.config.num_labels)
    if data.validation is None:
        raise InputError(f"{data.name} has no images to evaluate on; name a split with masks by --split.")
    notes = list(data.notes)  # what was assumed about the masks, and files that are left out
    names = [list(classes.values()) for classes in (model.config.id2label, data.id2label)]
    if names[0] != names[1] and "LABEL_0" not in (names[0][0], names[1][0]):
        notes.append(f"the model was trained for {names[0]}, the dataset has {names[1]}.")

    process = PartialState()
    if process.is_main_process:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    with explain_lost_loaders():
        metrics = measure(model, processor, data, options, process)
    if process.is_main_process:
        print(table(metrics))
        write_text(output, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
        print(f"written to {output}")
    process.destroy_process_group()
    return metrics


def measure(
    model: CorrMatchForSegmentation,
    processor: CorrMatchImageProcessor,
    data: SemiDataset,
    options: EvaluationOptions,
    process: PartialState,
) -> dict:
    """The figures on the validation images, which the processes share."""
    from ..data.semi_dataset import EvaluationSet
    from ..evaluation import evaluate_segmentation
    from ..evaluation.feature_quality import model_feature_quality
    from ..evaluation.inference import default_batch_size
    from ..evaluation.optimize import PRECISIONS, optimize_for_inference

    samples = EvaluationSet(data.validation, data)
    shared = {
        "ignore_index": data.ignore_index,
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        "num_workers": options.num_workers,
        "rank": process.process_index,
        "world_size": process.num_processes,
        "progress": process.is_main_process,
    }
    metrics = evaluate_segmentation(
        optimize_for_inference(
            model.to(process.device), dtype=PRECISIONS[options.precision], compile=options.compile
        ),
        samples,
        num_labels=data.num_labels,
        id2label=data.id2label,
        window=options.window,
        stride=options.stride,
        scales=options.scales,
        flip=options.flip,
        batch_size=options.batch_size or default_batch_size(process.device),
        **shared,
    )
    if options.feature_quality:
        metrics["feature_quality"] = model_feature_quality(model, samples, **shared)
    return metrics


def load_evaluated(data: DataOptions, split: str | None, num_labels: int) -> SemiDataset:
    """The dataset. The evaluated images stand in for training images where those are missing, since loading needs
    some."""
    from ..data.load import load_semi_dataset

    if data.id2label is None and data.num_labels is None and data.label_colors is None:
        data.num_labels = num_labels  # else it would be the highest id in the evaluated masks
    data.diagnose_with_masks = False  # of training
    if split is not None:
        data.validation_split = split
    if all(getattr(data, name) is None for name in SOURCES):
        data.train_images, data.train_masks = data.validation_images, data.validation_masks
        data.labeled_list = data.validation_list
    candidates = (data.train_split, "validation", "val", "test")
    reason = ""
    for name in (data.validation_split,) if data.validation_split else candidates:
        data.train_split = name
        try:
            return load_semi_dataset(data)
        except InputError as error:
            reason = reason or str(error)
    reason = reason.replace("--train_split", "--split")
    if (own := f"--num_labels is {num_labels},") in reason:
        remedy = (
            " Evaluate on data with the model's classes, or say by --id2label which ids of the masks they are: "
            """'{"7": "road", "26": "car", "0": null}' (null: ignored)."""
        )
        reason = reason.replace(own, f"The model has {num_labels} classes,") + remedy
    raise InputError(reason)


def table(metrics: dict) -> str:
    """The figures in percent: a line for each class, then the means; "-" where a class does not occur."""
    longest = "Calinski-Harabasz" if "feature_quality" in metrics else "pixel accuracy"
    width = max(len(longest), *map(len, metrics["per_class"]))
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
            f"{'Calinski-Harabasz':<{width}}  {quality['calinski_harabasz']:>7.0f}   higher is better",
            f"{'Davies-Bouldin':<{width}}  {quality['davies_bouldin']:>7.3f}   lower is better",
        ]
    return "\n".join(lines)

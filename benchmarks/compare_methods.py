"""What each method gives on the same encoder, split, seeds, steps, batch and evaluation, and what it costs.

    python benchmarks/compare_methods.py                                               # the built-in synthetic set
    python benchmarks/compare_methods.py --name camvid_1_16 --seeds 0 1 2 -- \\
        --config examples/configs/camvid.yaml --data_dir camvid --labeled_list camvid/splits/1_16/labeled.txt \\
        --unlabeled_list camvid/splits/1_16/unlabeled.txt --encoder_weights mobilenetv2_100.safetensors

What stands after `--` goes to examples/train_semi.py as it is. Each run is a process of its own; its figures go to
`results/compare_methods/NAME/METHOD-SEED.json`, and what is there is not run again, so an interrupted grid goes on
where it stopped (in the middle of a run, too, where `--save_steps` is given). The table is
`results/compare_methods/NAME.md`; all its runs have the same options, others are refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from corrmatch_hf.data.augment import Augmentation
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.data.training_set import training_batches
from corrmatch_hf.methods import METHODS, method_class
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.model.encoder_corrmatch import CorrMatchEncoder
from corrmatch_hf.text import percent

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
from benchmarks.__main__ import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results") / "compare_methods"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", default="synthetic", help="Of the comparison: the table's file.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", default="outputs/compare_methods", help="Folder of the runs themselves.")
    parser.add_argument("options", nargs="*", help="Options of train_semi.py, after --.")
    args = parser.parse_args()
    folder = RESULTS / args.name
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.json")):
        refuse_other_options(path, args.options)
    for seed in args.seeds:
        for method in args.methods:
            path = folder / f"{method}-{seed}.json"
            if not path.exists():
                result = run(method, seed, args.options, Path(args.runs) / args.name / f"{method}-{seed}")
                path.write_text(json.dumps(result, indent=2), encoding="utf-8")
    table = table_of(folder, args.options)
    (RESULTS / f"{args.name}.md").write_text(table, encoding="utf-8")
    print(table)


def refuse_other_options(path: Path, options: list[str]) -> None:
    there = json.loads(path.read_text(encoding="utf-8"))["options"]
    if there != options:
        sys.exit(f"error: {path} is of other options ({shlex.join(there)}); give another --name.")


def run(method: str, seed: int, options: list[str], output: Path) -> dict:
    """Train one method with one seed, and return what it gave."""
    command = [sys.executable, str(ROOT / "examples" / "train_semi.py"), *options]
    command += ["--method", method, "--seed", str(seed), "--output_dir", str(output)]
    resumed = any(output.glob("checkpoints/step_*"))
    started = output.parent / f"{output.name}.json"  # what the run, finished or not, was started with
    if resumed and started.exists():
        refuse_other_options(started, options)
    started.parent.mkdir(parents=True, exist_ok=True)
    started.write_text(json.dumps({"options": options}), encoding="utf-8")
    if resumed:
        command += ["--resume_from_checkpoint", "latest"]
    elif output.exists():
        command += ["--overwrite", "True"]
    print(f"+ {method}, seed {seed}", flush=True)
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)  # the peak of this child alone
    if status:
        sys.exit(f"error: {method} with seed {seed} failed; run the same command again to go on.")
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    if metrics["final"] is None:
        sys.exit("error: the data have no validation split, so there is nothing to compare.")
    return {
        "method": method,
        "seed": seed,
        "options": options,
        "machine": machine("cuda" if torch.cuda.is_available() else "cpu"),
        "resumed": resumed,
        "steps": metrics["steps"],
        "seconds": metrics["seconds"],
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "images_per_second": metrics["images_per_second"],
        "peak_memory_mib": metrics.get("peak_gpu_memory_mib", usage.ru_maxrss // 1024),
        "mean_iou": metrics["final"]["mean_iou"],
        "best_mean_iou": metrics["best"]["mean_iou"],
        "pixel_accuracy": metrics["final"]["pixel_accuracy"],
        "per_class": {name: values["iou"] for name, values in metrics["final"]["per_class"].items()},
    }


def passes(method: str) -> str:
    """Images through the encoder in a step of 1 + 1 images with a CutMix box: with gradient + without."""
    cls = method_class(method)
    data = synthetic_semi_dataset(labeled=1, unlabeled=1, validation=1, image_size=48)
    small = {"aspp_channels": 8, "low_level_channels": 8, "decoder_channels": 8, "correlation_channels": 8}
    config = CorrMatchConfig(encoder_name="test_resnet", id2label=data.id2label, **small)
    augmentation = Augmentation(crop_size=33, strong_views=cls.strong_views, cutmix_probability=1.0)
    batch = next(
        training_batches(
            data, augmentation, labeled_batch=1, unlabeled_batch=1 if cls.uses_unlabeled else 0, seed=0
        )
    )
    counts = {True: 0, False: 0}
    forward = CorrMatchEncoder.forward

    def counted(self, pixel_values):
        counts[torch.is_grad_enabled()] += len(pixel_values)
        return forward(self, pixel_values)

    CorrMatchEncoder.forward = counted
    try:
        cls(CorrMatchForSegmentation(config)).eval()(batch)  # BatchNorm cannot train on one small image
    finally:
        CorrMatchEncoder.forward = forward
    return f"{counts[True]} + {counts[False]}"


def table_of(folder: Path, options: list[str]) -> str:
    """The Markdown table of all results in a folder."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(result["method"], []).append(result)
    lines = [
        f"# {folder.name}",
        "",
        f"`python benchmarks/compare_methods.py --name {folder.name} -- {shlex.join(options)}`".replace(
            " -- `", "`"
        ),
        "",
        "Last weights, in percent: mean over the seeds, and their standard deviation. Images through the encoder in a",
        "step of 1 + 1 images with a CutMix box, at the method's defaults: with gradient + without. Processor seconds",
        "are those of a whole run, its start and its evaluations included, over its steps; the peak memory is the",
        "GPU's where there is one, else the process's.",
        "",
        "| Method | Seeds | Steps | Mean IoU | Best mean IoU | Pixel accuracy | Images | CPU s / step | Peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method, results in sorted(found.items(), key=lambda item: -_mean(item[1], "mean_iou")):
        lines.append(
            f"| {method} | {len(results)} | {results[0]['steps']} | {_spread(results, 'mean_iou')} "
            f"| {_spread(results, 'best_mean_iou')} | {_spread(results, 'pixel_accuracy')} | {passes(method)} "
            f"| {_cost(results)} "
            f"| {max(r['peak_memory_mib'] for r in results)} |"
        )
    return "\n".join(lines) + "\n"


def _cost(results: list[dict]) -> str:
    """CPU seconds a step, of the runs that were not interrupted."""
    costs = [result["cpu_seconds"] / result["steps"] for result in results if not result["resumed"]]
    return f"{statistics.mean(costs):.2f}" if costs else "-"


def _mean(results: list[dict], key: str) -> float:
    return statistics.mean(result[key] for result in results)


def _spread(results: list[dict], key: str) -> str:
    text = percent(_mean(results, key))
    return text if len(results) == 1 else f"{text} ± {percent(statistics.stdev(r[key] for r in results))}"


if __name__ == "__main__":
    main()

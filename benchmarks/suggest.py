"""Labels chosen by `corrmatch suggest` against labels chosen at random, on CamVid.

    python benchmarks/suggest.py --data_dir camvid --encoder_weights mobilenetv2_100.safetensors

From 12 random labelled photos, 12 are added twice: those that the last model suggests, and others at random. Each model
is trained anew on its labels alone, for the same number of steps, and evaluated on the whole test split. Photos are
shrunk to a short side of 240 pixels first. One process does everything; figures go to `results/suggest.json` after each
run, and what is there is not run again. The table is `results/suggest.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
from pathlib import Path

from PIL import Image

from corrmatch_hf.commands import suggest
from corrmatch_hf.data.load import load_semi_dataset
from corrmatch_hf.methods.supervised import Supervised
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.training.config import TrainingConfig
from corrmatch_hf.training.trainer import SemiSupervisedTrainer

RESULTS = Path(__file__).with_name("results")
START, ADDED, ROUNDS = 12, 12, 2
SIDE, CROP = 240, 161
PICKS = ("suggest", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data_dir", required=True, help="CamVid: train and test, each with images and masks."
    )
    parser.add_argument("--encoder_weights", required=True, help="mobilenetv2_100.safetensors")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--work", default="outputs/suggest", help="Folder of the small photos and of the runs."
    )
    args = parser.parse_args()
    work, path = Path(args.work), RESULTS / "suggest.json"
    data = shrunk(Path(args.data_dir), work / "photos")
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in args.seeds:
        for round in range(ROUNDS + 1):
            for pick in PICKS if round else ("start",):
                key = f"{seed}/{pick}/{START + round * ADDED}"
                labels = labels_of(seed, pick, round, work, data)
                if key not in results:
                    results[key] = train(labels, seed, args, work, data, run_folder(work, seed, pick, round))
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    (RESULTS / "suggest.md").write_text(table(results, args.steps), encoding="utf-8")
                print(key, results[key], flush=True)


def shrunk(source: Path, target: Path) -> Path:
    """A copy of train and test with a short side of `SIDE` pixels."""
    for path in sorted(source.glob("*/*/*")):
        kind, split = path.parent.name, path.parent.parent.name
        new = target / {"test": "validation"}.get(split, split) / kind / f"{path.stem}.png"
        if split not in ("train", "test") or new.exists():
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.open(path)
        scale = SIDE / min(picture.size)
        how = Image.Resampling.NEAREST if kind == "masks" else Image.Resampling.LANCZOS
        picture.resize((round(picture.width * scale), round(picture.height * scale)), how).save(new)
    shutil.copy(source / "id2label.json", target / "id2label.json")
    return target


def run_folder(work: Path, seed: int, pick: str, round: int) -> Path:
    return work / f"{seed}-{pick}-{round}"


def labels_of(seed: int, pick: str, round: int, work: Path, data: Path) -> list[str]:
    """Names of the labelled photos of a run: those of the round before, and the added ones."""
    names = sorted(path.stem for path in (data / "train" / "images").glob("*.png"))
    shuffled = random.Random(seed).sample(names, len(names))
    if pick != "suggest":
        return shuffled[: START + round * ADDED]
    chosen = run_folder(work, seed, pick, round) / "chosen.txt"
    before = "suggest" if round > 1 else "start"
    labels = labels_of(seed, before, round - 1, work, data)
    if not chosen.exists():
        output = work / "suggested"
        shutil.rmtree(output, ignore_errors=True)
        model = run_folder(work, seed, before, round - 1) / "run"
        photos = data / "train" / "images"
        command = ["--model", str(model), "--photos", str(photos), "--labeled", str(list_file(labels, data))]
        suggest.main([*command, "--count", str(ADDED), "--save_as", "none", "--output_dir", str(output)])
        chosen.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(output / "contact_sheet.jpg", chosen.parent)
        chosen.write_text((output / "list.txt").read_text())
    return labels + [Path(line).stem for line in chosen.read_text().splitlines()]


def list_file(labels: list[str], data: Path) -> Path:
    path = data / "labeled.txt"
    path.write_text("".join(f"train/images/{name}.png train/masks/{name}.png\n" for name in labels))
    return path


def train(
    labels: list[str], seed: int, args: argparse.Namespace, work: Path, data_dir: Path, folder: Path
) -> dict[str, float]:
    """Figures of a model that is trained on these labels alone."""
    data = load_semi_dataset(data_dir=str(data_dir), labeled_list=str(list_file(labels, data_dir)))
    config = TrainingConfig(
        output_dir=str(folder / "run"), overwrite=True, max_steps=args.steps, seed=seed, crop_size=CROP,
        per_device_batch_size=4, scale_min=0.5, scale_max=1.5, optimizer="adamw", learning_rate=5e-4,
        head_lr_multiplier=4, weight_decay=0.01, save_steps=None, eval_steps=None, logging_steps=50,
    )  # fmt: skip
    model = CorrMatchForSegmentation.from_encoder_pretrained(
        CorrMatchConfig(
            encoder_name="mobilenetv2_100",
            output_stride=16,
            id2label=data.id2label,
            aspp_channels=64,
            decoder_channels=64,
            correlation_head=False,
        ),
        args.encoder_weights,
    )
    trainer = SemiSupervisedTrainer(Supervised(model, seed=seed), data, config, CorrMatchImageProcessor())
    final = trainer.train()["final"]
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    return {key: round(final[key], 4) for key in ("mean_iou", "pixel_accuracy")}


def table(results: dict[str, dict[str, float]], steps: int) -> str:
    """Mean IoU of every run so far, and the means over the seeds that have both ways."""
    seeds = sorted({int(key.split("/")[0]) for key in results})
    lines = [
        "# Which photos to label next: `corrmatch suggest` against random choice",
        "",
        f"CamVid at a short side of {SIDE} pixels, mean IoU in percent on the whole test split (233 photos). Each run",
        f"is supervised on its labelled photos alone: mobilenetv2_100 with ImageNet weights, crop {CROP}, 4 photos a",
        f"step, {steps} steps, AdamW; float32 on a CPU. The first {START} labels are random and shared by both ways.",
        "",
        "| seed | labels | random | suggest | difference |",
        "|---:|---:|---:|---:|---:|",
    ]
    differences: dict[int, list[float]] = {}
    for seed in seeds:
        for round in range(ROUNDS + 1):
            count = START + round * ADDED
            cells = []
            for pick in PICKS[::-1]:
                found = results.get(f"{seed}/{pick if round else 'start'}/{count}")
                cells.append(None if found is None else 100 * found["mean_iou"])
            if all(cell is None for cell in cells):
                continue
            gain = ""
            if round and None not in cells:
                differences.setdefault(count, []).append(cells[1] - cells[0])
                gain = f"{cells[1] - cells[0]:+.1f}"
            shown = ["-" if cell is None else f"{cell:.1f}" for cell in cells]
            lines.append(f"| {seed} | {count} | {shown[0]} | {shown[1]} | {gain} |")
    for count, values in differences.items():
        mean = statistics.mean(values)
        lines.append(f"| mean of {len(values)} | {count} | | | {mean:+.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

"""Do unlabelled photos help? Supervised training to saturation against every semi-supervised candidate, on real photos.

    python benchmarks/promise.py --shared ../shared --work WORK run QUEUE.txt    # a queue; resumable
    python benchmarks/promise.py --shared ../shared --work WORK one voc31 --candidate fixmatch_ema --steps 600
    python benchmarks/promise.py --shared ../shared --work WORK cost voc31       # CPU seconds a step
    python benchmarks/promise.py table voc31                                             # results/promise/voc31.md
    python benchmarks/promise.py curves voc31 --candidates supervised fixmatch_ema       # results/promise/voc31.png
    python benchmarks/promise.py --shared ../shared --work WORK picture voc31 --candidates supervised fixmatch_ema

A queue is a text file with the arguments of one run a line (`voc31 --candidate supervised --steps 600 --seed 0`);
a line that starts with # is skipped. The file is read again after every run, so lines can be added, moved and removed
meanwhile. A finished run is one JSON file in results/promise/DATA/, and is not run again; an interrupted one goes on
from its last evaluation. Several queue processes may share one queue: a run is claimed with a lock file.

All runs of a data set share network, crop, batch, augmentation, optimiser, schedule and weight averaging (the moving
average with `teacher_decay`, supervised included). Every run is evaluated on both fixed halves of the validation
photos (even and odd places in the sorted list): choose on half A, report on half B. Photos are reduced to the side
given by the setting once, so that evaluation is cheap. Diagnostics: at every evaluation, pseudo-labels for fixed
weakly augmented crops of unlabelled photos are compared with their true masks, which training never sees, and those for
crops of labelled photos with theirs, to see whether that would have told.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from corrmatch_hf.data import Augmentation, SemiDataset, load_semi_dataset, training_batches
from corrmatch_hf.data.semi_dataset import EvaluationSet
from corrmatch_hf.evaluation.confusion_matrix import ConfusionMatrix
from corrmatch_hf.evaluation.inference import evaluating
from corrmatch_hf.methods import METHODS, CorrMatch, Method
from corrmatch_hf.methods.gatematch import GateMatch
from corrmatch_hf.methods.pseudo_labels import PseudoLabels
from corrmatch_hf.methods.teacher import Teacher
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.model.correlation_corrmatch import correlation_rows
from corrmatch_hf.ops.region_propagation import propagate_rows
from corrmatch_hf.pictures import class_palette, prediction_grid
from corrmatch_hf.training import TrainingConfig
from corrmatch_hf.training.optimizer import build_schedule

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
from benchmarks.depthwise import fast_depthwise

RESULTS = Path(__file__).with_name("results") / "promise"
NORMALISATION = {  # of the encoders in shared/weights
    "tf_efficientnet_lite0": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mobilenetv2_100": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "resnet50": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Setting:
    """A data set with a number of labels, and what all its runs share."""

    folder: str  # below shared/data
    split: str  # folder with labeled.txt and unlabeled.txt
    validation: str = "validation"
    side: int = 320  # of the reduced photos, the longer one
    eval_side: int = 208  # of the validation photos
    validation_photos: int = 240  # evenly drawn, both halves together
    encoder: str = "tf_efficientnet_lite0"
    output_stride: int = 16
    channels: int = 64  # of ASPP, decoder and correlation head
    crop: int = 129
    scales: tuple[float, float] = (0.45, 0.9)
    labeled_batch: int = 4
    unlabeled_batch: int = 4
    learning_rate: float = 2e-4
    head_multiplier: float = 5.0
    weight_decay: float = 0.01
    frozen_stages: int = 5  # of EfficientNet, MobileNet or ResNet, the first ones: they are not trained
    teacher_decay: float = 0.99
    restart: float = 0.0  # above 0: the schedule is done again, from this share of the learning rates
    restart_at: float = 0.4  # the share of the steps that the first one takes
    cycles: int = 1  # how often it is done in the rest
    cutmix: float = 0.5  # chance of a strong view
    evaluations: int = 4  # a run
    groups: tuple[str, ...] = ()  # prefixes of file names that are reported apart


SETTINGS = {
    "voc31": Setting("voc_animals", "splits/31"),
    "voc65": Setting("voc_animals", "splits/65"),
    "voc104": Setting("voc_animals", "splits/104"),
    "horse16": Setting("weizmann_horse", "splits/1_16", validation="test"),
    "camvid16": Setting(
        "camvid", "splits/1_16", validation="test", side=240, eval_side=240, scales=(0.75, 1.5),
        groups=("0001TP", "Seq05VD"),
    ),
}  # fmt: skip


@dataclass
class Candidate:
    """A method with options; `all_masks` trains supervised on the true masks of all photos (the ceiling)."""

    method: str = "gatematch"
    options: dict[str, Any] = field(default_factory=dict)
    all_masks: bool = False


def recipe(**options) -> Candidate:
    return Candidate("gatematch", options)


# Fact 7 of spec/promise.md: burn-in 40 %, EMA teacher 0.99, a threshold per class, class weights in both losses.
FACT7 = {"threshold": "class_mean", "class_weight_power": 0.5, "unlabeled_class_weights": True}
CANDIDATES: dict[str, Candidate] = {
    "supervised": recipe(burn_in=1.0),
    "ceiling": Candidate("gatematch", {"burn_in": 1.0}, all_masks=True),
    "fact7": recipe(**FACT7),
    "fixmatch_ema": recipe(),
    "fixmatch": Candidate("fixmatch"),
    "unimatch": Candidate("unimatch"),
    "corrmatch": Candidate("corrmatch"),
    "mean_thresholds": recipe(threshold="class_mean"),
    "soft": recipe(threshold="soft"),
    "all_pixels": recipe(confidence_threshold=0.0),
    "soft_labels": recipe(confidence_threshold=0.0, soft_labels=True, teacher_flip=True),
}


# --------------------------------------------------------------------------------------------------------- data


def reduced(source: Path, target: Path, side: int) -> Path:
    """The folder `source` with every photo and mask reduced to a longer side of at most `side`; made once."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.suffix in (".txt", ".json") and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
        if path.suffix not in (".jpg", ".png") or place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            factor = min(1, side / max(image.size))
            size = tuple(max(round(length * factor), 1) for length in image.size)
            kind = Image.Resampling.NEAREST if path.suffix == ".png" else Image.Resampling.BOX
            aside = place.with_name(f".{os.getpid()}{place.name}")
            image.resize(size, kind).save(aside, **({"quality": 95} if path.suffix == ".jpg" else {}))
            aside.rename(place)  # two queues may do this at the same time
    return target


def load(
    setting: Setting, shared: Path, work: Path, all_masks: bool = False
) -> tuple[SemiDataset, SemiDataset]:
    """The data of a run, and the same with the unlabelled photos as the labelled ones, for diagnostics."""
    source = shared / "data" / setting.folder
    root = reduced(source, work / "data" / f"{setting.folder}_{setting.side}", setting.side)
    val = reduced(source, work / "data" / f"{setting.folder}_{setting.eval_side}", setting.eval_side)
    lists = root / setting.split
    everything = lists / "everything.txt"
    if not everything.exists():
        everything.write_text(
            (lists / "labeled.txt").read_text() + "\n" + (lists / "unlabeled.txt").read_text()
        )

    def semi(labeled: Path) -> SemiDataset:
        return load_semi_dataset(
            data_dir=str(root),
            labeled_list=str(labeled),
            unlabeled_list=str(lists / "unlabeled.txt"),
            validation_images=str(val / setting.validation / "images"),
            validation_masks=str(val / setting.validation / "masks"),
            id2label=str(root / "id2label.json"),
        )

    return semi(everything if all_masks else lists / "labeled.txt"), semi(lists / "unlabeled.txt")


def augmentation(setting: Setting, strong_views: int) -> Augmentation:
    mean, std = NORMALISATION[setting.encoder]
    return Augmentation(
        crop_size=setting.crop,
        scale_min=setting.scales[0],
        scale_max=setting.scales[1],
        strong_views=strong_views,
        cutmix_partner="batch",
        cutmix_probability=setting.cutmix,
        image_mean=mean,
        image_std=std,
    )


# -------------------------------------------------------------------------------------------------------- model


def build(
    setting: Setting, candidate: Candidate, data: SemiDataset, shared: Path, seed: int, steps: int
) -> Method:
    """The method around a fresh network with the pretrained encoder."""
    cls = METHODS[candidate.method]
    options = dict(candidate.options)
    if candidate.method == "gatematch":
        options.setdefault("teacher_decay", setting.teacher_decay)
    options = cls.Options(**options)
    torch.manual_seed(seed)
    width = setting.channels
    config = CorrMatchConfig(
        encoder_name=setting.encoder,
        output_stride=setting.output_stride,
        aspp_channels=width,
        decoder_channels=width,
        low_level_channels=24,
        correlation_channels=width,
        correlation_head=cls.needs_correlation_head(options),
        id2label=data.id2label,
    )
    weights = shared / "weights" / f"{setting.encoder}.safetensors"
    model = fast_depthwise(CorrMatchForSegmentation.from_encoder_pretrained(config, weights))
    method = cls(model, options, seed)
    method.plan(steps)
    freeze(method, setting)
    return method.to(memory_format=torch.channels_last)


def freeze(method: Method, setting: Setting) -> None:
    """The first stages of the encoder are not trained."""
    stages = ["conv_stem", "conv1", "bn1"]
    stages += [f"blocks.{i}" for i in range(setting.frozen_stages)]
    stages += [f"layer{i + 1}" for i in range(setting.frozen_stages)]
    if setting.frozen_stages:
        for name, parameter in method.model.encoder.body.named_parameters():
            if name.startswith(tuple(f"{stage}." for stage in stages)):
                parameter.requires_grad_(False)


def keep_statistics(method: Method) -> None:
    """BatchNorm of the encoder keeps its pretrained statistics; that of the new decoder learns them."""
    method.train()
    for module in method.model.encoder.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def optimizer_of(method: Method, setting: Setting) -> torch.optim.Optimizer:
    encoder, rest = [], []
    for name, parameter in method.model.named_parameters():
        if parameter.requires_grad:
            (encoder if name.startswith("encoder.") else rest).append(parameter)
    rate = setting.learning_rate
    groups = [{"params": encoder, "lr": rate}, {"params": rest, "lr": rate * setting.head_multiplier}]
    return torch.optim.AdamW(groups, weight_decay=setting.weight_decay, fused=True)


def schedule_of(
    optimizer: torch.optim.Optimizer, setting: Setting, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Polynomial decay to zero, once, or again where the setting restarts: a settled teacher after the burn-in."""
    first = round(setting.restart_at * steps)
    restarts = [first + round((steps - first) * i / setting.cycles) for i in range(setting.cycles)]
    return build_schedule(
        optimizer, TrainingConfig(lr_restart=setting.restart, lr_power=0.9), steps, restarts
    )


# --------------------------------------------------------------------------------------------------- evaluation


class Validation:
    """The validation photos in memory, and confusion matrices of their halves and groups."""

    def __init__(self, data: SemiDataset, setting: Setting, batch: int = 8):
        self.data, self.setting = data, setting
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALISATION[setting.encoder])
        samples = validation_samples(data, setting)
        alike: dict[
            tuple, list[tuple[Tensor, Tensor, list[str]]]
        ] = {}  # by half and size: predicted together
        for i, sample in enumerate(samples):
            parts = self.parts(i, Path(sample["file"]).name)
            photo = (sample["image"] / 255 - mean) / std
            alike.setdefault((parts[0], photo.shape), []).append((photo, sample["label"], parts))
        self.batches = [
            photos[i : i + batch] for photos in alike.values() for i in range(0, len(photos), batch)
        ]

    def parts(self, i: int, name: str) -> list[str]:
        """The parts that photo i belongs to: its half, and its group in that half."""
        half = "AB"[i % 2]
        return [half, *(f"{half}/{group}" for group in self.setting.groups if name.startswith(group))]

    def measure(self, network: nn.Module) -> dict[str, dict]:
        """mIoU, pixel accuracy and IoU of each class for every part of both halves."""
        matrices: dict[str, ConfusionMatrix] = {}
        with evaluating(network):
            for batch in self.batches:
                images = torch.stack([photo for photo, _, _ in batch]).contiguous(
                    memory_format=torch.channels_last
                )
                for prediction, (_, label, parts) in zip(
                    network(images).logits.argmax(1), batch, strict=True
                ):
                    for part in parts:
                        matrix = matrices.setdefault(part, ConfusionMatrix(self.data.num_labels))
                        matrix.update(prediction, label)
        return {part: figures(matrix, self.data.id2label) for part, matrix in sorted(matrices.items())}


def validation_samples(data: SemiDataset, setting: Setting) -> list[dict]:
    """The validation photos with their labels, evenly drawn from the sorted ones; half A has the even places."""
    photos = EvaluationSet(data.validation, data)
    samples = sorted((photos[i] for i in range(len(photos))), key=lambda sample: sample["file"])
    return [samples[i] for i in evenly(len(samples), setting.validation_photos)]


def evenly(length: int, count: int) -> list[int]:
    return torch.linspace(0, length - 1, min(count, length)).long().tolist()


def figures(matrix: ConfusionMatrix, id2label: dict[int, str]) -> dict:
    found = matrix.compute(id2label)
    iou = {name: values["iou"] for name, values in found["per_class"].items()}
    return {"miou": found["mean_iou"], "accuracy": found["pixel_accuracy"], "iou": iou}


class Diagnostics:
    """Pseudo-labels on fixed weak crops of the photos that `truth` has masks of, against those masks."""

    def __init__(self, truth: SemiDataset, setting: Setting, crops: int = 96):
        batches = training_batches(
            truth, augmentation(setting, 0), labeled_batch=crops, unlabeled_batch=0, seed=999
        )
        batch = next(batches)
        self.images, self.labels = batch.image, batch.label
        self.classes, self.ignored = truth.num_labels, truth.ignore_index

    def measure(self, method: Method) -> dict[str, dict]:
        """Before and after propagation: shares of all true pixels, and for each class of its true pixels."""
        before, after = pseudo_labels(method, self.images)
        return {"before": self.shares(*before)} | ({"after": self.shares(*after)} if after else {})

    def shares(self, labels: Tensor, kept: Tensor) -> dict[str, Any]:
        """kept: share of pixels that count; right: share that counts with the true class (weights count as such)."""
        counted = self.labels != self.ignored
        right = kept * (labels == self.labels)
        found = {
            "kept": mean(kept[counted]),
            "right": mean(right[counted]),
            "of_all": mean((labels == self.labels)[counted]),
        }
        found["precision"] = found["right"] / max(found["kept"], 1e-9)
        for name, values in (("class_kept", kept), ("class_right", right)):
            found[name] = [mean(values[self.labels == k]) for k in range(self.classes)]
        # Of the pixels labelled k that count, the share whose true class is k.
        found["class_precision"] = [
            round(
                right[counted & (labels == k)].sum().item()
                / max(kept[counted & (labels == k)].sum().item(), 1e-9),
                4,
            )
            for k in range(self.classes)
        ]
        return found


def mean(values: Tensor) -> float:
    return round(values.float().mean().item(), 4) if values.numel() else 0.0


@torch.no_grad()
def pseudo_labels(
    method: Method, images: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """(labels, weight) that a method gives weak views, before and, where it propagates, after propagation."""
    valid = torch.ones_like(images[:, 0], dtype=torch.bool)
    if isinstance(method, GateMatch):
        before, after = method.targets(images, valid, step=0, gated=False)
        propagated = (after.labels, after.weight) if method.options.region_propagation else None
        return (before.labels, before.weight), propagated
    network = method.segmentation_model
    with evaluating(network):
        features = network.encode(images)
        decoded = network.decode(features)
        target = PseudoLabels.of(network.upsample(decoded.logits, images.shape[-2:]), valid)
        if not isinstance(method, CorrMatch):
            kept = target.confidence >= getattr(method.options, "confidence_threshold", 0.0)
            return (target.labels, kept.float()), None
        kept = method.threshold.confident(target.confidence, target.labels)
        query, key = network.correlate(features, decoded)
        index = method._shape_index(query[0, 0].numel(), 0, query.device)
        rows = correlation_rows(query, key, index, network.config.correlation_scale)
    labels, after = propagate_rows(rows, target.labels, kept, valid, method.threshold.scalar())
    return (target.labels, kept.float()), (labels, after.float())


# ---------------------------------------------------------------------------------------------------------- run


@dataclass
class Run:
    """One training, and where its result goes."""

    data: str
    candidate: str
    steps: int
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # on top of the candidate's
    setting: dict[str, Any] = field(default_factory=dict)  # on top of the data set's

    @property
    def name(self) -> str:
        return f"{self.recipe.replace(' ', '+')}-{self.steps}-{self.seed}"

    @property
    def recipe(self) -> str:
        """The candidate and what was changed, as `named_run` reads it."""
        changed = sorted({**self.setting, **self.options}.items())
        return " ".join([self.candidate, *(f"{name}={text_of(value)}" for name, value in changed)])

    @property
    def result(self) -> Path:
        return RESULTS / self.data / f"{self.name}.json"

    @property
    def resolved(self) -> tuple[Setting, Candidate]:
        setting = dataclasses.replace(SETTINGS[self.data], **self.setting)
        candidate = CANDIDATES[self.candidate]
        return setting, dataclasses.replace(candidate, options={**candidate.options, **self.options})


class Steps:
    """The optimiser steps of a run."""

    def __init__(self, run: Run, shared: Path, work: Path):
        self.run, (self.setting, candidate) = run, run.resolved
        self.data, self.truth = load(self.setting, shared, work, candidate.all_masks)
        self.method = build(self.setting, candidate, self.data, shared, run.seed, run.steps)
        self.optimizer = optimizer_of(self.method, self.setting)
        self.schedule = schedule_of(self.optimizer, self.setting, run.steps)
        # The average that is evaluated: the method's own teacher, else one with the same decay.
        self.average = getattr(self.method, "teacher", None)
        if not isinstance(self.average, Teacher):
            self.average = Teacher(self.method.model, self.setting.teacher_decay)
        self.burn_in = self.method.supervised_passes if self.method.uses_unlabeled else run.steps
        self.seconds = {"labelled": 0.0, "unlabelled": 0.0}  # CPU seconds of the steps in each phase

    def batches(self, start: int) -> Iterator:
        """From step `start` on; no unlabelled photo is read before the burn-in is over."""
        setting = self.setting
        arguments = {"labeled_batch": setting.labeled_batch, "seed": self.run.seed}
        views = augmentation(setting, self.method.strong_views)
        if start < self.burn_in:
            labelled = training_batches(self.data, views, unlabeled_batch=0, start_step=start, **arguments)
            yield from (next(labelled) for _ in range(start, self.burn_in))
        yield from training_batches(
            self.data,
            views,
            unlabeled_batch=setting.unlabeled_batch,
            start_step=max(start, self.burn_in),
            **arguments,
        )

    def step(self, batches: Iterator, number: int) -> dict[str, Tensor]:
        started = time.process_time()
        loss, logs = self.method(next(batches))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.method.after_step()
        if self.average is not getattr(self.method, "teacher", None):
            self.average.update(self.method.model)
        self.seconds["labelled" if number < self.burn_in else "unlabelled"] += time.process_time() - started
        return logs

    def state(self) -> dict:
        parts = (self.method, self.optimizer, self.schedule, self.average)
        return {"parts": [part.state_dict() for part in parts], "seconds": self.seconds}

    def load_state(self, state: dict) -> None:
        for part, values in zip(
            (self.method, self.optimizer, self.schedule, self.average), state["parts"], strict=True
        ):
            part.load_state_dict(values)
        self.seconds = state["seconds"]


def checkpoint_file(run: Run, work: Path) -> Path:
    return work / "checkpoints" / run.data / f"{run.name}.pt"


def weights_file(run: Run, work: Path) -> Path:
    """The averaged weights at the end."""
    return work / "models" / run.data / f"{run.name}.pt"


def burn_in_file(run: Run, work: Path) -> Path | None:
    """Where the state after the burn-in is shared between runs that only differ in what comes later; else None."""
    setting, candidate = run.resolved
    options = METHODS[candidate.method].Options(**candidate.options)
    if (
        candidate.method != "gatematch"
        or options.burn_in == 1
        or options.needs_correlation
        or options.teacher_rounds
    ):
        return None
    labelled = (options.burn_in, options.class_weight_power, options.labeled_loss)
    key = repr((run.data, run.steps, run.seed, labelled, candidate.all_masks, setting))
    return work / "burn_in" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"


def save(state: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}{path.name}")
    torch.save(state, aside)
    aside.rename(path)


def train(run: Run, shared: Path, work: Path) -> dict:
    """Train, evaluate, and return the result; goes on from the checkpoint of an interrupted run."""
    torch.set_num_threads(1)
    steps = Steps(run, shared, work)
    setting, method = steps.setting, steps.method
    validation, unlabelled = Validation(steps.data, setting), Diagnostics(steps.truth, setting)
    labelled = Diagnostics(steps.data, setting, crops=32)  # what the method could measure by itself
    checkpoint = checkpoint_file(run, work)
    curve, start = [], 0
    burn_in = burn_in_file(run, work)
    if not checkpoint.exists() and steps.burn_in and burn_in and burn_in.exists():
        checkpoint = burn_in
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        steps.load_state(state)
        curve, start = state["curve"], state["step"]
    points = {round(run.steps * (i + 1) / setting.evaluations) for i in range(setting.evaluations)}
    batches = steps.batches(start)
    keep_statistics(method)
    checkpoint = checkpoint_file(run, work)
    for number in range(start, run.steps):
        if number == steps.burn_in and burn_in and not burn_in.exists():
            rows = [
                {name: value for name, value in row.items() if name not in ("pseudo_labels", "on_labelled")}
                for row in curve
            ]
            save(steps.state() | {"curve": rows, "step": number}, burn_in)
        logs = steps.step(batches, number)
        if number + 1 in points:
            row = {
                "step": number + 1,
                "seconds": round(sum(steps.seconds.values()), 1),
                "average": validation.measure(steps.average.network),
                "logs": {name: round(float(value), 4) for name, value in logs.items()},
                "pseudo_labels": unlabelled.measure(method),
                "on_labelled": labelled.measure(method),
            }
            curve.append(row)
            keep_statistics(method)
            save(steps.state() | {"curve": curve, "step": number + 1}, checkpoint)
            print(f"{run.name} {number + 1}: {summary(row['average'])} {row['logs']}", flush=True)
    last = validation.measure(method.model)
    save(steps.average.network.state_dict(), weights_file(run, work))
    checkpoint.unlink(missing_ok=True)
    return {
        "run": dataclasses.asdict(run),
        "setting": dataclasses.asdict(setting),
        "candidate": dataclasses.asdict(run.resolved[1]),
        "steps": {"labelled": steps.burn_in, "unlabelled": run.steps - steps.burn_in},
        "cpu_seconds": {name: round(value, 1) for name, value in steps.seconds.items()},
        "last": last,
        "average": curve[-1]["average"],
        "curve": curve,
    }


def summary(parts: dict[str, dict]) -> str:
    return ", ".join(f"{part} {100 * f['miou']:.1f}/{100 * f['accuracy']:.1f}" for part, f in parts.items())


def perform(run: Run, shared: Path, work: Path) -> bool:
    """Do one run unless it is finished or another process has claimed it; whether it was done now."""
    if run.result.exists():
        return False
    run.result.parent.mkdir(parents=True, exist_ok=True)
    lock = work / "locks" / run.data / f"{run.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    if lock.exists() and Path(f"/proc/{lock.read_text()}").exists():
        return False
    lock.write_text(str(os.getpid()))
    try:
        result = train(run, shared, work)
        aside = run.result.with_suffix(".writing")
        aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
        aside.rename(run.result)
        print(
            f"done {run.data} {run.name}: average {summary(result['average'])}; last {summary(result['last'])}",
            flush=True,
        )
    finally:
        lock.unlink(missing_ok=True)
    return True


def work_through(queue: Path, shared: Path, work: Path, once: bool = False) -> bool:
    """Do all runs of the queue, reading it again after each; with `once` one of them. False where none was left."""
    failed = set()
    while True:
        lines = [line.strip() for line in queue.read_text().splitlines()]
        for line in lines:
            if not line or line.startswith("#") or line in failed:
                continue
            try:
                if perform(parse_run(shlex.split(line)), shared, work):
                    if once:
                        return True
                    break
            except Exception as error:  # the others still matter
                print(f"failed {line}: {error!r}", file=sys.stderr, flush=True)
                failed.add(line)
        else:
            return False


# ----------------------------------------------------------------------------------------------------------- cost


def named_run(data: str, recipe: str, steps: int) -> Run:
    """The run of a recipe as the tables name it: a candidate, then name=value of setting or options."""
    candidate, *pairs = recipe.split()
    changed = {name: value_of(value) for name, value in (pair.split("=", 1) for pair in pairs)}
    setting = {name: value for name, value in changed.items() if name in Setting.__dataclass_fields__}
    options = {name: value for name, value in changed.items() if name not in setting}
    return Run(data, candidate, steps, 0, options, setting)


def costs(data: str, recipes: list[str], shared: Path, work: Path, rounds: int = 8) -> dict[str, dict]:
    """CPU seconds of a step of each recipe before and after its burn-in, medians of interleaved steps.

    Interleaved, because a step takes longer while the neighbouring core is busy: then it does for all recipes.
    """
    torch.set_num_threads(1)
    total, phases = 1000, {}
    for name in recipes:
        steps = Steps(named_run(data, name, total), shared, work)
        keep_statistics(steps.method)
        starts = {"labelled": 0} if steps.burn_in else {}
        if steps.burn_in < total:
            starts["unlabelled"] = steps.burn_in
        phases |= {(name, phase): (steps, steps.batches(start), start) for phase, start in starts.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in phases}
    for i in range(rounds + 2):
        for key, (steps, batches, start) in phases.items():
            before = time.process_time()
            steps.step(batches, start + i)
            times[key].append(time.process_time() - before)
    medians = {
        key: round(statistics.median(values[2:]), 4) for key, values in times.items()
    }  # the first are slower
    return {
        name: {phase: value for (other, phase), value in medians.items() if other == name} for name in recipes
    }


def cost_of(result: dict, cost: dict[str, dict]) -> dict[str, float] | None:
    """CPU seconds of a step: of the recipe itself, else of the calibrated one of its candidate that is most like it."""
    if result["run"]["candidate"] in ("supervised", "ceiling"):
        return cost.get("supervised")
    words = recipe_name(result).split()
    alike = {name: set(name.split()) for name in cost if name.split()[0] == words[0]}
    best = max(alike, key=lambda name: len(alike[name] & set(words)), default=None)
    return None if best is None or not alike[best] <= set(words) else cost[best]


def price(result: dict, cost: dict[str, dict]) -> float | None:
    """Calibrated CPU seconds of a run's steps; None where nothing like its recipe was calibrated."""
    own = cost_of(result, cost)
    return own and sum(count * own[phase] for phase, count in result["steps"].items() if count)


# ---------------------------------------------------------------------------------------------------------- tables


def results_of(data: str) -> list[dict]:
    """All finished runs of a data set."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / data).glob("*-*.json"))
    ]


def recipe_name(result: dict) -> str:
    """The candidate with what was changed, without steps and seed."""
    return Run(**result["run"]).recipe


def table_of(data: str, half: str = "B", weights: str = "average") -> str:
    """Markdown: mean and deviation over seeds on one half, figures in percent."""
    path = RESULTS / data / "costs.json"
    cost = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    grouped: dict[tuple[str, int], list[dict]] = {}
    for result in results_of(data):
        grouped.setdefault((recipe_name(result), result["run"]["steps"]), []).append(result)
    groups = SETTINGS[data].groups
    lines = [
        "| run | steps | seeds | CPU s | mIoU, last | mIoU, average | gain | accuracy |"
        + "".join(f" {g} |" for g in groups)
        + " kept | right |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        + " ---: |" * len(groups)
        + " ---: | ---: |",
    ]
    order = sorted(
        grouped.items(), key=lambda item: statistics.mean(r[weights][half]["miou"] for r in item[1])
    )
    for (name, steps), found in order:
        seconds = price(found[0], cost)
        labels = [r["curve"][-1]["pseudo_labels"] for r in found]
        final = [each.get("after", each["before"]) for each in labels]
        cells = [
            name, str(steps), str(len(found)), "-" if seconds is None else f"{seconds:.0f}",
            spread([r["last"][half]["miou"] for r in found]),
            spread([r["average"][half]["miou"] for r in found]),
            gain_over(grouped.get((control_of(found[0]), steps), []), found, half),
            spread([r["average"][half]["accuracy"] for r in found]),
            *(spread([r["average"][f"{half}/{g}"]["miou"] for r in found]) for g in groups),
            spread([each["kept"] for each in final]), spread([each["precision"] for each in final]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page_of(data: str) -> str:
    """The tables of both halves, and the IoU of each class on half B."""
    setting, results = SETTINGS[data], results_of(data)
    classes = list(results[0]["average"]["B"]["iou"])
    lines = [
        f"# {data}: {setting.folder}, {setting.split}",
        "",
        "Figures in percent, mean and deviation over seeds; averaged weights unless said otherwise. CPU s: calibrated",
        "(costs.json). gain: over supervised, same steps and seed. kept: share of pixels whose pseudo-label counts",
        "at the end; right: how many of these are right.",
        "",
        "## Half B of the validation photos (reported)",
        "",
        table_of(data, "B"),
        "## Half A (for choosing)",
        "",
        table_of(data, "A"),
        "## IoU of each class, half B",
        "",
        "| run | steps | " + " | ".join(classes) + " |",
        "| --- | ---: |" + " ---: |" * len(classes),
    ]
    grouped: dict[tuple[str, int], list[dict]] = {}
    for result in results:
        grouped.setdefault((recipe_name(result), result["run"]["steps"]), []).append(result)
    for (name, steps), found in sorted(grouped.items()):
        iou = [statistics.mean(r["average"]["B"]["iou"][k] or 0 for r in found) for k in classes]
        lines.append(f"| {name} | {steps} | " + " | ".join(f"{100 * value:.0f}" for value in iou) + " |")
    return "\n".join(lines) + "\n"


def curves(
    data: str, names: list[str], path: Path, labels: list[str] | None = None, steps: int | None = None
) -> None:
    """mIoU of the averaged weights on half A against steps and against calibrated CPU seconds, with deviations; of the
    runs of one length, or of all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cost = json.loads((RESULTS / data / "costs.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    grouped: dict[tuple[str, int], list[dict]] = {}
    for result in results_of(data):
        if recipe_name(result) in names and steps in (None, result["run"]["steps"]):
            grouped.setdefault((recipe_name(result), result["run"]["steps"]), []).append(result)
    for i, ((name, length), found) in enumerate(
        sorted(grouped.items(), key=lambda item: names.index(item[0][0]))
    ):
        points = [row["step"] for row in found[0]["curve"]]
        values = [[100 * r["curve"][j]["average"]["A"]["miou"] for r in found] for j in range(len(points))]
        middle = [statistics.mean(v) for v in values]
        width = [statistics.stdev(v) if len(v) > 1 else 0 for v in values]
        burn_in = found[0]["steps"]["labelled"]
        panels = [(left, points)]
        if (own := cost_of(found[0], cost)) is not None:
            unlabelled = own.get("unlabelled", own["labelled"])
            seconds = [min(p, burn_in) * own["labelled"] + max(p - burn_in, 0) * unlabelled for p in points]
            panels.append((right, seconds))
        for axes, xs in panels:
            label = labels[names.index(name)] if labels else f"{name}, {length} steps"
            axes.plot(xs, middle, marker="o", markersize=3, color=f"C{i}", label=label)
            lower, upper = ([m + sign * w for m, w in zip(middle, width, strict=True)] for sign in (-1, 1))
            axes.fill_between(xs, lower, upper, alpha=0.15, color=f"C{i}")
    left.set_xlabel("steps")
    right.set_xlabel("CPU seconds (calibrated)")
    left.set_ylabel("mIoU on half A of validation, %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(None if labels else data)
    figure.savefig(path)


def picture(
    data: str,
    recipes: list[str],
    steps: int,
    seed: int,
    shared: Path,
    work: Path,
    path: Path,
    count: int = 8,
    labels: list[str] | None = None,
) -> None:
    """Photos of half B, evenly drawn, with the truth and the predictions of a supervised run and of another one."""
    torch.set_num_threads(1)
    rows: list[dict] = []
    for column, recipe in zip(("supervised", "prediction"), recipes, strict=True):
        run = dataclasses.replace(named_run(data, recipe, steps), seed=seed)
        setting, candidate = run.resolved
        semi, _ = load(setting, shared, work)
        network = build(setting, candidate, semi, shared, seed, steps).model
        network.load_state_dict(torch.load(weights_file(run, work)))
        if not rows:
            samples = validation_samples(semi, setting)[1::2]
            rows = [
                {"image": each["image"].byte().permute(1, 2, 0).numpy(), "label": each["label"]}
                for each in (samples[i] for i in evenly(len(samples), count))
            ]
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALISATION[setting.encoder])
        with evaluating(network):
            for row in rows:
                photo = (torch.from_numpy(row["image"]).permute(2, 0, 1) / 255 - mean) / std
                row[column] = network(photo[None]).logits.argmax(1)[0]
    titles = dict(zip(("supervised", "prediction"), labels or [r.split()[0] for r in recipes], strict=True))
    grid = prediction_grid(rows, semi.id2label, class_palette(semi.id2label), titles=titles)
    grid.save(path)


def control_of(result: dict) -> str:
    """The recipe of supervised training with the same setting."""
    run = Run(**result["run"])
    return dataclasses.replace(run, candidate="supervised", options={}).recipe


def gain_over(supervised: list[dict], found: list[dict], half: str) -> str:
    """Averaged weights against the supervised runs of the same steps and seeds, pair by pair."""
    there = {r["run"]["seed"]: r["average"][half]["miou"] for r in supervised}
    pairs = [(r["average"][half]["miou"], there.get(r["run"]["seed"])) for r in found]
    gains = [own - other for own, other in pairs if other is not None]
    return spread(gains) if gains else "-"


def spread(values: list[float]) -> str:
    text = f"{100 * statistics.mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {100 * statistics.stdev(values):.1f}"


# ---------------------------------------------------------------------------------------------------- the command


def value_of(text: str) -> Any:
    """A number, true, false, a list or else the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return tuple(found) if isinstance(found, list) else found


def text_of(value: Any) -> str:
    """What `value_of` reads, without spaces."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("data", choices=list(SETTINGS))
    parser.add_argument("--candidate", choices=list(CANDIDATES), default="supervised")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--option", nargs="*", default=[], help="name=value of the method's options.")
    parser.add_argument("--set", nargs="*", default=[], help="name=value of the setting.")
    return parser


def parse_run(arguments: list[str]) -> Run:
    args = run_parser().parse_args(arguments)
    options, setting = (
        {name: value_of(value) for name, value in (pair.split("=", 1) for pair in pairs)}
        for pairs in (args.option, args.set)
    )
    return Run(args.data, args.candidate, args.steps, args.seed, options, setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("CORRMATCH_SHARED", "../shared")))
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/promise"), help="Reduced photos and checkpoints."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("queue", type=Path)
    command.add_argument(
        "--once", action="store_true", help="Stop after one run; exit status 1 if none was left."
    )
    commands.add_parser("one", parents=[run_parser()])
    for name in ("cost", "table", "curves", "picture"):
        command = commands.add_parser(name)
        command.add_argument("data", choices=list(SETTINGS))
        command.add_argument(
            "--candidates",
            nargs="+",
            default=["supervised"],
            help="curves and picture: as the table names them.",
        )
        if name in ("curves", "picture"):
            command.add_argument("--labels", nargs="+", help="Their names in the picture.")
        if name == "curves":
            command.add_argument("--output", type=Path, help="The picture; by default beside the results.")
            command.add_argument("--steps", type=int, help="Runs of this length alone.")
        if name == "picture":
            command.add_argument("--steps", type=int, default=1200)
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--photos", type=int, default=8)
    args, _ = parser.parse_known_args()
    if args.command == "run":
        sys.exit(not work_through(args.queue, args.shared, args.work, args.once) and args.once)
    elif args.command == "cost":
        path = RESULTS / args.data / "costs.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = costs(args.data, args.candidates, args.shared, args.work)
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    elif args.command == "table":
        text = page_of(args.data)
        (RESULTS / f"{args.data}.md").write_text(text, encoding="utf-8")
        print(text)
    elif args.command == "curves":
        path = args.output or RESULTS / f"{args.data}.png"
        curves(args.data, args.candidates, path, args.labels, args.steps)
    elif args.command == "picture":
        if len(args.candidates) != 2 or len(args.labels or args.candidates) != 2:
            parser.error(
                "picture needs two --candidates: a supervised run and another one, and two --labels or none"
            )
        path = args.work / f"{args.data}.png"  # of photos that may not be published
        run = (args.data, args.candidates, args.steps, args.seed)
        picture(*run, args.shared, args.work, path, args.photos, args.labels)
        print(path)
    else:
        perform(parse_run(sys.argv[sys.argv.index("one") + 1 :]), args.shared, args.work)


if __name__ == "__main__":
    main()

"""What decoders and transformer encoders cost: an image forward, and a step of training.

    OMP_NUM_THREADS=1 python benchmarks/decoders.py     # writes benchmarks/results/decoders.md, in some seven minutes

FLOPs, parameters and the memory of large steps are counted; times and the memory of small steps are measured, times as
processor time of one thread, one thing and the other in turn, medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too

from benchmarks.__main__ import machine
from benchmarks.counting import StepCount, count_step, flops, without_contents
from benchmarks.measure import extra_mib, process_kib
from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.data.batch import SemiBatch
from corrmatch_hf.methods import Method, method_class
from corrmatch_hf.training.config import TrainingConfig
from corrmatch_hf.training.memory import blank_batch
from corrmatch_hf.training.optimizer import build_optimizer, freeze, keep_frozen

CLASSES = 21
CUTMIX_PROBABILITY = 0.5  # of a box in a strong view
SMALL, BASE = "vit_small_patch14_dinov2", "vit_base_patch14_dinov2"
WIDTH = {SMALL: 64, BASE: 128}  # decoder_channels of the recipes
# encoder, crop, its decoders and their options
NETWORKS = (
    ("resnet50", 513, {"deeplabv3plus": {}, "linear": {}}),
    (SMALL, 518, {"dpt": {"decoder_channels": WIDTH[SMALL]}, "linear": {}}),
    (BASE, 518, {"dpt": {"decoder_channels": WIDTH[BASE]}, "linear": {}}),
)
METHODS = ("supervised", "unimatch_v2", "corrmatch")
PLAIN, CHECKPOINTED, BF16, FROZEN = MODES = (
    "plain",
    "gradient_checkpointing",
    "mixed_precision bf16",
    "freeze_encoder",
)

NETWORK_HEADER = (
    "| encoder, crop | decoder | parameters, M: encoder | decoder | GFLOPs: encoder | decoder | whole "
    "| whole / encoder | time, whole / encoder |\n| --- | --- |" + " ---: |" * 7
)
STEP_HEADER = (
    "| method | | GFLOPs: encoder forward | others forward | others backward | encoder backward | step | to plain "
    "| GiB: kept | weights | gradients | AdamW | together | to plain |\n| --- | --- |" + " ---: |" * 12
)
MEASURED_HEADER = (
    "| | s a step | to plain | counted FLOPs, to plain | peak of the process, MiB | to plain "
    "| peak of a step above its start, MiB | to plain | counted: kept and gradients, MiB | to plain |\n"
    "| --- |" + " ---: |" * 9
)


def network(encoder_name: str, decoder: str, **config) -> CorrMatchForSegmentation:
    config |= {"encoder_name": encoder_name, "decoder_type": decoder, "num_labels": CLASSES}
    return CorrMatchForSegmentation(CorrMatchConfig(correlation_head=False, **config)).eval()


def network_rows(encoder_name: str, crop: int, decoders: dict[str, dict], repeats: int) -> Iterator[str]:
    """A line for each decoder."""
    times = inference_seconds(encoder_name, crop, decoders, repeats)
    for decoder, config in decoders.items():
        with torch.device("meta"):
            model = network(encoder_name, decoder, **config)
        parameters = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
        encoder, decoding = network_flops(model, crop)
        yield line(
            f"{encoder_name}, {crop}", decoder, *(f"{count / 1e6:.2f}" for count in parameters),
            *(f"{count / 1e9:.1f}" for count in (encoder, decoding, encoder + decoding)),
            f"{1 + decoding / encoder:.2f}", f"{1 + times[decoder] / times['encoder']:.2f}",
        )  # fmt: skip


def network_flops(model: CorrMatchForSegmentation, crop: int) -> tuple[int, int]:
    """Of encoder and decoder, for one image; the model was made on the meta device."""
    with without_contents(model), torch.no_grad():
        image, features = torch.empty(1, 3, crop, crop), []
        return flops(lambda: features.append(model.encode(image))), flops(lambda: model.decode(features[0]))


def inference_seconds(
    encoder_name: str, crop: int, decoders: dict[str, dict], repeats: int
) -> dict[str, float]:
    """Processor seconds of the encoder and of each decoder up to logits of the image's size."""
    torch.manual_seed(0)
    models = {decoder: network(encoder_name, decoder, **config) for decoder, config in decoders.items()}
    image = torch.randn(1, 3, crop, crop)
    encode = next(iter(models.values())).encode
    with torch.no_grad():
        features = encode(image)
        calls: dict[str, Callable] = {"encoder": lambda: encode(image)}
        for decoder, model in models.items():
            calls[decoder] = lambda model=model: model.upsample(model.decode(features).logits, (crop, crop))
        rounds = [{name: processor_seconds(call) for name, call in calls.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(each[name] for each in rounds[1:]) for name in calls}


def processor_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def training(
    method_name: str, mode: str, encoder_name: str, device: str = "cpu", **config
) -> tuple[Method, TrainingConfig]:
    """A method in training on DPT, as the trainer sets it up."""
    cls = method_class(method_name)
    config |= {"encoder_name": encoder_name, "decoder_type": "dpt", "num_labels": CLASSES}
    with torch.device(device):
        model = CorrMatchForSegmentation(
            CorrMatchConfig(correlation_head=cls.uses_correlation_head, **config)
        )
        if mode == CHECKPOINTED:
            model.activation_checkpointing_enable()
        method = cls(model)
    training_config = TrainingConfig(
        freeze_encoder=mode == FROZEN, optimizer="adamw", mixed_precision="bf16" if mode == BF16 else "no"
    )
    freeze(method, training_config)
    method.train()
    keep_frozen(method, training_config)
    return method, training_config


def step_batch(method: Method, images: int, crop: int) -> SemiBatch:
    """As many labelled as unlabelled images of one device; as many as is usual have a CutMix box in some strong view.

    It shows the image at their place in the reversed batch or, where that is their own, another view of it.
    """
    batch = blank_batch(method, images, images, crop, torch.device("cpu"))
    if method.uses_unlabeled:
        boxed = range(round(images * (1 - (1 - CUTMIX_PROBABILITY) ** method.strong_views)))
        batch.partner_rows = list(boxed)
        batch.partner_places = [-1 if 2 * row == images - 1 else images - 1 - row for row in boxed]
        batch.partner_weak, batch.partner_valid = (
            batch.weak[batch.partner_rows],
            batch.valid[batch.partner_rows],
        )
    return batch


def counted(method_name: str, mode: str, encoder_name: str, images: int, crop: int, **config) -> StepCount:
    method, training_config = training(method_name, mode, encoder_name, "meta", **config)
    with without_contents(method):
        return count_step(method, step_batch(method, images, crop), training_config.mixed_precision == "bf16")


def step_rows(
    encoder_name: str, images: int, crop: int, methods: tuple[str, ...] = METHODS, **config
) -> Iterator[str]:
    """A line for each method and mode."""
    for name in methods:
        plain = counted(name, PLAIN, encoder_name, images, crop, **config)
        for mode in MODES:
            c = plain if mode == PLAIN else counted(name, mode, encoder_name, images, crop, **config)
            parts = (c.encoder_forward, c.other_forward, c.other_backward, c.encoder_backward, c.flops)
            yield line(
                name, mode, *(f"{count / 1e9:.0f}" for count in parts), f"{c.flops / plain.flops:.2f}",
                *(f"{count / 2**30:.2f}" for count in (c.kept, c.weights, c.gradients, 2 * c.gradients, c.memory)),
                f"{c.memory / plain.memory:.2f}",
            )  # fmt: skip


def measured_rows(
    encoder_name: str, images: int, crop: int, repeats: int, modes: tuple[str, ...] = MODES, **config
) -> Iterator[str]:
    """A line for each mode of UniMatch V2, each in a process of its own, which take turns."""
    context, workers = multiprocessing.get_context("spawn"), {}
    for mode in modes:
        ours, theirs = context.Pipe()
        arguments = (theirs, mode, encoder_name, images, crop, config)
        process = context.Process(target=work, args=arguments)
        process.daemon = True
        process.start()
        workers[mode] = ours, process
        theirs.close()  # so that a dead worker ends the pipe

    def ask(mode: str, what: str) -> float:
        workers[mode][0].send(what)
        return workers[mode][0].recv()

    rounds = [{mode: ask(mode, "seconds") for mode in modes} for _ in range(repeats + 1)][1:]
    seconds = {mode: statistics.median(each[mode] for each in rounds) for mode in modes}
    peaks = {mode: ask(mode, "peak") for mode in modes}
    extras = {mode: ask(mode, "extra") for mode in modes}
    for connection, process in workers.values():
        connection.send(None)
        process.join()
    counts = {mode: counted("unimatch_v2", mode, encoder_name, images, crop, **config) for mode in modes}

    def to_plain(values: dict[str, float], mode: str) -> str:
        return f"{values[mode] / values[PLAIN]:.2f}"

    work_done = {mode: count.flops for mode, count in counts.items()}
    needed = {mode: (count.kept + count.gradients) / 2**20 for mode, count in counts.items()}
    for mode in modes:
        yield line(
            mode, f"{seconds[mode]:.2f}", to_plain(seconds, mode), to_plain(work_done, mode),
            *(cell for values in (peaks, extras, needed) for cell in (f"{values[mode]:.0f}", to_plain(values, mode))),
        )  # fmt: skip


def work(connection: Connection, mode: str, encoder_name: str, images: int, crop: int, config: dict) -> None:
    """Steps of one mode, on request: processor seconds of one, the process's peak until now (MiB), or a step's."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    method, training_config = training("unimatch_v2", mode, encoder_name, **config)
    optimizer = build_optimizer(method, training_config, images)
    batch = step_batch(method, images, crop)
    for pictures in (batch.image, batch.weak, batch.strong, batch.partner_weak):
        pictures.normal_()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == BF16):
            loss, _ = method(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()

    answers: dict[str, Callable[[], float]] = {
        "seconds": lambda: processor_seconds(step),
        "peak": lambda: process_kib("VmHWM") / 2**10,
        "extra": lambda: extra_mib(step),
    }
    for asked in iter(connection.recv, None):
        connection.send(answers[asked]())


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds")
    parser.add_argument("--small_crop", type=int, default=126, help="crop of the measured steps, pixels")
    parser.add_argument(
        "--small_batch", type=int, default=1, help="labelled, and as many unlabelled, images of them"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []

    def write(*new: str) -> None:
        lines.extend(new)
        print("\n".join(new), flush=True)

    write(
        "# Decoders and transformer encoders",
        "",
        f"`OMP_NUM_THREADS=1 python benchmarks/decoders.py` on {machine('cpu')}; {CLASSES} classes.",
        "FLOPs, parameters and GiB are **counted**, not measured, and nothing was run on a GPU: two FLOPs for a",
        "product and a sum; matrix products, convolutions, attention and pixel propagation. Seconds are processor time",
        f"of one thread on a shared machine, medians of {args.repeats} rounds in turn: look at their ratios.",
        "",
        "## A network, forward, one image",
        "",
        NETWORK_HEADER,
    )
    for encoder_name, crop, decoders in NETWORKS:
        for row in network_rows(encoder_name, crop, decoders, args.repeats):
            write(row)
    for encoder_name in (SMALL, BASE):
        write("", f"## A step of training, {encoder_name} with dpt, crop 518, 4 + 4 images", "", STEP_HEADER)
        for row in step_rows(encoder_name, 4, 518, decoder_channels=WIDTH[encoder_name]):
            write(row)
    n, crop = args.small_batch, args.small_crop
    write(
        "", f"## Measured: UniMatch V2, {SMALL} with dpt, crop {crop}, {n} + {n} images", "", MEASURED_HEADER
    )
    for row in measured_rows(SMALL, n, crop, args.repeats, decoder_channels=WIDTH[SMALL]):
        write(row)
    Path(__file__).with_name("results").joinpath("decoders.md").write_text(
        "\n".join(lines) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

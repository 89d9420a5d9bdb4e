"""What a CorrMatch step costs as its input grows: crops, classes, shapes, images.

    python benchmarks/growth.py                     # writes benchmarks/results/growth.md

One thing grows at a time, the others stay at crop 321, 21 classes, 128 shapes, 2 + 2 images. Beside the whole step the
correlation parts alone: pixel propagation forward and backward, and shapes with their region propagation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too

from benchmarks.__main__ import machine
from benchmarks.measure import extra_mib, milliseconds
from benchmarks.whole_step import OurStep, confident_method, step_batch
from corrmatch_hf import correlation_rows, pixel_propagation, propagate_rows
from corrmatch_hf.methods import CorrMatch, CorrMatchOptions

USUAL = {"crop": 321, "classes": 21, "shapes": 128, "images": 2}
# A network as small as can be, so that what is not the network shows.
NARROW = {"aspp_channels": 32, "decoder_channels": 32, "low_level_channels": 16, "correlation_channels": 64}
SWEEPS = {
    "crop": (161, 321, 481, 641, 801),
    "classes": (2, 21, 60, 150),
    "shapes": (16, 64, 128, 256, 512),
    "images": (1, 2, 4, 8),
}
HEADER = (
    "| {} | step, ms | ms / Mpx | step, MiB | MiB / Mpx | pixel propagation, ms | its MiB | shapes and regions, ms "
    "| their MiB |\n|" + " ---: |" * 9
)


def sweep(name: str, encoder_name: str, device: str) -> Iterator[str]:
    for value in SWEEPS[name]:
        at = USUAL | {name: value}
        method = confident_method(encoder_name, at["classes"], device, **NARROW)
        method = CorrMatch(method.model, CorrMatchOptions(num_shapes=at["shapes"]))
        step = OurStep(method)
        batch, _, _ = step_batch(at["crop"], at["images"], at["classes"], device)
        time, memory = cost(lambda step=step, batch=batch: step(batch), device)
        megapixels = 2 * at["images"] * at["crop"] ** 2 / 1e6
        parts = [*cost(pixel_part(at, device), device), *cost(shape_part(at, device), device)]
        cells = [value, time, time / megapixels, memory, memory / megapixels, *parts]
        yield "| " + " | ".join(f"{cell:.0f}" for cell in cells) + " |"


def cost(call, device: str) -> tuple[float, float]:
    """Milliseconds (median of three) and extra MiB."""
    time, _ = milliseconds(call, lambda: None, device, repeats=3)
    return time, extra_mib(call, device)


def grid_of(at: dict[str, int]) -> int:
    return (at["crop"] + 7) // 8  # output stride 8


def pixel_part(at: dict[str, int], device: str):
    """Pixel propagation of labelled, weak and strong images, forward and backward."""
    shape = (3 * at["images"], at["classes"], grid_of(at), grid_of(at))
    query, key = (torch.randn(shape, device=device).requires_grad_() for _ in range(2))
    logits = torch.randn(shape, device=device)

    def call() -> None:
        query.grad = key.grad = None
        pixel_propagation(query, key, logits).sum().backward()

    return call


def shape_part(at: dict[str, int], device: str):
    """Shapes of the unlabelled images, and region propagation along them."""
    n, size = at["images"], (at["crop"], at["crop"])
    query, key = (torch.randn(n, at["classes"], grid_of(at), grid_of(at), device=device) for _ in range(2))
    index = torch.randint(grid_of(at) ** 2, (at["shapes"],), device=device)
    labels = torch.randint(at["classes"], (n, *size), device=device)
    confident = torch.rand(n, *size, device=device) < 0.9
    allowed, threshold = torch.ones_like(confident), torch.tensor(0.85, device=device)

    def call() -> None:
        rows = correlation_rows(query, key, index)
        propagate_rows(rows, labels, confident, allowed, threshold, num_labels=at["classes"])

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder_name", default="test_resnet", help="timm name")
    parser.add_argument("--grow", nargs="+", choices=tuple(SWEEPS), default=list(SWEEPS))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [
        "# Growth",
        "",
        f"`python benchmarks/growth.py` on {machine(device)}; {args.encoder_name}, stride 8,",
        "with a narrow decoder, so that what is not the network shows.",
    ]
    lines += [
        "Medians of 3; MiB are what a call needs at its peak; Mpx counts all crops of the step, labelled and not."
    ]
    for name in args.grow:
        lines += ["", HEADER.format(name)]
        print(lines[-1], flush=True)
        for line in sweep(name, args.encoder_name, device):
            lines.append(line)
            print(line, flush=True)
    Path(__file__).with_name("results").joinpath("growth.md").write_text(
        "\n".join(lines) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

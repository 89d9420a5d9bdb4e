"""What a CorrMatch step costs as its input grows: crops, classes, shapes, images.

    python benchmarks/growth.py                     # writes benchmarks/results/growth.md
    python benchmarks/growth.py --grow files        # writes results/growth_files.md: pools of up to a million files

One thing grows at a time, the others stay at crop 321, 21 classes, 128 shapes, 2 + 2 images. Beside the whole step the
correlation parts alone: pixel propagation forward and backward, and shapes with their region propagation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too

from benchmarks.__main__ import machine
from benchmarks.measure import extra_mib, milliseconds, process_kib
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


FILES = (10_000, 100_000, 1_000_000)
FILES_HEADER = (
    "| files | listed: CPU s | us a file | identity: CPU s | us a file | folder: CPU s | us a file "
    "| kept, MiB | peak, MiB |\n|" + " ---: |" * 9
)


def files_sweep(counts: tuple[int, ...] = FILES) -> Iterator[str]:
    """Opening a pool of so many unlabelled files, each in a new process: by a list, and by naming its folder."""
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            make_pool(Path(folder), count)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
                listed, identity, kept, peak = processes.submit(open_pool, folder, True).result()
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
                found, *_ = processes.submit(open_pool, folder, False).result()
        seconds = (listed, identity, found)
        each = [f"{part:.2f} | {1e6 * part / count:.1f}" for part in seconds]
        yield f"| {count} | {' | '.join(each)} | {kept:.0f} | {peak:.0f} |"


def make_pool(root: Path, count: int) -> None:
    """Two photos with masks, and `count` files in folders of ten thousand, with their list."""
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (root / "train" / kind).mkdir(parents=True)
        for i in range(2):
            Image.new(mode, (8, 8)).save(root / "train" / kind / f"{i}.png")
    names = [f"pool/{i // 10_000:04}/photo_{i:07}.png" for i in range(count)]
    for i, name in enumerate(names):
        if i % 10_000 == 0:
            (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    (root / "unlabeled.txt").write_text("\n".join(names))
    (root / "labeled.txt").write_text(
        "\n".join(f"train/images/{i}.png train/masks/{i}.png" for i in range(2))
    )


def open_pool(folder: str, listed: bool) -> tuple[float, float, float, float]:
    """CPU seconds of loading and of `identity`, and the MiB that the pool keeps and that its loading took."""
    from corrmatch_hf.data.load import load_semi_dataset

    root = Path(folder)
    options = {"extra_unlabeled": str(root / "pool")}
    if listed:
        options = {"labeled_list": str(root / "labeled.txt"), "unlabeled_list": str(root / "unlabeled.txt")}
    load_semi_dataset(data_dir=folder, num_labels=2)  # imports
    before, start = process_kib("VmRSS"), time.process_time()
    data = load_semi_dataset(data_dir=folder, num_labels=2, **options)
    loaded, kept, peak = time.process_time(), process_kib("VmRSS"), process_kib("VmHWM")
    _ = data.identity
    return loaded - start, time.process_time() - loaded, (kept - before) / 2**10, (peak - before) / 2**10


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
    parser.add_argument("--grow", nargs="+", choices=(*SWEEPS, "files"), default=list(SWEEPS))
    args = parser.parse_args()
    if "files" in args.grow:
        lines = ["# Pools of many files", "", f"`python benchmarks/growth.py --grow files` on {machine('cpu')}.",
                 "Files in folders of ten thousand, on the disk of the machine. Kept and peak: of the listed pool.", "",
                 FILES_HEADER]  # fmt: skip
        print("\n".join(lines), flush=True)
        for line in files_sweep():
            lines.append(line)
            print(line, flush=True)
        path = Path(__file__).with_name("results") / "growth_files.md"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
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

"""Where the time and the memory of a training step go.

    python benchmarks/step_time.py                                  # CorrMatch and the supervised baseline, small
    python benchmarks/step_time.py --encoder_name resnet101s --output_stride 8 --crop_size 321 --batch_size 2

Prints milliseconds and shares for data, forward passes, propagation, losses, backward and optimiser (medians over
steps), the ratio of the whole step to the supervised one, and the peak memory of the process (or of the GPU).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager

import torch

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.data.augment import Augmentation
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.data.training_set import training_batches
from corrmatch_hf.methods import corrmatch, method_class


class Clock:
    """Wall time by part; a part's time does not include that of the parts inside it."""

    def __init__(self, device: torch.device):
        self.device, self.parts, self.stack = device, defaultdict(float), []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str):
        start = self.now()
        self.stack.append(0.0)
        yield
        spent = self.now() - start
        self.parts[name] += spent - self.stack.pop()
        if self.stack:
            self.stack[-1] += spent

    def wrapped(self, name: str, function):
        def timed(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return timed


def measure(name: str, args: argparse.Namespace, device: torch.device, **config) -> dict[str, float]:
    """Median seconds of each part of a step of the method `name`, and the peak memory in MiB.

    `config`: further fields of the model's configuration.
    """
    clock = Clock(device)
    cls = method_class(name)
    torch.manual_seed(0)
    model = CorrMatchForSegmentation(
        CorrMatchConfig(
            encoder_name=args.encoder_name, output_stride=args.output_stride, num_labels=5,
            correlation_head=cls.uses_correlation_head, **config,
        )
    )  # fmt: skip
    method = cls(model).to(device).train()
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-3, momentum=0.9)
    data = synthetic_semi_dataset(labeled=8, unlabeled=32, validation=0, image_size=args.crop_size)
    batches = training_batches(
        data, Augmentation(crop_size=args.crop_size, strong_views=cls.strong_views), seed=0,
        labeled_batch=args.batch_size, unlabeled_batch=args.batch_size if cls.uses_unlabeled else 0,
    )  # fmt: skip
    model.encode = clock.wrapped("forward passes", model.encode)
    model.decode = clock.wrapped("forward passes", model.decode)
    model.correlate = clock.wrapped("forward passes", model.correlate)
    own = {n: getattr(corrmatch, n) for n in ("pixel_propagation", "correlation_rows", "propagate_rows")}
    for function, plain in own.items():
        setattr(corrmatch, function, clock.wrapped("propagation", plain))

    steps = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        for _ in range(args.steps + 2):
            clock.parts.clear()
            with clock.part("data"):
                batch = next(batches).to(device)
            with clock.part("losses and pseudo-labels"):
                loss, _ = method(batch)
            with clock.part("backward"):
                loss.backward()
            with clock.part("optimiser"):
                optimizer.step()
                optimizer.zero_grad()
            steps.append(dict(clock.parts))
    finally:
        for function, plain in own.items():
            setattr(corrmatch, function, plain)
    steps = steps[2:]  # the first ones allocate
    parts = {part: statistics.median(step[part] for step in steps) for part in steps[0]}
    if device.type == "cuda":
        parts["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    else:
        parts["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder_name", default="resnet18", help="timm name")
    parser.add_argument("--output_stride", type=int, default=16, help="8, 16 or 32")
    parser.add_argument("--crop_size", type=int, default=161, help="pixels")
    parser.add_argument("--batch_size", type=int, default=2, help="labelled, and as many unlabelled, images")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    print(f"{args.encoder_name}, stride {args.output_stride}, crop {args.crop_size}, {args.batch_size} + "
          f"{args.batch_size} images, {device.type}{threads}\n")  # fmt: skip
    totals = {}
    for name in ("supervised", "corrmatch"):  # in this order: the process's peak memory only grows
        parts = measure(name, args, device)
        memory = parts.pop("peak MiB")
        totals[name] = sum(parts.values())
        print(f"{name}: {1000 * totals[name]:.0f} ms a step, peak memory {memory:.0f} MiB")
        for part in (
            "data",
            "forward passes",
            "propagation",
            "losses and pseudo-labels",
            "backward",
            "optimiser",
        ):
            if part in parts:
                print(f"  {part:<26} {1000 * parts[part]:8.1f} ms {100 * parts[part] / totals[name]:5.1f} %")
        print()
    print(f"corrmatch / supervised: {totals['corrmatch'] / totals['supervised']:.2f}")


if __name__ == "__main__":
    main()

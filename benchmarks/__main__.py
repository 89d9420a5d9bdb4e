"""Everything that is promised to be fast, against a plain reference in the same run: one table.

    python -m benchmarks                                # all of it, on the CPU and, where there is one, on the GPU
    python -m benchmarks region_propagation data        # some of it
    python -m benchmarks --device cpu --write           # write benchmarks/results/cpu.md
    python -m benchmarks --gpu                          # all that is promised of a GPU, in nine minutes; see gpu.py

A module of this folder that takes part has `rows(device)`, a generator of `Row`s. References are written here from
the papers' equations and pseudo-code, never in the package.
"""

from __future__ import annotations

import argparse
import importlib
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from .measure import Row

MODULES = (
    "region_propagation",
    "pixel_propagation",
    "step_parts",
    "dpt",
    "deeplab",
    "defaults",
    "data",
    "whole_step",
    "inference",
    "evaluation",
    "startup",
    "streams",
    "checkpoints",
)
HEADER = "| what | reference | ours | ratio | target | identical |\n| --- | ---: | ---: | ---: | ---: | --- |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help=f"Of {', '.join(MODULES)}; all by default."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="Both by default, where there is a GPU.")
    parser.add_argument("--threads", type=int, help="CPU threads of torch.")
    parser.add_argument(
        "--write", action="store_true", help="Write the whole tables to benchmarks/results/; not with MODULE."
    )
    parser.add_argument(
        "--gpu", action="store_true", help="The groups of gpu.py instead, all or those named."
    )
    parser.add_argument("--dry_run", action="store_true", help="With --gpu: on the CPU, as small as can be.")
    parser.add_argument("--output", type=Path, help="With --gpu: the file to write.")
    args = parser.parse_args()
    if args.gpu:
        from . import gpu

        if unknown := sorted(set(args.modules) - set(gpu.GROUPS)):
            parser.error(f"no such group: {', '.join(unknown)}; choose of {', '.join(gpu.GROUPS)}")
        output = args.output or Path(__file__).with_name("results") / "gpu.md"
        raise SystemExit(1 if gpu.main(args.modules, output, args.dry_run) else 0)
    if args.dry_run or args.output:
        parser.error("--dry_run and --output belong to --gpu")
    if args.write and args.modules:
        parser.error("--write replaces whole tables; leave out the modules")
    if unknown := sorted(set(args.modules) - set(MODULES)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; choose of {', '.join(MODULES)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    for device in [args.device] if args.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        lines = [HEADER]
        print(f"{machine(device)}\n\n{HEADER}", flush=True)
        for name in args.modules or MODULES:
            for row in importlib.import_module(f"benchmarks.{name}").rows(device):
                lines.append(line(row))
                print(lines[-1], flush=True)
        if args.write:
            path = Path(__file__).with_name("results") / f"{device}.md"
            command = "python -m benchmarks" + (f" --threads {args.threads}" if args.threads else "")
            path.write_text(
                f"`{command}` on {machine(device)}.\n\n" + "\n".join(lines) + "\n", encoding="utf-8"
            )


def line(row: Row) -> str:
    identical = {None: "", True: "yes", False: "**no**"}[row.identical]
    target = (
        "" if row.target is None else f"{row.target:g}" + ("" if row.ratio >= row.target else " (missed)")
    )
    cells = (
        row.what + (f" ({row.note})" if row.note else ""),
        *(
            f"{value:.3g} {row.unit}" if value < 1000 else f"{value:.0f} {row.unit}"
            for value in (row.reference, row.ours)
        ),
        f"{row.ratio:.3g}",
        target,
        identical,
    )
    return f"| {' | '.join(cells)} |"


def machine(device: str) -> str:
    """What was measured on, in a line."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpu = platform.processor() or platform.machine()
    for text in _lines("/proc/cpuinfo"):
        if text.startswith("model name"):
            cpu = text.split(":", 1)[1].strip()
            break
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{torch.get_num_threads()} threads of {cpu} ({capability}), torch {torch.__version__}"


def _lines(path: str) -> Iterable[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main()

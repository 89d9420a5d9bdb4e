"""`corrmatch demo`: a trained model -> a page that runs it in the visitor's browser."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError, check_writable_folder
from ..options import Options, option
from . import COMMANDS
from .arguments import parse
from .export import check_onnx

DESCRIPTION = f"""{COMMANDS["demo"]}

The page takes a photo from a file or the camera, and shows its classes with a legend, the class of every pixel, and
downloads of mask and overlay. It needs no server that computes: photos do not leave the browser. Sample photos of the
run are part of the page. The page contains ONNX Runtime Web, which is downloaded once from npm's registry.
`pip install corrmatch-hf[onnx]` installs what the export needs."""
EXAMPLES = """
corrmatch demo outputs/run
corrmatch demo outputs/run --precision float16 --push user/demo
corrmatch demo user/model --output page --runtime onnxruntime-web/dist
"""


@dataclass
class DemoOptions(Options):
    """The model, the page, and where it goes."""

    model: str = option(
        MISSING, "Folder of a trained model, or its id on the Hub.", positional=True, metavar="RUN"
    )
    output: str = option("demo", "Folder to write the page to.", common=True, metavar="FOLDER")
    push: str | None = option(
        None,
        "Also publish it as this Space on the Hub, of the kind static.",
        common=True,
        metavar="USER/SPACE",
    )
    private: bool = option(False, "Make a new Space private.", common=True)
    precision: Literal["float32", "float16", "int8"] = option(
        "float32",
        "Precision of the weights in the file: float16 halves it, int8 quarters it. What that costs is measured and "
        "stated on the page.",
        common=True,
    )
    photos: str | None = option(
        None,
        "Folder of photos to measure the cost of --precision on, by default the run's sample photos.",
        common=True,
        metavar="FOLDER",
        only_with=("precision=float16", "precision=int8"),
    )
    runtime: str | None = option(
        None,
        "Folder with the unpacked npm package onnxruntime-web, to work without a network.",
        common=True,
        metavar="FOLDER",
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.private and not self.push:
            found.append("--private needs a Space: add --push user/space")
        return found


def main(args: Sequence[str]) -> None:
    """Write the page, say how to open it, and publish it."""
    (options,) = parse("demo", DemoOptions, args=args, description=DESCRIPTION, examples=EXAMPLES)
    output = Path(options.output)
    check_writable_folder("--output", output)
    check_onnx()

    # Heavy imports come after parsing, so that --help is fast.
    from ..data.images import read_photo
    from ..hub.demo import as_shown, check_demo_folder, push_demo, run_facts, write_demo
    from ..hub.load import load_saved
    from ..hub.upload import check_repo_id
    from ..model import CorrMatchForSegmentation
    from .predict import find_photos

    check_demo_folder(output)
    if options.push:
        check_repo_id(options.push)
    model, processor = load_saved(options.model)
    if not isinstance(model, CorrMatchForSegmentation):
        raise InputError(f"{options.model} is a {type(model).__name__}; only CorrMatch models are exported.")
    facts = run_facts(options.model)
    measured = []
    if options.precision != "float32":
        paths = find_photos([options.photos]) if options.photos else facts["samples"]
        if not paths:
            raise InputError(
                f"{options.model} has no sample photos to measure on what --precision {options.precision} costs: name "
                "a folder with --photos."
            )
        measured = [as_shown(read_photo(str(path), str(path))) for path in paths]
    note = write_demo(
        output,
        model,
        processor,
        precision=options.precision,
        photos=measured,
        runtime=options.runtime,
        **facts,
    )
    if note:
        print(note)
    size, model_size = _mebibytes(output), _mebibytes(output / "model.onnx")
    print(f"written to {output} ({size:.1f} MiB, of which the model {model_size:.1f})")
    server = shlex.join(["python", "-m", "http.server", "--directory", str(output)])
    print(f"to look at it: {server}, then open http://localhost:8000")
    if options.push:
        print(f"published: {push_demo(output, options.push, private=options.private)}")


def _mebibytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


def errors() -> tuple[type[Exception], ...]:
    from ..hub.demo import UploadError

    return (InputError, UploadError)

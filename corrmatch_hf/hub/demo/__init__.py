"""A page that runs a model in the visitor's browser, as a folder of static files and as a Space on the Hub.

The page itself is in `page/`; `runtime.py` fetches ONNX Runtime Web. Beside them the folder holds `model.onnx`,
`demo.json` (what page.js and worker.js need to know), sample photos of the run, and the README.md of a static Space.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from PIL import Image, ImageOps

from ...errors import InputError
from ...evaluation.export import export_model, onnx_runtime, size_multiple
from ...evaluation.onnx_weights import Precision, agreement, shrink_weights
from ...model import CorrMatchForSegmentation, CorrMatchImageProcessor
from ...pictures.palette import class_palette
from ..upload import UploadError as UploadError  # raised by push_demo
from ..upload import open_repository, upload_errors
from .runtime import VERSION, find_runtime

PAGE = Path(__file__).with_name("page")
MAX_SIDE = 1024  # larger photos are scaled down, as in the Gradio Space
PROCESSOR = (
    "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip
RESAMPLINGS = (0, 1, 2, 3)  # PIL's codes that picture.js knows
# Threads of WebAssembly need a page that is isolated from other origins.
HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


def write_demo(
    folder: Path,
    model: CorrMatchForSegmentation,
    processor: CorrMatchImageProcessor,
    *,
    title: str,
    model_id: str | None = None,
    license: str | None = None,
    precision: Precision = "float32",
    samples: Sequence[Path] = (),
    photos: Sequence[Image.Image] = (),
    runtime: str | Path | None = None,
) -> str | None:
    """Write the page and everything it needs into `folder`. A demo that is there is replaced.

    Args:
        title: of the page.
        model_id: "user/model" on the Hub, named on the page and in the Space's README.
        license: of the weights, as the Hub names it.
        precision: of the weights in `model.onnx`; the model computes in float32.
        samples: photos that visitors can choose.
        photos: RGB photos on which the loss of a smaller precision is measured.
        runtime: folder with the files of ONNX Runtime Web; by default they are downloaded once.

    Returns:
        What the precision costs, as a sentence; None for float32.

    Raises:
        InputError: the model cannot be exported, the runtime cannot be had, or `folder` holds something else.
    """
    check_demo_folder(folder)
    if processor.do_resize and int(processor.resample) not in RESAMPLINGS:
        raise InputError(
            f"The image processor resizes with PIL's method {int(processor.resample)}, which the page does not know: "
            "give the processor resample=2 (bilinear)."
        )
    files = find_runtime(runtime)
    for name in ("runtime", "samples"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "runtime").mkdir(parents=True)
    (folder / "demo.json").write_text("{}", encoding="utf-8")  # the sign of a demo, should the rest fail
    for file in files:
        shutil.copyfile(file, folder / "runtime" / file.name)

    onnx = folder / "model.onnx"
    export_model(model, processor, onnx, "onnx", name=title)
    shrink_weights(onnx, precision)
    note = None
    if precision != "float32":
        share = agreement(model, processor, onnx_runtime(onnx), photos)
        note = (
            f"With {precision} weights, {share:.2%} of the pixels of {len(photos)} photo{'s' * (len(photos) > 1)} keep "
            "the class that float32 weights give."
        )

    names = [f"samples/{i}{sample.suffix.lower()}" for i, sample in enumerate(samples, 1)]
    for name, sample in zip(names, samples, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(sample, folder / name)
    facts = {
        "title": title,
        "model": model_id,
        "names": [model.config.id2label[i] for i in range(len(model.config.id2label))],
        "palette": class_palette(model.config.id2label, model.config.label_colors).tolist(),
        "processor": processor_facts(processor),
        "size_multiple": size_multiple(model),
        "image_size": model.encoder.plan.only_size,
        "max_side": MAX_SIDE,
        "model_file": onnx.name,
        "model_bytes": onnx.stat().st_size,
        "precision": precision,
        "precision_note": note,
        "samples": names,
    }
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace("{{title}}", html.escape(title))
        (folder / file.name).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(_readme(title, model_id, license, note), encoding="utf-8")
    (folder / "demo.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
    return note


def run_facts(model: str) -> dict[str, Any]:
    """`title`, `model_id`, `license` and `samples` of a run's folder or a model on the Hub, for `write_demo`."""
    folder, model_id = Path(model), None
    if not folder.is_dir():
        model_id = model
        try:
            folder = Path(snapshot_download(model, allow_patterns=["run.json", "samples/*.jpg"]))
        except (HTTPError, LocalEntryNotFoundError, OSError):  # the page is whole without them
            return {"title": model.split("/")[-1], "model_id": model_id, "license": None, "samples": []}
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))["run"]
        license, model_id = run.get("license"), model_id or run.get("hub_model_id")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, or somebody edited it
        license = None
    return {
        "title": model_id.split("/")[-1] if model_id else folder.resolve().name,
        "model_id": model_id,
        "license": license,
        "samples": sorted(folder.glob("samples/*.jpg")),
    }


def as_shown(photo: Image.Image) -> Image.Image:
    """The photo at the size at which the page segments it."""
    if max(photo.size) <= MAX_SIDE:
        return photo
    return ImageOps.contain(photo, (MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR)


def check_demo_folder(folder: Path) -> None:
    """Raises InputError where `folder` holds anything but a demo."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "demo.json").is_file():
        raise InputError(
            f"--output {folder} exists and holds no demo, so it is not overwritten; give another name."
        )


def push_demo(folder: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Publish a folder of `write_demo` as a static Space, in one commit; returns its address.

    Raises:
        UploadError: the Hub cannot be reached or rejects the upload.
    """
    with upload_errors(
        f"push {folder} to the Space {repo_id}", "The folder is complete: repeat the command."
    ):
        repo_id = open_repository(repo_id, repo_type="space", private=private, token=token)
        HfApi(token=token).upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=folder,
            commit_message="Upload demo",
            delete_patterns=[
                "runtime/*",
                "samples/*",
            ],  # of an earlier version, or of photos no longer wanted
        )
    return f"{HfApi().endpoint}/spaces/{repo_id}"


def processor_facts(processor: CorrMatchImageProcessor) -> dict[str, Any]:
    """What picture.js needs to know of an image processor, as JSON values."""
    facts = {name: getattr(processor, name) for name in PROCESSOR}
    facts["resample"] = int(facts["resample"])
    for name in ("image_mean", "image_std"):
        facts[name] = torch.tensor(facts[name]).expand(3).tolist()  # one number may stand for all channels
    return facts | {"size": dict(processor.size)}


def _readme(title: str, model_id: str | None, license: str | None, note: str | None) -> str:
    front = {
        "title": title,
        "emoji": "🧩",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "static",
        "app_file": "index.html",
        "license": license,
        "models": [model_id] if model_id else None,
        "tags": ["image-segmentation", "semantic-segmentation", "onnx"],
        "custom_headers": HEADERS,
    }
    front = {key: value for key, value in front.items() if value is not None}
    name = f"[{model_id}](https://huggingface.co/{model_id})" if model_id else title
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {title}",
        "",
        f"Semantic segmentation with the model {name}, in the visitor's browser: no server computes, and photos",
        f"are not uploaded. ONNX Runtime Web {VERSION} (MIT licence) in `runtime/` runs `model.onnx`, on the GPU where",
        "the browser has WebGPU, else in WebAssembly.",
        *(["", note] if note else []),
        "",
        "To open the page on your own machine, start a web server in this folder: `python -m http.server`. Written by",
        "`corrmatch demo` of corrmatch-hf.",
        "",
    ]
    return "\n".join(lines)

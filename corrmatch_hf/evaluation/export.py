"""A trained model as one file that runs without this package: ONNX, or a program of torch.export.

The file takes `pixel_values`, float32 (batch, 3, height, width) of any size, RGB, normalised, and returns `logits`,
float32 (batch, classes, height, width). Its metadata (in a .pt2: the extra file metadata.json) are JSON values:
"id2label", "image_mean", "image_std", "rescale_factor" (pixel_values = (pixels * rescale_factor - image_mean) /
image_std), "size_multiple" (1, except for encoders such as HRNet, whose images must be padded to multiples of it) and
"image_size" (null, except for encoders such as BEiT, which only accept images of that [height, width]). A .pt2 of a
plain transformer needs images of at least two patches in height and in width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
from timm.layers import padding, pos_embed_sincos
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import InputError
from ..model import CorrMatchForSegmentation, CorrMatchImageProcessor
from .inference import refuse_not_finite

TOLERANCE = 1e-4  # of the largest logit
METADATA_FILE = "metadata.json"  # inside a program of torch.export


class Logits(nn.Module):
    """The model as a function from one tensor to one tensor."""

    def __init__(self, model: CorrMatchForSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values, return_dict=True).logits


def export_model(
    model: CorrMatchForSegmentation,
    processor: CorrMatchImageProcessor,
    output: Path,
    format: Literal["onnx", "torch"],
    name: str = "the model",
) -> list[str]:
    """Write `output`, load it again and compare it with the model at three sizes (one, where it accepts one only).

    The model loses its correlation head, which only training needs, and is converted to float32.

    Returns:
        A line for each comparison.

    Raises:
        InputError: the encoder cannot be exported, or the file gives other results than the model; it is removed.
    """
    model.float().correlation = None
    metadata = {
        "id2label": model.config.id2label,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "rescale_factor": processor.rescale_factor,
        "size_multiple": size_multiple(model),
        "image_size": model.encoder.plan.only_size,
    }
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    if format == "onnx":
        for module in model.modules():
            if hasattr(
                module, "fused_attn"
            ):  # torch cannot translate it with a bias on its scores, as of BEiT
                module.fused_attn = False
    sizes = comparison_sizes(model)
    with torch.no_grad():
        logits = model(
            pixel_values=torch.randn(sizes[0][0], model.encoder.in_channels, *sizes[0][1:]), return_dict=True
        ).logits
    refuse_not_finite(logits.amax(1), [f"{name} on random images"] * len(logits))
    program = trace(model, name)
    output.parent.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        write_onnx(program, output, metadata)
        run = onnx_runtime(output)
    else:
        write_torch(program, output, metadata)
        run = torch.export.load(output).module()
    try:
        return [compare(model, run, size) for size in sizes]
    except InputError:
        output.unlink()
        raise


def size_multiple(model: CorrMatchForSegmentation) -> int:
    """Heights and widths that the graph accepts are multiples of this.

    The model pads other sizes for such an encoder, which is not part of the graph; resizing for a plain transformer is.
    """
    plan = model.encoder.plan
    return 1 if plan.plain else plan.size_multiple


def trace(model: CorrMatchForSegmentation, name: str) -> ExportedProgram:
    """The model as a graph with symbolic batch, height and width; of an encoder for one image size, only the batch."""
    multiple, own = size_multiple(model), model.encoder.plan.only_size
    side = max(multiple, 32)
    height, width = own or (3 * side, 4 * side)
    example = torch.zeros(2, model.encoder.in_channels, height, width)  # a batch of 1 would stay 1
    unknown = {0: Dim.DYNAMIC}
    if own is None and multiple == 1:
        unknown |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    elif own is None:
        unknown |= {2: multiple * Dim("rows", min=2), 3: multiple * Dim("columns", min=2)}
    # timm divides DINOv3's rotary positions by float(height), which would turn a symbolic height into a constant.
    symbolic = mock.patch.object(pos_embed_sincos, "float", torch.sym_float, create=True)
    # TensorFlow's padding rounds with math.ceil, which torch.export cannot save.
    whole = mock.patch.object(padding, "get_same_padding", same_padding)
    try:
        with torch.no_grad(), symbolic, whole:
            return torch.export.export(Logits(model), (example,), dynamic_shapes={"pixel_values": unknown})
    except Exception as error:  # of many kinds, each from deep inside the compiler
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"The encoder {model.config.encoder_name!r} of {name} cannot be exported for images of "
            f"{'any size' if own is None else 'its size'}: {reason}"
        ) from error


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """timm's `get_same_padding` in whole numbers: pixels to add, so that the output has ceil(size / stride)."""
    reach = (kernel_size - 1) * dilation + 1
    padding = ((size + stride - 1) // stride - 1) * stride + reach - size
    # Without max, where it is not needed, sizes stay short expressions: a deep encoder would take minutes.
    return padding if reach >= stride else max(padding, 0)


def write_onnx(program: ExportedProgram, output: Path, metadata: dict[str, str]) -> None:
    try:
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=["pixel_values"], output_names=["logits"], verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0][:300]
        raise InputError(f"ONNX cannot represent this encoder ({reason}): use --format torch.") from error
    graph = onnx.model.graph
    shape = graph.inputs[0].shape
    names = {str(shape[axis]): name for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    # As `rename_axes`, which torch 2.8 does not have.
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                value.shape[axis] = names.get(str(size), size)
    onnx.model.metadata_props.update(metadata)
    onnx.save(output, external_data=False)


def write_torch(program: ExportedProgram, output: Path, metadata: dict[str, str]) -> None:
    try:
        torch.export.save(program, output, extra_files={METADATA_FILE: json.dumps(metadata)})
    except Exception as error:  # of many kinds: what torch traces is not always what it can write
        output.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"torch.export cannot write this encoder ({reason}): use --format onnx.") from error


def onnx_runtime(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"pixel_values": image.numpy()})[0])


def comparison_sizes(model: CorrMatchForSegmentation) -> list[tuple[int, int, int]]:
    """(batch, height, width) of three inputs that differ from that of the export."""
    if own := model.encoder.plan.only_size:
        return [(1, *own), (3, *own), (4, *own)]
    multiple = size_multiple(model)
    if multiple == 1:
        side = model.encoder.plan.size_multiple if model.encoder.plan.plain else 16
        return [(1, 6 * side + 1, 8 * side + 3), (3, 4 * side, 10 * side), (1, 16 * side + 1, 12 * side + 1)]
    return [(n, h * multiple, w * multiple) for n, h, w in ((1, 2, 3), (3, 4, 2), (1, 5, 5))]


@torch.no_grad()
def compare(
    model: CorrMatchForSegmentation, run: Callable[[Tensor], Tensor], size: tuple[int, int, int]
) -> str:
    """How far `run` is from the model on one random input, as a line; InputError if the difference is too large."""
    batch, height, width = size
    image = torch.randn(batch, model.encoder.in_channels, height, width)
    expected = model(pixel_values=image, return_dict=True).logits
    try:
        found = run(image)
    except Exception as error:  # position tables of some encoders fix the size of a torch.export program
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"At {batch} x {height} x {width} the exported model fails ({reason}): use the other --format, or "
            "another encoder."
        ) from error
    scale = expected.abs().max()
    if (
        found.shape != expected.shape
        or not (difference := (found - expected).abs().max() / scale) <= TOLERANCE
    ):
        raise InputError(
            f"At {batch} x {height} x {width} the exported model gives different logits than the model."
        )
    # Classes may only differ where rounding decides.
    first, second = (
        expected.topk(2, dim=1).values.unbind(1) if expected.shape[1] > 1 else (expected, expected)
    )
    other = found.argmax(1) != expected.argmax(1)
    if (other & (first - second > 2 * TOLERANCE * scale)).any():
        raise InputError(
            f"At {batch} x {height} x {width} the exported model gives different classes than the model."
        )
    return (
        f"{batch} x {height} x {width}: logits differ by {difference:.1e} of the largest, classes at {other.sum()} of "
        f"{other.numel()} pixels"
    )

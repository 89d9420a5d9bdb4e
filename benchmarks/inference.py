"""What an image costs, by the ways to run the same network: the plain model in float32 is the reference of all.

DeepLabV3+ on a ResNet-50 at output stride 16 (the default), 512 x 512 pixels, 21 classes, random weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.evaluation.optimize import optimize_for_inference

from .measure import Row, milliseconds

SIZE = 512
TARGET_AMX = 2  # bfloat16 and channels_last, on CPUs with AMX


def network(encoder_name: str = "resnet50") -> CorrMatchForSegmentation:
    """A DeepLabV3+ with random weights and running statistics."""
    torch.manual_seed(0)
    model = CorrMatchForSegmentation(CorrMatchConfig(encoder_name=encoder_name, num_labels=21)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def rows(device: str, compiled: bool | None = None, encoder_name: str = "resnet50") -> Iterator[Row]:
    """`compiled`: only the ways with, or without, torch.compile."""
    model = network(encoder_name).to(device)
    image = torch.randn(1, 3, SIZE, SIZE, device=device)
    repeats = 3 if device == "cpu" else 30
    calls: list[int] = []
    model.correlation.register_forward_hook(lambda *_: calls.append(1))

    def run(network: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        with torch.inference_mode():
            return network(image.to(dtype)).logits

    expected = run(model)
    amx = device == "cpu" and torch.cpu._is_amx_tile_supported()
    ways = {
        "channels_last": (torch.float32, {}),
        "channels_last, torch.compile": (torch.float32, {"compile": True}),
        "bfloat16, channels_last": (torch.bfloat16, {}),
    }
    if device == "cuda":
        ways["bfloat16, channels_last, torch.compile"] = (torch.bfloat16, {"compile": True})
        ways["float16, channels_last"] = (torch.float16, {})
    for way, (dtype, options) in ways.items():
        if compiled is not None and compiled != bool(options):
            continue
        fast = optimize_for_inference(model, dtype=dtype, **options)
        found = run(fast, dtype).float()
        yield Row(
            f"ResNet-50 at 512 x 512: {way}",
            *milliseconds(
                lambda: run(model), lambda fast=fast, dtype=dtype: run(fast, dtype), device, repeats
            ),
            "ms",
            _close(found, expected) if dtype == torch.float32 else None,
            target=TARGET_AMX if amx and dtype == torch.bfloat16 and not options else None,
            note="" if dtype == torch.float32 else _agreement(found, expected),
        )
        del fast
    if device == "cpu" and compiled is None and (session := _onnx_session(model)) is not None:
        array = image.numpy()
        found = torch.from_numpy(session.run(None, {"pixel_values": array})[0])
        yield Row(
            "ResNet-50 at 512 x 512: ONNX Runtime",
            *milliseconds(
                lambda: run(model), lambda: session.run(None, {"pixel_values": array}), device, repeats
            ),
            "ms",
            _close(found, expected),
        )
    yield Row("correlation head, calls in all of this", len(calls), len(calls), "calls", not calls)


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() < 1e-4 * expected.abs().max())


def _agreement(found: torch.Tensor, expected: torch.Tensor) -> str:
    same = (found.argmax(1) == expected.argmax(1)).float().mean()
    return f"classes equal at {100 * same:.1f} % of the pixels, with random weights"


def _onnx_session(model: CorrMatchForSegmentation):
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch.onnx writes with)
    except ImportError:
        return None

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values).logits

    example = torch.zeros(1, 3, SIZE, SIZE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        with torch.no_grad():
            program = torch.onnx.export(
                Logits().eval(), (example,), dynamo=True, input_names=["pixel_values"], verbose=False
            )
        program.save(path, external_data=False)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

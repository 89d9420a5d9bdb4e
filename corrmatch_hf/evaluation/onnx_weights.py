"""An exported ONNX model with smaller weights: half-precision or 8-bit numbers, computing in float32 as before.

Only the file becomes smaller, to about a half (float16) or a quarter (int8). Weights are turned back to float32 by the
runtime, so that every runtime can use the file and the speed stays.

    float16   w stored as float16
    int8      w = s_c q, q in -127..127, one scale s_c = max |w_c| / 127 for each output channel c of a convolution or
              matrix product; other large tensors as float16
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from .inference import evaluating, predict_probabilities

Precision = Literal["float32", "float16", "int8"]
LEAST = 512  # numbers of a tensor that is worth it
# Which axis of a weight holds the output channels, by the operator and the weight's place among its inputs.
CHANNELS = {("Conv", 1): 0, ("ConvTranspose", 1): 1, ("MatMul", 1): -1, ("Gemm", 1): None}


def shrink_weights(path: Path, precision: Precision) -> None:
    """Rewrite the ONNX file with weights of this precision; "float32" leaves it as it is."""
    if precision == "float32":
        return
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    added = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < LEAST:
            continue
        weights = numpy_helper.to_array(tensor)
        small, name = f"{tensor.name}/stored", tensor.name
        axis = _channel_axis(graph.node, name, weights.ndim) if precision == "int8" else None
        graph.initializer.remove(tensor)
        if axis is None:
            limit = np.finfo(np.float16).max
            graph.initializer.append(
                numpy_helper.from_array(weights.clip(-limit, limit).astype(np.float16), small)
            )
            added.append(helper.make_node("Cast", [small], [name], to=TensorProto.FLOAT))
            continue
        others = tuple(i for i in range(weights.ndim) if i != axis)
        scale = np.abs(weights).max(axis=others) / 127
        scale[scale == 0] = 1
        shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
        whole = np.rint(weights / scale.reshape(shape)).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(whole, small))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}/scale"))
        added.append(helper.make_node("DequantizeLinear", [small, f"{name}/scale"], [name], axis=axis))
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def _channel_axis(nodes: Sequence, name: str, dimensions: int) -> int | None:
    """The axis of the output channels of a weight; None where it is something else."""
    for node in nodes:
        for place, given in enumerate(node.input):
            if given != name or (node.op_type, place) not in CHANNELS or dimensions < 2:
                continue
            if node.op_type == "Gemm":
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                return 0 if transposed else 1
            return CHANNELS[node.op_type, place] % dimensions
    return None


def agreement(model, processor, run: Callable, photos: Sequence[Image.Image]) -> float:
    """Share of the pixels of RGB photos whose class is the same by the exported file as by the model.

    Args:
        run: the file as a function from pixel_values (1, 3, H, W) to logits (1, K, H, W).
    """
    same = total = 0
    with evaluating(model):
        for photo in photos:
            pixel_values = processor(images=photo, return_tensors="pt")["pixel_values"]
            expected = predict_probabilities(model, pixel_values).argmax(1)
            same += int((run(pixel_values).argmax(1) == expected).sum())
            total += expected.numel()
    return same / total

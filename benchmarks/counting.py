"""FLOPs and bytes of networks that have shapes and no contents: counted, so the same on every machine.

Tensors are torch's fake ones of a CPU. The meta device would not do: it has no autocast and no random generator, and
attention falls apart there into products that keep a whole matrix. A CPU fuses it, as a GPU does, but torch counts
nothing of that; its formulas are here.

A multiplication and an addition are two FLOPs. Products, convolutions, attention and pixel propagation count; norms,
activations, interpolation, losses and the optimiser do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from corrmatch_hf.data.batch import SemiBatch
from corrmatch_hf.methods import Method, corrmatch
from corrmatch_hf.model.encoder_corrmatch import CorrMatchEncoder


def _attention(query, key, *_, out_shape=None, products: int = 2, **__) -> int:
    """Of shapes (N, heads, tokens, D): scores, and values weighted with them."""
    n, heads, tokens, dim = query
    return products * 2 * n * heads * tokens * key[-2] * dim


def _attention_backward(grad, query, key, *_, **__) -> int:
    """Scores again, and the gradients of scores, query, key and value."""
    return _attention(query, key, products=5)


def _propagation(query, key, values, *_, **__) -> int:
    """Of shapes (N, D, n), (N, D, n), (N, K, n): the matrix, and values times it."""
    n, dim, positions = query
    return 2 * n * positions**2 * (dim + values[1])


def _propagation_backward(query, key, values, *_, **__) -> int:
    """The matrix again, its gradient, and those of query and key."""
    n, dim, positions = query
    return 2 * n * positions**2 * (3 * dim + values[1])


def _convolution_backward(
    grad, x, weight, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted, **__
) -> int:
    """As many as forward for each wanted gradient, of input and weight. torch's own formula ignores groups."""
    positions = (x if transposed else grad)[2:]
    return 2 * grad[0] * math.prod(positions) * math.prod(weight) * sum(wanted[:2])


_FORMULAS = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.corrmatch_hf.propagate: _propagation,
    torch.ops.corrmatch_hf.propagate_backward: _propagation_backward,
}


@contextmanager
def without_contents(module: nn.Module):
    """Tensors made inside, and those of `module`, which was made on the meta device, have no contents."""
    with FakeTensorMode():
        module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
        yield


class Counter(FlopCounterMode):
    """`with Counter() as counter: ...; counter.flops` so far."""

    def __init__(self):
        super().__init__(display=False, custom_mapping=_FORMULAS)

    @property
    def flops(self) -> int:
        return self.get_total_flops()


def flops(call: Callable[[], object]) -> int:
    with Counter() as counter:
        call()
    return counter.flops


@dataclass
class StepCount:
    """FLOPs of one step, the encoders' and all others', and bytes of memory.

    `kept`: what the forward pass keeps for the backward pass, weights left out. `weights`: of all networks, with their
    buffers. `gradients`: of what is trained. AdamW's two averages take twice as much as these.
    """

    encoder_forward: int
    other_forward: int
    other_backward: int
    encoder_backward: int
    kept: int
    weights: int
    gradients: int

    @property
    def flops(self) -> int:
        return self.encoder_forward + self.other_forward + self.other_backward + self.encoder_backward

    @property
    def memory(self) -> int:
        return self.kept + self.weights + 3 * self.gradients


def count_step(method: Method, batch: SemiBatch, bf16: bool = False) -> StepCount:
    """Count a step of `method`; to be called inside `without_contents(method)`.

    The only part left out is the spreading of labels along shapes, which works on integers: it needs contents. It
    multiplies nothing and keeps nothing.
    """
    encoder_forward, levels, started = 0, [], []

    def before(*_) -> None:
        started.append(counter.flops)

    def cut(module, inputs, outputs: list[Tensor]) -> list[Tensor]:
        """The levels cut off from the encoder, so that the backward pass stops at them."""
        nonlocal encoder_forward
        encoder_forward += counter.flops - started.pop()
        leaves = [level.detach().requires_grad_(level.requires_grad) for level in outputs]
        levels.extend(
            (level, leaf) for level, leaf in zip(outputs, leaves, strict=True) if leaf.requires_grad
        )
        # Leaves themselves would be cast once for all that use them, under autocast.
        return [leaf.view_as(leaf) for leaf in leaves]

    for module in method.modules():
        if isinstance(module, CorrMatchEncoder):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(cut)

    weights = {id_of(tensor) for tensor in (*method.parameters(), *method.buffers())}
    kept = {}  # by identity; the storages themselves, so that none is given up and its place taken by another

    def keep(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in weights:
            kept[id_of(tensor)] = tensor.untyped_storage()
        return tensor

    with Counter() as counter:
        with (
            mock.patch.object(corrmatch, "propagate_rows", _not_spread),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            loss, _ = method(batch)
        forward = counter.flops
        loss.backward()
        until_encoder = counter.flops
        if levels:
            torch.autograd.backward([level for level, _ in levels], [leaf.grad for _, leaf in levels])
    return StepCount(
        encoder_forward,
        forward - encoder_forward,
        until_encoder - forward,
        counter.flops - until_encoder,
        sum(storage.nbytes() for storage in kept.values()),
        size_of(method.parameters()) + size_of(method.buffers()),
        size_of(parameter.grad for parameter in method.parameters() if parameter.grad is not None),
    )


def _not_spread(rows, labels, confident, *_, **__) -> tuple[Tensor, Tensor]:
    return labels.clone(), confident.clone()


def id_of(tensor: Tensor) -> int:
    """The same for tensors that share their memory, even where there is none."""
    return tensor.untyped_storage()._cdata


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

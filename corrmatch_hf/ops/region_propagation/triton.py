"""Region propagation on a GPU: two Triton kernels, nothing is read back to the host.

The first, one program per shape, counts the shape's pixels and the confident ones, and packs it into 32-bit words. The
second, one program per image, walks in order the shapes that pass the first test of algorithm 1, and skips the parts of
the image in which all words of the shape are 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Words that a program looks at together, 32 pixels each.
WORDS = 128


def propagate_triton(
    labels: Tensor, confident: Tensor, shapes: Tensor, threshold: Tensor, num_labels: int
) -> tuple[Tensor, Tensor]:
    """`region_propagation`, with `threshold` a float32 scalar on the device of the others."""
    images, count = shapes.shape[:2]
    pixels = labels[0].numel()
    words_per_shape = triton.cdiv(pixels, 32)
    current = labels.to(torch.int32, memory_format=torch.contiguous_format, copy=True)
    confident = confident.contiguous().view(torch.uint8)
    enlarged = confident.clone()
    words = torch.empty(images, count, words_per_shape, dtype=torch.int32, device=labels.device)
    seg_size = torch.empty(images, count, dtype=torch.int32, device=labels.device)
    with torch.cuda.device_of(labels):
        _pack[(images * count,)](
            shapes.contiguous().view(torch.uint8), confident, threshold, words, seg_size,
            count, pixels, words_per_shape, WORDS=WORDS, num_warps=4,
        )  # fmt: skip
        _walk[(images,)](
            words, seg_size, confident, threshold, current, enlarged,
            count, pixels, words_per_shape, num_labels,
            WORDS=WORDS, BINS=triton.next_power_of_2(num_labels + 1), num_warps=16,
        )  # fmt: skip
    return current.to(labels.dtype), enlarged.view(torch.bool)


@triton.jit
def _pack(shapes, confident, threshold, words, seg_size, count, pixels, words_per_shape, WORDS: tl.constexpr):
    """shapes (N,S,P) -> words (N,S,W), and seg_size (N,S): |seg|, or 0 where the first test fails."""
    program = tl.program_id(0).to(tl.int64)
    shapes += program * pixels
    words += program * words_per_shape
    confident += program // count * pixels
    place = tl.arange(0, 32)[None, :]
    in_shape = 0
    in_seg = 0
    for start in range(0, words_per_shape, WORDS):
        word = start + tl.arange(0, WORDS)
        pixel = word[:, None] * 32 + place
        shape = tl.load(shapes + pixel, mask=pixel < pixels, other=0).to(tl.int32)
        seg = tl.load(confident + pixel, mask=shape != 0, other=0).to(tl.int32)
        in_shape += tl.sum(shape)
        in_seg += tl.sum(seg)
        tl.store(words + word, tl.sum(shape << place, axis=1), mask=word < words_per_shape)
    share = tl.div_rn(in_seg.to(tl.float32), tl.maximum(in_shape, 1).to(tl.float32))  # type: ignore[union-attr]
    fails = share < tl.load(threshold)
    tl.store(seg_size + program, tl.where(fails, 0, in_seg))


@triton.jit
def _walk(
    words, seg_size, confident, threshold, labels, enlarged, count, pixels, words_per_shape, num_labels,
    WORDS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Paints the shapes of one image, in order, into labels (N,P) int32 and enlarged (N,P)."""
    image = tl.program_id(0).to(tl.int64)
    words += image * count * words_per_shape
    seg_size += image * count
    confident += image * pixels
    labels += image * pixels
    enlarged += image * pixels
    tau = tl.load(threshold)
    place = tl.arange(0, 32)[None, :]
    bins = tl.arange(0, BINS)
    for s in range(count):
        size = tl.load(seg_size + s)
        if size > 0:
            counts = tl.zeros([BINS], dtype=tl.int32)
            for start in range(0, words_per_shape, WORDS):
                word = start + tl.arange(0, WORDS)
                packed = tl.load(words + s * words_per_shape + word, mask=word < words_per_shape, other=0)
                if tl.max((packed != 0).to(tl.int32), axis=0) > 0:
                    pixel = word[:, None] * 32 + place
                    shape = ((packed[:, None] >> place) & 1) != 0
                    seg = tl.load(confident + pixel, mask=shape, other=0) != 0
                    label = tl.load(
                        labels + pixel, mask=seg, other=BINS - 1
                    )  # last bin: pixels without label
                    counts += tl.histogram(tl.reshape(label, [WORDS * 32]), BINS)
            counts = tl.where(bins < num_labels, counts, -1)
            top = tl.argmax(counts, axis=0, tie_break_left=True)  # the lowest id
            if tl.div_rn(tl.max(counts, axis=0).to(tl.float32), size.to(tl.float32)) > tau:
                for start in range(0, words_per_shape, WORDS):
                    word = start + tl.arange(0, WORDS)
                    packed = tl.load(words + s * words_per_shape + word, mask=word < words_per_shape, other=0)
                    pixel = word[:, None] * 32 + place
                    shape = ((packed[:, None] >> place) & 1) != 0
                    tl.store(labels + pixel, top, mask=shape)
                    tl.store(enlarged + pixel, 1, mask=shape)
            tl.debug_barrier()  # the next shape sees what all threads painted

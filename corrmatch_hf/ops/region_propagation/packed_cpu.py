"""Region propagation on a CPU: pixels packed into 64-bit words, one plane of bits per binary digit of the labels.

Counting labels inside a shape is then an `and` and a population count of a few words. The order of the pixels in the
words does not matter as long as it is the same for all of them.
"""

from __future__ import annotations

import numpy as np

NONE, ALL = np.uint64(0), ~np.uint64(0)


def pack(bits: np.ndarray) -> np.ndarray:
    """(..., P) bool -> (..., ceil(P / 64)) uint64; the bits after the last pixel are 0."""
    return as_words(np.packbits(bits, axis=-1))


def as_words(packed: np.ndarray) -> np.ndarray:
    """(..., B) uint8 -> (..., ceil(B / 8)) uint64, zeros appended."""
    missing = -packed.shape[-1] % 8
    if missing:
        packed = np.concatenate([packed, np.zeros((*packed.shape[:-1], missing), np.uint8)], axis=-1)
    return packed.view(np.uint64)


def unpack(words: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `pack` for `count` pixels."""
    return np.unpackbits(words.view(np.uint8), axis=-1, count=count).view(bool)


def popcount(words: np.ndarray) -> np.ndarray:
    """(..., W) uint64 -> (...): how many bits are set."""
    return np.bitwise_count(words).sum(axis=-1, dtype=np.uint32)


class Canvas:
    """One image's labels, on which shapes are painted by algorithm 1.

    Labels are kept as binary numbers, a plane of bits per digit: five planes for 21 classes. Each digit of a label that
    more than half of the pixels have is the digit of more than half of them, so that a count per digit finds it.

    Shapes may come in several portions, in order, so that they stay in the cache.

    Args:
        labels: (P,) integers >= 0; changed by `finish` only.
        confident: (P,) bool.
        threshold: scalar, compared in float32 with float32 ratios.
    """

    def __init__(self, labels: np.ndarray, confident: np.ndarray, threshold: float):
        self.labels = labels
        self.confident = pack(confident)
        self.threshold = np.float32(threshold)
        self.painted = np.zeros_like(self.confident)
        digits = int(labels.max()).bit_length()
        self.places = np.arange(digits)[:, None]
        small = labels.astype(np.min_scalar_type(1 << digits))
        self.planes = np.empty((digits, *self.painted.shape), np.uint64)
        for digit, plane in enumerate(self.planes):
            plane[:] = pack(small & (1 << digit))

    def paint(self, shapes: np.ndarray) -> None:
        """shapes: (S, W) uint64, walked in order."""
        seg = shapes & self.confident
        seg_size = popcount(seg)
        share = seg_size.astype(np.float32) / np.maximum(popcount(shapes), 1).astype(np.float32)
        # The confident mask does not grow in the loop, so it is known beforehand which shapes pass the first test.
        candidates = np.flatnonzero((seg_size > 0) & ~(share < self.threshold))
        if not candidates.size:
            return
        used = shapes[candidates] != 0
        first, end = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
        for s, words in zip(candidates, map(slice, first, end), strict=True):
            planes, shape = self.planes[:, words], shapes[s, words]
            top, count = self._most_frequent(planes, seg[s, words], int(seg_size[s]))
            if np.float32(count) / np.float32(seg_size[s]) > self.threshold:
                self.painted[words] |= shape
                planes &= ~shape
                planes |= shape & self._plane_values(top)

    def _most_frequent(self, planes: np.ndarray, seg: np.ndarray, size: int) -> tuple[int, int]:
        """The most frequent label in `seg`, the lowest on ties, and its count; (0, 0) if it cannot pass the test."""
        digits = (2 * popcount(planes & seg) > size).tolist()
        label = sum(1 << place for place, digit in enumerate(digits) if digit)
        differs = np.bitwise_or.reduce(planes ^ self._plane_values(label), axis=0)
        count = int(popcount(seg & ~differs))
        if 2 * count > size:
            return label, count
        if self.threshold >= 0.5:
            return 0, 0
        parts = seg[None]  # of each label, from the first digit to the last
        for plane in planes[::-1]:
            parts = np.stack([parts & ~plane, parts & plane], axis=1).reshape(-1, seg.size)
        counts = popcount(parts)
        label = int(counts.argmax())  # the first maximum: the lowest id
        return label, int(counts[label])

    def _plane_values(self, label: int) -> np.ndarray:
        """(digits, 1) uint64: the planes' words where all pixels have this label."""
        return np.where(label >> self.places & 1, ALL, NONE)

    def finish(self) -> np.ndarray:
        """Write the new labels into `labels`, and return which pixels were painted, (P,) bool."""
        painted = unpack(self.painted, self.labels.size)
        if self.painted.any():
            labels = np.zeros(self.labels.size, np.min_scalar_type(1 << len(self.planes)))
            for digit, plane in enumerate(self.planes):
                labels |= unpack(plane, labels.size).astype(labels.dtype) << digit
            np.copyto(self.labels, labels, where=painted)
        return painted

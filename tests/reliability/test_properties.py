"""What the specification says, on inputs that nobody chose: the fast functions against slow, obvious ones.

The slow ones are written from the paper, in float64 or in Python loops, and never call the fast ones. No function
changes its inputs.
"""

import itertools
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from corrmatch_hf import correlation_shapes, ohem_cross_entropy, pixel_propagation, region_propagation
from corrmatch_hf.data.augment import Augmentation, random_box
from corrmatch_hf.data.sources.lists import Pair, read_list, rows_of_list
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import ConfusionMatrix
from corrmatch_hf.methods import DynamicThreshold
from corrmatch_hf.methods.pseudo_labels import PseudoLabels
from corrmatch_hf.ops.random_masks import cutmix_mask, step_generator
from corrmatch_hf.ops.region_propagation.rows import propagate_rows

from ..data.test_augment import slow_image
from ..data.test_augment import slow_mask as slow_crop
from ..model.test_correlation_corrmatch import correlation_map, explicit_propagation
from ..ops.test_losses import slow_ohem
from ..ops.test_random_masks import slow_mask
from ..ops.test_region_propagation import ROWS, batched, full_size, random_rows, slow

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 9)


def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unchanged(function, *inputs, **options):
    """`function(*inputs, **options)`, having looked whether it changed a tensor that it was given."""
    before = [t.clone() if isinstance(t, torch.Tensor) else t for t in inputs]
    result = function(*inputs, **options)
    for tensor, copy in zip(inputs, before, strict=True):
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, copy), "an input was changed"
    return result


# ------------------------------------------------------------------------------------------ region propagation


@examples(100)
@given(
    seed=SEEDS,
    images=st.integers(1, 3),
    count=st.integers(1, 20),
    size=st.tuples(st.integers(1, 13), st.sampled_from([1, 2, 3, 4, 7, 63, 64, 65])),
    classes=st.sampled_from([1, 2, 3, 21, 150, 300]),
    threshold=st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.85, 1.0]),
    confident=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    covered=st.sampled_from([0.0, 0.02, 0.4, 1.0]),
    equal=st.sampled_from(["nothing", "rows", "images"]),
)
def test_region_propagation_is_algorithm_1(
    seed, images, count, size, classes, threshold, confident, covered, equal
):
    rng = generator(seed)
    labels = torch.randint(classes, (images, *size), generator=rng)
    if equal != "nothing":  # much of one class, so that shapes get painted
        labels = (labels[:, :, :1] if equal == "rows" else labels[:, :1, :1]).expand_as(labels)
    confident = torch.rand(images, *size, generator=rng) < confident
    shapes = torch.rand(images, count, *size, generator=rng) < covered
    want = slow(labels, confident, shapes, threshold)
    for propagate in (region_propagation, batched):
        got = unchanged(propagate, labels, confident, shapes, threshold)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True)), propagate
        assert (got[1] | ~confident).all(), "what was confident stays so"


@examples(40)
@given(
    seed=SEEDS,
    kind=st.sampled_from([*ROWS, "float64"]),
    grid=st.tuples(SIDES, SIDES),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    classes=st.sampled_from([1, 3, 150]),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    allowed=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_propagate_rows_is_algorithm_1_on_shapes_of_equation_7(
    seed, kind, grid, size, classes, threshold, allowed
):
    rng = generator(seed)
    rows = random_rows(kind, rng, 5, grid)
    labels = torch.randint(classes, (2, *size), generator=rng)
    confident = torch.rand(2, *size, generator=rng) < 0.9
    allowed = torch.rand(2, *size, generator=rng) < allowed
    want = slow(labels, confident, full_size(rows, size) & allowed.unsqueeze(1), threshold)
    got = unchanged(propagate_rows, rows, labels, confident, allowed, threshold)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert torch.equal(got[0][~allowed], labels[~allowed]), "nothing is painted where no shape may lie"


# ------------------------------------------------------------------------------------------- pixel propagation


@examples(30)
@given(
    seed=SEEDS,
    images=st.integers(1, 3),
    dim=st.sampled_from([1, 2, 21, 64]),
    classes=st.integers(1, 150),
    grid=st.tuples(SIDES, SIDES),
    magnitude=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    scale=st.sampled_from(["scores", "rows"]),
    contiguous=st.booleans(),
)
@example(seed=0, images=1, dim=1, classes=1, grid=(1, 1), magnitude=1e4, scale="scores", contiguous=True)
def test_pixel_propagation_is_the_explicit_matrix(
    seed, images, dim, classes, grid, magnitude, scale, contiguous
):
    rng = generator(seed)
    query, key, logits, weight = (
        torch.randn(images, channels, *grid, generator=rng, dtype=torch.float64)
        for channels in (dim, dim, classes, classes)
    )
    query *= magnitude
    if not contiguous:
        query, key, logits = (t.to(memory_format=torch.channels_last) for t in (query, key, logits))
    query.requires_grad_(), key.requires_grad_()
    got = unchanged(pixel_propagation, query, key, logits, scale)
    want = explicit_propagation(query, key, logits, scale)
    torch.testing.assert_close(got, want)
    got, want = (torch.autograd.grad((z * weight).sum(), (query, key)) for z in (got, want))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9 * max(magnitude, 1))


@examples(20)
@given(
    seed=SEEDS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    grid=st.tuples(SIDES, SIDES),
    dim=st.sampled_from([1, 21]),
    classes=st.sampled_from([2, 150]),
    autocast=st.booleans(),
)
def test_pixel_propagation_of_short_numbers_is_that_of_their_values(
    seed, dtype, grid, dim, classes, autocast
):
    """The inputs' rounding is theirs; whatever their type, the computing adds that of float32 alone."""
    rng = generator(seed)
    query, key, logits = (
        torch.randn(2, channels, *grid, generator=rng).to(dtype) for channels in (dim, dim, classes)
    )
    query.requires_grad_(), key.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = unchanged(pixel_propagation, query, key, logits)
        grads = torch.autograd.grad(got.sum(1).square().sum(), (query, key))
    exact = [t.detach().double().requires_grad_() for t in (query, key)]
    want = explicit_propagation(*exact, logits.double())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    rounding = torch.finfo(dtype).eps  # of the gradients, which have the inputs' type
    for grad, expected in zip(grads, torch.autograd.grad(want.sum(1).square().sum(), exact), strict=True):
        assert grad.dtype == dtype
        size = expected.abs().max().item()
        torch.testing.assert_close(
            grad.double(), expected, rtol=2 * rounding, atol=(2 * rounding + 1e-4) * size + 1e-3
        )


@examples(20)
@given(
    seed=SEEDS,
    magnitude=st.sampled_from([1e2, 1e4, 1e8, 1e15]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    grid=st.tuples(SIDES, SIDES),
    classes=st.sampled_from([2, 150]),
)
def test_propagation_of_huge_scores_stays_finite(seed, magnitude, dtype, grid, classes):
    rng = generator(seed)
    query, key, logits = (
        magnitude * torch.randn(1, channels, *grid, generator=rng) for channels in (3, 3, classes)
    )
    query, key = query.to(dtype).requires_grad_(), key.to(dtype).requires_grad_()
    propagated = pixel_propagation(query, key, logits)
    assert propagated.isfinite().all()
    # Rows of C sum to 1: logits are moved about, none is made or lost.
    torch.testing.assert_close(
        propagated.double().sum((2, 3)), logits.double().sum((2, 3)), rtol=1e-4, atol=1e-4 * magnitude
    )
    weight = torch.randn(propagated.shape, generator=rng) / magnitude
    grads = torch.autograd.grad((propagated * weight).sum(), (query, key))
    assert all(grad.isfinite().all() for grad in grads)


# ------------------------------------------------------------------------------------------------------ shapes


@examples(30)
@given(
    seed=SEEDS,
    grid=st.tuples(SIDES, SIDES),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dim=st.sampled_from([1, 5]),
    count=st.sampled_from([1, 6]),
    magnitude=st.sampled_from([0.3, 1.0, 5.0]),
    constant=st.booleans(),
)
def test_shapes_are_equation_7(seed, grid, size, dim, count, magnitude, constant):
    rng = generator(seed)
    query, key = (magnitude * torch.randn(2, dim, *grid, generator=rng) for _ in range(2))
    index = torch.randint(grid[0] * grid[1], (count,), generator=rng)
    if constant:  # for all images, the rows of one pixel say nothing
        query.flatten(2)[:, :, index[0]] = 0
    shapes = unchanged(correlation_shapes, query, key, index, size)
    assert shapes.shape == (2, count, *size) and shapes.dtype == torch.bool
    for n, s in itertools.product(range(2), range(count)):
        row = correlation_map(query[n], key[n])[index[s]].view(1, 1, *grid)
        if grid == (1, 1) or (constant and index[s] == index[0]):
            assert not shapes[n, s].any(), "a constant row gives an empty shape"
            continue
        large = F.interpolate(row, size, mode="bilinear", align_corners=True)[0, 0]
        low, span = large.min(), large.max() - large.min()
        if span <= 1e-4 * large.max() or large.max() < 1e-30:  # its middle is beyond what float32 tells apart
            continue
        height = (large - low) / span
        clear = (height - 0.5).abs() > 1e-6 * large.max() / span + 1e-6
        assert torch.equal(shapes[n, s][clear], (height > 0.5)[clear])


# ------------------------------------------------------------------------------------------------------ CutMix


@examples(100)
@given(seed=SEEDS, size=st.integers(1, 400), probability=st.sampled_from([0.5, 1.0]))
def test_a_box_lies_inside_and_keeps_the_limits(seed, size, probability):
    rng = np.random.default_rng(seed)
    for box in (random_box(size, probability, rng) for _ in range(20)):
        if box is None:
            assert probability < 1 or size == 1
            continue
        assert box.height >= 1 and box.width >= 1
        assert box.top >= 0 and box.top + box.height <= size
        assert box.left >= 0 and box.left + box.width <= size
        assert np.zeros((size, size))[box.slices].shape == (box.height, box.width)
        # Whole numbers below the sides that were drawn: each was up to one pixel longer.
        assert box.height * box.width <= 0.4 * size**2
        assert (box.height + 1) * (box.width + 1) > 0.02 * size**2
        assert (box.height + 1) / box.width > 0.3 and box.height / (box.width + 1) < 1 / 0.3


def test_a_crop_of_one_pixel_has_no_box():
    """Every box covers less than half of the crop, and so less than a pixel: none would ever fit."""
    assert random_box(1, 1.0, np.random.default_rng(0)) is None


@examples(30)
@given(
    seed=st.integers(0, 10_000),
    step=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_masks_of_three_boxes_are_those_of_the_description(seed, step, size):
    draws = torch.rand(3, 3, 4, generator=step_generator("cpu", seed, step, "cutmix mask")).tolist()
    got = cutmix_mask(3, size, "cpu", seed=seed, step=step)
    for own, mask in zip(draws, got, strict=True):
        for proportion, aspect, *_ in own:  # a side that rounds up or down by a hair is not compared
            area = 0.25 + 0.25 * proportion
            sides = area**aspect * size[0] / math.sqrt(3), area ** (1 - aspect) * size[1] / math.sqrt(3)
            assume(all(abs(side % 1 - 0.5) > 1e-4 for side in sides))
        np.testing.assert_array_equal(mask.numpy(), slow_mask(own, *size))


@examples(20)
@given(
    seed=SEEDS,
    size=st.tuples(SIDES, SIDES),
    classes=st.sampled_from([2, 150]),
    covered=st.sampled_from([0, 0.5, 1]),
)
def test_targets_inside_the_box_are_the_partners(seed, size, classes, covered):
    rng = generator(seed)
    weak, partner = (torch.randn(2, classes, *size, generator=rng) for _ in range(2))
    box = torch.rand(2, *size, generator=rng) < covered
    everywhere = torch.ones_like(box)
    mixed = PseudoLabels.of(weak, everywhere).mixed(PseudoLabels.of(partner, ~everywhere), box)
    assert torch.equal(mixed.valid, ~box)
    for n, y, x in np.ndindex(*box.shape):
        logits = (partner if box[n, y, x] else weak)[n, :, y, x].double()
        assert mixed.labels[n, y, x] == logits.argmax()
        assert mixed.confidence[n, y, x].item() == pytest.approx(logits.softmax(0).max().item(), rel=1e-5)


# ----------------------------------------------------------------------------------------- losses and threshold


@examples(40)
@given(
    seed=SEEDS,
    classes=st.sampled_from([2, 5, 150]),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    threshold=st.sampled_from([0.0, 0.05, 0.7, 1.0]),
    min_kept=st.sampled_from([1, 7, 100_000]),
    ignore_index=st.sampled_from([-100, -1, 254, 255]),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    magnitude=st.sampled_from([0.0, 1.0, 4.0]),
)
def test_ohem_is_sorting_and_cutting(
    seed, classes, size, threshold, min_kept, ignore_index, ignored, magnitude
):
    rng = generator(seed)
    logits = magnitude * torch.randn(2, classes, *size, generator=rng)
    labels = torch.randint(classes, (2, *size), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < ignored] = ignore_index
    got = unchanged(ohem_cross_entropy, logits.requires_grad_(), labels, threshold, min_kept, ignore_index)
    nothing = bool((labels == ignore_index).all())
    want = 0 if nothing else slow_ohem(logits.detach().double(), labels, threshold, min_kept, ignore_index)
    assert got.item() == pytest.approx(want, rel=1e-5, abs=1e-6)
    (grad,) = torch.autograd.grad(got, logits)
    assert grad.isfinite().all()
    assert not grad.movedim(1, -1)[labels == ignore_index].any(), "ignored pixels teach nothing"


def slow_threshold(value, rule, momentum, classes, confidence, labels, valid):
    """Algorithm 2 and its variants, one pixel at a time, for one process."""
    pixels = [
        (p, c)
        for p, c, v in zip(*(t.flatten().tolist() for t in (confidence, labels, valid)), strict=True)
        if v
    ]
    best = {c: max(p for p, other in pixels if other == c) for c in {c for _, c in pixels}}
    if rule == "fixed" or not pixels:
        return value
    if rule == "per_class":
        return [
            momentum * v + (1 - momentum) * best[c] if c in best else v
            for c, v in zip(range(classes), value, strict=True)
        ]
    target = {
        "class_max": lambda: sum(best.values()) / len(best),
        "global_max": lambda: max(best.values()),
        "global_mean": lambda: sum(p for p, _ in pixels) / len(pixels),
    }[rule]()
    return momentum * value + (1 - momentum) * target


@examples(40)
@given(
    seed=SEEDS,
    rule=st.sampled_from(["class_max", "global_max", "global_mean", "per_class", "fixed"]),
    classes=st.sampled_from([2, 5, 150]),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    initial=st.sampled_from([0.0, 0.85, 1.0]),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0]),
    valid=st.sampled_from([0.0, 0.3, 1.0]),
    certain=st.booleans(),
)
def test_the_threshold_is_algorithm_2(seed, rule, classes, size, initial, momentum, valid, certain):
    rng = generator(seed)
    threshold = DynamicThreshold(classes, initial, momentum, rule)
    want = threshold.value.tolist()
    for _ in range(4):
        confidence = torch.rand(2, *size, generator=rng)
        confidence = torch.ones_like(confidence) if certain else confidence
        labels = torch.randint(classes, confidence.shape, generator=rng)
        seen = torch.rand(confidence.shape, generator=rng) < valid
        unchanged(threshold.update, confidence, labels, seen)
        want = slow_threshold(want, rule, momentum, classes, confidence, labels, seen)
    assert threshold.value.tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert (threshold.value >= 0).all() and (threshold.value <= 1).all(), "else nothing would be confident"


# ----------------------------------------------------------------------------------------------------- metrics

INTEGERS = {
    torch.bool: (0, 1),
    **{
        dtype: (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    },
    torch.uint16: (0, 2**16 - 1),
    torch.uint32: (0, 2**32 - 1),
    torch.uint64: (0, 2**64 - 1),
}


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def sets_of_pixels(prediction, label, classes, ignore_index):
    """Figures from the set of pixels of each class."""
    counted = {i for i, c in enumerate(label) if c != ignore_index}
    truth = {c: {i for i in counted if label[i] == c} for c in range(classes)}
    guess = {c: {i for i in counted if prediction[i] == c} for c in range(classes)}

    def ratio(part, whole):
        return len(part) / len(whole) if whole else None

    iou = {c: ratio(truth[c] & guess[c], truth[c] | guess[c]) for c in truth}
    accuracy = {c: ratio(truth[c] & guess[c], truth[c]) for c in truth}
    return {
        "mean_iou": mean(iou.values()),
        "mean_iou_all_classes": sum(v or 0 for v in iou.values()) / classes,
        "mean_accuracy": mean(accuracy.values()),
        "pixel_accuracy": ratio({i for i in counted if prediction[i] == label[i]}, counted),
        "iou": list(iou.values()),
        "accuracy": list(accuracy.values()),
        "frequency": [ratio(truth[c], counted) for c in truth],
    }


@examples(75)
@given(
    data=st.data(),
    classes=st.sampled_from([1, 2, 5, 150, 200, 300]),
    dtypes=st.tuples(*[st.sampled_from(list(INTEGERS))] * 2),
    ignore_index=st.sampled_from([-100, -1, 0, 255, 1000]),
    pixels=st.integers(0, 40),
)
def test_figures_are_those_of_sets_of_pixels(data, classes, dtypes, ignore_index, pixels):
    def ids(dtype, *more):
        low, high = INTEGERS[dtype]
        known = st.integers(0, min(classes - 1, high))
        more = [i for i in more if low <= i <= high]
        return data.draw(
            st.lists(known | st.sampled_from(more) if more else known, min_size=pixels, max_size=pixels)
        )

    label = ids(dtypes[0], ignore_index)
    prediction = ids(dtypes[1])
    tensors = [
        torch.tensor(values, dtype=torch.int64).to(dtype)
        for values, dtype in zip((label, prediction), dtypes, strict=True)
    ]
    confusion = ConfusionMatrix(classes, ignore_index)
    unchanged(confusion.update, tensors[1], tensors[0])
    figures, want = confusion.compute(), sets_of_pixels(prediction, label, classes, ignore_index)
    for name in ("mean_iou", "mean_iou_all_classes", "mean_accuracy", "pixel_accuracy"):
        assert figures[name] == pytest.approx(want[name], abs=1e-9), name
    for name in ("iou", "accuracy", "frequency"):
        assert [c[name] for c in figures["per_class"].values()] == pytest.approx(want[name]), name


@pytest.mark.parametrize("outside", ["label", "prediction"])
@examples(30)
@given(
    dtype=st.sampled_from([d for d in INTEGERS if d != torch.bool]),
    ignore_index=st.sampled_from([-100, -1, 255, 256]),
    wrong=st.sampled_from([-128, -100, -1, 3, 127, 156, 255, 256, 2**31, 2**32 + 1]),
)
def test_an_id_that_is_no_class_is_never_counted_or_ignored(outside, dtype, ignore_index, wrong):
    """However few bits it has: 156 in a byte is not -100, and -1 is not 255."""
    low, high = INTEGERS[dtype]
    assume(low <= wrong <= high and wrong != ignore_index)
    ids = {"label": torch.tensor([0, 1]), "prediction": torch.tensor([0, 1])}
    ids[outside] = torch.tensor([0, wrong]).to(dtype)
    confusion = ConfusionMatrix(3, ignore_index)
    with pytest.raises(InputError, match=f"{outside} holds the id {wrong}"):
        confusion.update(ids["prediction"], ids["label"])
    assert not confusion.matrix.any()


# -------------------------------------------------------------------------------------------------------- data

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="/\\\0\n\r"),
    min_size=1,
    max_size=12,
).filter(lambda name: name == name.strip() and name not in (".", ".."))


@examples(50)
@given(names=st.lists(NAMES, min_size=2, max_size=6, unique_by=lambda name: name.casefold()))
@example(names=["a photo 1.jpg", "its mask 1.png"])
@example(names=["straße.jpg", "\u56fe \u50cf.png", "a\u2028b", "c\x85d"])
@example(names=["tab\tname.jpg", "mask.png"])
def test_a_list_is_read_as_it_was_written(names):
    names = names[: len(names) // 2 * 2]
    images, masks = names[::2], names[1::2]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for folder, own in (("images", images), ("masks", masks)):
            (root / folder).mkdir()
            for name in own:
                (root / folder / name).touch()
        lines = [f"images/{image}\tmasks/{mask}\n" for image, mask in zip(images, masks, strict=True)]
        (root / "list.txt").write_bytes("".join(lines).encode("utf-8"))
        want = [
            Pair(str(root / "images" / image), str(root / "masks" / mask))
            for image, mask in zip(images, masks, strict=True)
        ]
        assert read_list(root / "list.txt", root, {}, "--labeled_list") == want
        without = read_list(root / "list.txt", root, {}, "--unlabeled_list", masks=False)
        assert without == [Pair(pair.image) for pair in want]


@examples(50)
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True), masks=st.booleans())
@example(names=["a photo 1.jpg", "a.jpg"], masks=True)
def test_a_list_names_the_rows_of_a_dataset(names, masks):
    files = [f"images/{name}" for name in names]
    lines = [
        f"{file}\tmasks/{name}\n" if masks else f"{file}\n" for file, name in zip(files, names, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        path.write_bytes("".join(reversed(lines)).encode("utf-8"))
        try:
            assert rows_of_list(path, files, "--labeled_list") == list(range(len(files)))[::-1]
        except InputError as error:  # refused, never taken for another
            assert "\t" in "".join(names) and "separate image and mask by a tab" in str(error)


def test_a_name_with_spaces_is_not_taken_for_its_first_word(tmp_path):
    (tmp_path / "list.txt").write_text("a b.png masks/b.png\n")
    with pytest.raises(InputError, match=r"line 1 .*may name 2 images: separate image and mask by a tab"):
        rows_of_list(tmp_path / "list.txt", ["a b.png", "a.png"], "--labeled_list")
    assert rows_of_list(tmp_path / "list.txt", ["a b.png", "c.png"], "--labeled_list") == [0]


GEOMETRY = {
    "seed": SEEDS,
    "photo": st.tuples(st.integers(1, 40), st.integers(1, 40)),
    "crop": st.integers(1, 50),
    "scales": st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.05, 0.3), (3.0, 4.0)]),
}


@examples(75)
@given(**GEOMETRY)
def test_a_picture_of_the_mask_stays_a_picture_of_the_mask(seed, photo, crop, scales):
    """Where the crop of a black and white picture of a mask is all black or all white, the mask's crop says so, too."""
    rng = np.random.default_rng(seed)
    mask = (rng.random(photo) < 0.5).astype(np.uint8)
    mask = mask.repeat(4, 0).repeat(4, 1)[
        : photo[0], : photo[1]
    ]  # patches, for some pixels to be of one colour
    image = Image.fromarray(np.stack([255 * mask] * 3, axis=-1))
    before = mask.copy()
    augmentation = Augmentation(crop_size=crop, scale_min=scales[0], scale_max=scales[1])
    geometry = augmentation.draw_geometry(photo[1], photo[0], rng)
    colors, label = np.asarray(geometry.crop_image(image))[..., 0], geometry.crop_mask(mask, fill=255)
    valid = geometry.valid().numpy()
    assert colors.shape == label.shape == valid.shape == (crop, crop)
    assert np.array_equal(mask, before)
    assert np.array_equal(valid, label != 255), "padding is where the mask is padding"
    assert not colors[~valid].any(), "padding is black"
    assert (label[valid & (colors == 0)] == 0).all() and (label[valid & (colors == 255)] == 1).all()


@examples(20)
@given(**GEOMETRY)
def test_a_crop_is_that_of_the_whole_resized_picture(seed, photo, crop, scales):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*photo, 3), dtype=np.uint8)
    mask = rng.integers(0, 5, photo).astype(np.uint8)
    geometry = Augmentation(crop_size=crop, scale_min=scales[0], scale_max=scales[1]).draw_geometry(
        photo[1], photo[0], rng
    )
    image = Image.fromarray(pixels)
    difference = np.asarray(geometry.crop_image(image)).astype(int) - slow_image(image, geometry)
    assert abs(difference).max() <= 2  # PIL's weights round otherwise for a part than for the whole
    assert np.array_equal(geometry.crop_mask(mask, fill=255), slow_crop(mask, geometry, fill=255))

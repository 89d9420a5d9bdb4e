"""Every method on batches at the edge of what can be: nothing to learn, nothing sure, all too sure, one of everything.

One optimiser step at every edge that the same network can meet, one after another, so that a buffer which one has
spoilt shows in the next; two steps at an edge with a network of its own. Loss, logs, gradients, weights and buffers
stay finite, terms over no pixel are 0, and the batch is left as it was.
"""

import copy
import dataclasses
from functools import cache

import pytest
import torch

from corrmatch_hf.methods import METHODS, method_class

from ..methods.test_dgcl import fill
from ..methods.tiny import random_batch, tiny_model

K, SIZE, IGNORED = 5, 33, 255
DGCL = {
    "dgcl_memory_size": 32,
    "dgcl_projection_channels": 8,
    "dgcl_supervised_share": 0.0,
    "dgcl_ignored_class": -1,
}

CORRMATCH_VARIANTS = [
    *({"threshold_update": rule} for rule in ("global_max", "global_mean", "per_class", "fixed")),
    *({"soft_loss": loss} for loss in ("cross_entropy", "cosine")),
    {"mix_soft_targets": True, "feature_perturbation": "none"},
    {"teacher": "ema", "feature_perturbation": "complementary"},
    {"propagation": "none"},
    {"shape_sampling": "uniform", "threshold_initial": 0.0, "threshold_momentum": 0.0},
]
VARIANTS = [
    *(("corrmatch", options) for options in CORRMATCH_VARIANTS),
    *(
        (name, {"inter_pixel_loss": loss, "inter_pixel_pixels": 64})
        for name, loss in [
            ("corrmatch", "kl"),
            ("corrmatch", "correlation"),
            ("corrmatch", "pairwise"),
            ("unimatch", "correlation"),
            ("unimatch_v2", "pairwise"),
            ("cps", "pairwise"),
            ("dgcl", "kl"),
            ("mean_teacher", "correlation"),
        ]
    ),
    *((name, {"labeled_loss": "ohem", "ohem_min_kept": 50}) for name in ("corrmatch", "supervised", "cps")),
    ("fixmatch", {"teacher": "ema"}),
    ("unimatch_v2", {"feature_perturbation": "none"}),
    ("cps", {"cps_cutmix": True}),
    ("cps", {"cps_supervision": "soft", "cps_on_labeled": False}),
    ("cps", {"cps_cutmix": True, "cps_supervision": "soft", "inter_pixel_loss": "kl"}),
    ("dgcl", {"dgcl_anchor_sampling": "confidence", "dgcl_key_sampling": "random"}),
    ("dgcl", {"dgcl_label_drop": 1.0, "dgcl_contrast_drop": 1.0, "dgcl_contrast_drop_least": 1.0}),
    ("dgcl", {"dgcl_supervised_share": 0.5, "dgcl_total_steps": 2}),
]

# Terms over unlabelled pixels that count; what is not here (CPS, Mean Teacher) counts padding, too.
UNLABELED = ("s", "s1", "s2", "fp", "kl", "corr_s", "corr_w", "u", "inter_pixel")
LABELED = ("x", "x1", "x2", "x_corr")
WITH_THRESHOLD = ("corrmatch", "unimatch", "unimatch_v2", "fixmatch", "ipixmatch")


def edge(function):
    EDGES[function.__name__.replace("_", " ")] = function
    return function


EDGES = {}


@dataclasses.dataclass
class Case:
    """What is trained on what; an edge changes some of it."""

    num_labels: int = K
    labeled: int = 2
    unlabeled: int = 2
    ignore_index: int = IGNORED
    size: int = SIZE  # of the crops
    scale: float = 1.0  # of the logits
    threshold: float | None = None  # of confidence, where the method has one
    change: object = None  # of every batch
    zero: tuple[
        str, ...
    ] = ()  # terms that must be 0 in every step; with a threshold, of the methods that have one


@edge
def crops_that_are_all_padding():
    def change(batch):
        batch.label.fill_(IGNORED)
        batch.valid.fill_(False), batch.partner_valid.fill_(False)
        for images in (batch.image, batch.weak, batch.strong, batch.partner_weak):
            images.fill_(0)

    return Case(change=change, zero=UNLABELED + LABELED)


@edge
def nothing_valid_among_the_unlabelled():
    def change(batch):
        batch.valid.fill_(False), batch.partner_valid.fill_(False)

    return Case(change=change, zero=UNLABELED)


@edge
def one_valid_pixel():
    def change(batch):
        batch.valid.fill_(False), batch.partner_valid.fill_(False), batch.label.fill_(IGNORED)
        batch.valid[0, 2, 3] = True
        batch.label[1, 3, 2] = 0

    return Case(change=change)


@edge
def no_label_in_the_batch():
    return Case(change=lambda batch: batch.label.fill_(IGNORED), zero=LABELED)


@edge
def one_image_without_label():
    return Case(change=lambda batch: batch.label[0].fill_(IGNORED))


@edge
def an_absent_class():
    return Case(change=lambda batch: batch.label.clamp_(max=K - 2))


@edge
def one_class():
    return Case(change=lambda batch: batch.label.fill_(1))


@edge
def a_batch_of_one():
    return Case(labeled=1, unlabeled=1)


@edge
def one_unlabelled_image():
    return Case(unlabeled=1)


@edge
def a_single_feature():
    return Case(size=9)


@edge
def two_classes():
    return Case(num_labels=2, ignore_index=2, change=lambda batch: batch.label[0].fill_(2))


@edge
def many_classes():
    return Case(num_labels=150)


@edge
def nothing_confident():
    return Case(threshold=1.0, scale=1e-3, zero=UNLABELED)


@edge
def everything_certain():
    return Case(scale=1e4)


@edge
def every_pixel_confident():
    return Case(threshold=0.0)


@edge
def images_of_one_colour():
    def change(batch):
        for images in (batch.image, batch.weak, batch.strong, batch.partner_weak):
            images.copy_(images.mean((-2, -1), keepdim=True).expand_as(images))

    return Case(change=change)


@edge
def images_that_are_the_mean():
    def change(batch):
        for images in (batch.image, batch.weak, batch.strong, batch.partner_weak):
            images.fill_(0)

    return Case(change=change)


@edge
def equal_images():
    def change(batch):
        for images in (batch.image, batch.weak, batch.strong, batch.partner_weak):
            images.copy_(batch.image[0].expand_as(images))

    return Case(change=change)


@edge
def weak_is_strong():
    return Case(change=lambda batch: batch.strong.copy_(batch.weak.unsqueeze(1)))


@edge
def a_box_over_everything():
    return Case(change=lambda batch: batch.box[batch.partner_rows].fill_(True))


@edge
def a_box_of_one_pixel():
    def change(batch):
        batch.box.fill_(False)
        batch.box[batch.partner_rows, :, -1, -1] = True

    return Case(change=change)


def own_network(edge: str) -> bool:
    case = EDGES[edge]()
    return (case.num_labels, case.scale, case.threshold) != (K, 1.0, None)


ALONE = [edge for edge in EDGES if own_network(edge)]
COURSES = {
    "one after another": [edge for edge in EDGES if edge not in ALONE],
    **{edge: [edge] * 2 for edge in ALONE},
}
WORST = (
    ["crops that are all padding", "one valid pixel"],
    ["two classes", "two classes"],
    ["everything certain", "everything certain"],
)


@cache
def fresh_model(num_labels, ignore_index):
    torch.manual_seed(0)  # whatever the number that is ignored, these weights
    return tiny_model(num_labels, ignore_index=ignore_index, decoder_channels=8, aspp_channels=8)


def make(name, case, options):
    options = {**(DGCL if name == "dgcl" else {}), **options}
    fields = {field.name for field in dataclasses.fields(method_class(name).Options)}
    if case.threshold is not None and "confidence_threshold" in fields:
        options["confidence_threshold"] = case.threshold
    if case.threshold is not None and "threshold_initial" in fields:
        options |= {"threshold_initial": case.threshold, "threshold_update": "fixed"}
    model = copy.deepcopy(fresh_model(case.num_labels, case.ignore_index))
    torch.manual_seed(0)  # of what the method adds, whether the model was made just now or before
    method = method_class(name)(model, method_class(name).Options(**options)).train()
    with torch.no_grad():
        for module in method.modules():
            if hasattr(module, "classify"):
                module.classify.weight *= case.scale
                module.classify.bias *= case.scale
    if name == "dgcl":  # classes with a full memory, which contrast, and others with none
        fill(method, range(0, case.num_labels, 2))
    return method


def make_batch(method, case, step):
    unlabeled = max(case.unlabeled, 2) if getattr(method.options, "cps_cutmix", False) else case.unlabeled
    batch = random_batch(
        step,
        case.labeled,
        unlabeled,
        case.size,
        case.num_labels,
        (0,),
        seed=step,
        views=max(method.strong_views, 1),
    )
    batch.valid[:, case.size - 4 :] = False
    if case.change is not None:
        case.change(batch)
    return batch


def assert_finite(tensors, what):
    for name, tensor in tensors:
        assert tensor.isfinite().all(), f"{what}: {name}"


def run(name, edges, options, autocast=False):
    """One step at each edge, with one method, which is that of the first."""
    method = make(name, EDGES[edges[0]](), options)
    optimizer = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.1, momentum=0.9)
    for number, edge in enumerate(edges):
        try:
            take_step(name, method, optimizer, number, edge, autocast)
        except Exception as error:
            error.add_note(f"step {number}, at the edge: {edge}")
            raise


def take_step(name, method, optimizer, number, edge, autocast):
    case = EDGES[edge]()
    batch = make_batch(method, case, number)
    before = copy.deepcopy(batch)
    threshold = method.threshold.value.clone() if name == "corrmatch" else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss, logs = method(batch)
    assert_finite([("loss", loss), *logs.items()], "forward")
    assert all(value.ndim == 0 and not value.requires_grad for value in logs.values())
    knows = case.threshold is None or name in WITH_THRESHOLD
    for term in [term for term in case.zero if f"loss/{term}" in logs and knows]:
        assert logs[f"loss/{term}"] == 0, f"{term} is over no pixel"
    if edge == "everything certain" and not getattr(method, "warming_up", False):
        assert logs.get("kept_ratio", 1) > 0.75
    for ratio in ("kept_ratio", "propagated_ratio"):
        assert 0 <= logs.get(ratio, torch.tensor(0.0)) <= 1, ratio
    optimizer.zero_grad()
    loss.backward()
    grads = [(n, p.grad) for n, p in method.named_parameters() if p.requires_grad]
    assert [n for n, grad in grads if grad is None] == [], "data-parallel training waits for every gradient"
    assert_finite(grads, "gradients")
    if case.zero == UNLABELED + LABELED and name not in ("cps", "mean_teacher"):
        assert loss == 0 and not any(grad.any() for _, grad in grads), "there is nothing to learn"
        if threshold is not None:
            assert torch.equal(method.threshold.value, threshold)
    torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
    optimizer.step()
    method.after_step()
    assert_finite(method.state_dict().items(), "state")
    for field in dataclasses.fields(batch):
        own, copied = getattr(batch, field.name), getattr(before, field.name)
        same = torch.equal(own, copied) if isinstance(own, torch.Tensor) else own == copied
        assert same, f"{field.name} of the batch was changed"


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_at_every_edge(name, course):
    run(name, COURSES[course], {})


@pytest.mark.parametrize("name", METHODS)
def test_which_number_means_ignored_is_of_no_account(name):
    def step(ignore_index):
        def change(batch):
            batch.label[torch.rand(batch.label.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = (
                ignore_index
            )

        case = Case(num_labels=2, ignore_index=ignore_index, change=change)
        method = make(name, case, {})
        loss, _ = method(make_batch(method, case, 0))
        loss.backward()
        return loss, [p.grad for p in method.parameters() if p.requires_grad]

    loss, grads = step(255)
    for ignore_index in (-100, -1, 2, 128, 254, 1000):
        other, others = step(ignore_index)
        assert torch.equal(loss, other), ignore_index
        assert all(torch.equal(one, two) for one, two in zip(grads, others, strict=True)), ignore_index


@pytest.mark.parametrize("name", METHODS)
def test_every_method_at_the_worst_edges_in_bfloat16(name):
    for edges in WORST:
        run(name, edges, {}, autocast=True)


@pytest.mark.parametrize(
    "name, options", VARIANTS, ids=lambda v: v if isinstance(v, str) else ",".join(map(str, v.values()))
)
def test_every_option_at_the_worst_edges(name, options):
    for edges in WORST:
        run(name, edges, options)

"""The inter-pixel term as methods use it."""

from dataclasses import dataclass

import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods.base import MethodOptions
from corrmatch_hf.methods.inter_pixel import InterPixelOptions, inter_pixel_term
from corrmatch_hf.ops.inter_pixel import inter_pixel_correlation, inter_pixel_kl, inter_pixel_pairwise

from .test_no_synchronisation import CountReadBacks

KINDS = ("kl", "correlation", "pairwise")


def views(classes=3):
    confident = torch.rand(2, 6, 7) < 0.7
    return torch.randn(2, classes, 6, 7, requires_grad=True), torch.randn(2, classes, 6, 7), confident


def test_off_by_default():
    assert inter_pixel_term(InterPixelOptions(), *views(), seed=0, step=0) is None


def test_the_term_is_the_weighted_loss_of_the_options():
    case = views()
    for kind, want in (
        ("kl", inter_pixel_kl(*case, 2.0)),
        ("correlation", inter_pixel_correlation(*case)),
        ("pairwise", inter_pixel_pairwise(*case, torch.Generator(), 1024, 2.0)),  # room for all pixels
    ):
        options = InterPixelOptions(
            inter_pixel_loss=kind, inter_pixel_weight=0.5, inter_pixel_temperature=2.0
        )
        options.check()
        torch.testing.assert_close(inter_pixel_term(options, *case, seed=0, step=3), 0.5 * want)


def test_the_sampled_pixels_depend_on_seed_and_step_alone():
    options = InterPixelOptions(inter_pixel_loss="pairwise", inter_pixel_pixels=6)
    case = views()
    term = inter_pixel_term(options, *case, seed=1, step=2)
    torch.manual_seed(99)
    assert torch.equal(term, inter_pixel_term(options, *case, seed=1, step=2))
    assert not torch.equal(term, inter_pixel_term(options, *case, seed=1, step=3))
    assert not torch.equal(term, inter_pixel_term(options, *case, seed=2, step=2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_follows_the_term_comes_closer_to_the_teacher(kind):
    options = InterPixelOptions(inter_pixel_loss=kind, inter_pixel_weight=1.0)
    student, teacher, confident = views()
    optimizer = torch.optim.Adam([student], lr=0.05)
    terms = []
    for step in range(60):
        term = inter_pixel_term(options, student, teacher, confident, seed=0, step=step)
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        terms.append(term.item())
    assert terms[-1] < terms[0] / 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_term_reads_nothing_back(kind, classes):
    options = InterPixelOptions(inter_pixel_loss=kind, inter_pixel_pixels=16)
    case = views(classes)
    with CountReadBacks() as mode:
        inter_pixel_term(options, *case, seed=0, step=0).backward()
    assert mode.seen == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inter_pixel_loss", "cosine"),
        ("inter_pixel_weight", -0.1),
        ("inter_pixel_weight", float("nan")),
        ("inter_pixel_temperature", 0.0),
        ("inter_pixel_temperature", float("inf")),
        ("inter_pixel_pixels", 1),
    ],
)
def test_values_that_cannot_be_used_are_named(name, value):
    with pytest.raises(InputError, match=f"--{name} is "):
        InterPixelOptions(**{name: value}).check()


def test_the_options_join_those_of_a_method():
    @dataclass
    class Other(MethodOptions):
        other: int = 1

        def problems(self):
            return [*super().problems(), *(["--other is too small"] if self.other < 1 else [])]

    @dataclass
    class Both(InterPixelOptions, Other):
        pass

    Both(inter_pixel_loss="kl").check()
    wrong = {"other": 0, "inter_pixel_pixels": 0, "labeled_loss": "no"}
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"--{name} is"):
            Both(**{name: value}).check()
    with pytest.raises(InputError) as error:
        Both(**wrong).check()
    assert all(f"--{name} is" in str(error.value) for name in wrong), "all at once"

"""The inter-pixel term, what it adds to every teacher-student method, and that it adds nothing when it is off."""

from dataclasses import dataclass

import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import FixMatch, FixMatchOptions, IPixMatch, IPixMatchOptions
from corrmatch_hf.methods.base import MethodOptions
from corrmatch_hf.methods.inter_pixel import InterPixelOptions, inter_pixel_term
from corrmatch_hf.methods.teacher import Teacher
from corrmatch_hf.ops.inter_pixel import inter_pixel_correlation, inter_pixel_kl, inter_pixel_pairwise

from ..read_backs import CountReadBacks
from .tiny import batch_for, pseudo, random_batch, tiny_method, tiny_model

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


def step(name, batch, **options):
    torch.manual_seed(0)
    method = tiny_method(name, seed=3, **options)
    with torch.no_grad():  # a teacher starts as its student's copy, and would have nothing to say
        for teacher in (module for module in method.modules() if isinstance(module, Teacher)):
            for parameter in teacher.network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return method(batch)


@pytest.mark.parametrize(
    "name", ["fixmatch", "unimatch", "unimatch_v2", "corrmatch", "mean_teacher", "dgcl", "cps"]
)
@pytest.mark.parametrize("kind", ["kl", "correlation", "pairwise"])
def test_every_teacher_student_method_adds_the_term(name, kind):
    batch = batch_for(name, rows=(0, 1))
    certain = {
        "corrmatch": {"threshold_initial": 0.0, "threshold_update": "fixed"},
        "fixmatch": {"confidence_threshold": 0.0},
        "unimatch": {"confidence_threshold": 0.0},
        "unimatch_v2": {"confidence_threshold": 0.0},
    }
    options = certain.get(name, {})
    off, logs_off = step(name, batch, **options)
    on, logs_on = step(name, batch, inter_pixel_loss=kind, inter_pixel_weight=2.0, **options)
    share = 0.5 if name in certain else 1.0  # of the unlabelled losses in the total
    assert "loss/inter_pixel" not in logs_off
    assert logs_on["loss/inter_pixel"] > 1e-4
    torch.testing.assert_close(on, off + share * logs_on["loss/inter_pixel"], rtol=1e-4, atol=1e-6)
    _, logs_half = step(name, batch, inter_pixel_loss=kind, inter_pixel_weight=1.0, **options)
    torch.testing.assert_close(2 * logs_half["loss/inter_pixel"], logs_on["loss/inter_pixel"])
    on.backward()


def test_ipixmatch_is_fixmatch_plus_the_term_on_the_confident_pixels_of_the_mixed_view():
    batch, options = random_batch(rows=(1,)), IPixMatchOptions(confidence_threshold=0.21)
    torch.manual_seed(0)
    ipix = IPixMatch(tiny_model(), options).eval()
    g = torch.Generator().manual_seed(1)
    x, weak, strong, partner = (torch.randn(2, 5, 49, 49, generator=g) for _ in range(4))
    box, valid = batch.box[:, 0], batch.valid
    partner_valid = torch.ones_like(valid)
    total, logs = ipix.losses(x, strong, pseudo(weak, valid), pseudo(partner, partner_valid), batch)
    fix = FixMatch(tiny_model(), FixMatchOptions(confidence_threshold=0.21))
    plain, _ = fix.losses(x, strong, pseudo(weak, valid), pseudo(partner, partner_valid), batch)

    teacher = torch.where(box[:, None], partner, weak)
    kept = (teacher.softmax(1).amax(1) >= 0.21) & torch.where(box, partner_valid, valid)
    expected = inter_pixel_term(options, strong, teacher, kept, seed=0, step=0)
    torch.testing.assert_close(logs["loss/inter_pixel"], expected)
    torch.testing.assert_close(total, plain + expected / 2)


def test_a_weight_of_zero_is_refused():
    with pytest.raises(InputError, match="inter_pixel_weight"):
        IPixMatch(tiny_model(), IPixMatchOptions(inter_pixel_weight=0.0))

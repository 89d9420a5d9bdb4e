"""The inter-pixel loss inside the methods: what it adds, and that it adds nothing when it is off."""

import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import FixMatch, FixMatchOptions, IPixMatch, IPixMatchOptions, method_class
from corrmatch_hf.methods.inter_pixel import inter_pixel_term
from corrmatch_hf.methods.teacher import Teacher

from .test_corrmatch import random_batch, tiny_model


def step(name, batch, **options):
    torch.manual_seed(0)
    cls = method_class(name)
    method = cls(tiny_model(), cls.Options(**options), seed=3).train()
    with torch.no_grad():  # a teacher starts as its student's copy, and would have nothing to say
        for teacher in (module for module in method.modules() if isinstance(module, Teacher)):
            for parameter in teacher.network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return method(batch)


@pytest.mark.parametrize("name", ["fixmatch", "unimatch", "corrmatch", "mean_teacher", "dgcl", "cps"])
@pytest.mark.parametrize("kind", ["kl", "correlation", "pairwise"])
def test_every_teacher_student_method_takes_it(name, kind):
    batch = random_batch(views=2 if name == "unimatch" else 1, rows=(0, 1))
    certain = {
        "corrmatch": {"threshold_initial": 0.0, "threshold_update": "fixed"},
        "fixmatch": {"confidence_threshold": 0.0},
        "unimatch": {"confidence_threshold": 0.0},
        "dgcl": {"dgcl_memory_size": 40, "dgcl_projection_channels": 8},
    }
    options = certain.get(name, {})
    off, logs_off = step(name, batch, **options)
    on, logs_on = step(name, batch, inter_pixel_loss=kind, inter_pixel_weight=2.0, **options)
    share = (
        0.5 if name in ("fixmatch", "unimatch", "corrmatch") else 1.0
    )  # of the unlabelled losses in the total
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
    total, logs = ipix.losses(x, weak, strong, partner, batch.label, valid, partner_valid, box)
    fix = FixMatch(tiny_model(), FixMatchOptions(confidence_threshold=0.21))
    plain, _ = fix.losses(x, weak, strong, partner, batch.label, valid, partner_valid, box)

    teacher = torch.where(box[:, None], partner, weak)
    kept = (teacher.softmax(1).amax(1) >= 0.21) & torch.where(box, partner_valid, valid)
    expected = inter_pixel_term(options, strong, teacher, kept, seed=0, step=0)
    torch.testing.assert_close(logs["loss/inter_pixel"], expected)
    torch.testing.assert_close(total, plain + expected / 2)


def test_a_weight_of_zero_is_refused():
    with pytest.raises(InputError, match="inter_pixel_weight"):
        IPixMatch(tiny_model(), IPixMatchOptions(inter_pixel_weight=0.0))

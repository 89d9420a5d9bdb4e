"""What holds for every method: its public names, options, gradients, state, and that nothing is read back."""

import copy
import dataclasses
import importlib
import math
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

import corrmatch_hf
import corrmatch_hf.methods
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import METHODS, REGISTRY, corrmatch
from corrmatch_hf.methods.citations import citation_of
from corrmatch_hf.ops.region_propagation import row_shapes
from corrmatch_hf.ops.region_propagation.propagate import _propagate_batched
from corrmatch_hf.options import choices_of

from ..read_backs import CountReadBacks
from .tiny import batch_for, random_batch, tiny_method, tiny_model, tiny_vit

WITHOUT_PAPER = ("supervised", "gatematch")
DOCS = Path(corrmatch_hf.__file__).parents[1] / "docs" / "methods"
every_method = pytest.mark.parametrize("name", METHODS)

# Options that change what a step consists of.
VARIANTS = [
    *((name, {}) for name in METHODS),
    ("fixmatch", {"teacher": "ema"}),
    ("corrmatch", {"teacher": "ema", "feature_perturbation": "complementary"}),
    ("cps", {"cps_supervision": "soft"}),
    ("cps", {"cps_cutmix": True, "inter_pixel_loss": "pairwise"}),
    ("cps", {"cps_cutmix": True, "cps_supervision": "soft"}),
    ("dgcl", {"inter_pixel_loss": "kl"}),
    ("dgcl", {"dgcl_supervised_share": 0.5, "dgcl_total_steps": 4}),
]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)


# -------------------- the registry


@every_method
def test_the_line_in_the_registry_gives_all_names(name):
    cls = METHODS[name]
    assert cls.name == name and cls.__name__ == REGISTRY[name]
    for public in (cls.__name__, f"{cls.__name__}Options"):
        assert public in corrmatch_hf.__all__ and public in dir(corrmatch_hf)
        assert getattr(corrmatch_hf, public) is getattr(corrmatch_hf.methods, public)
    assert getattr(corrmatch_hf, cls.__name__) is cls
    assert getattr(corrmatch_hf, f"{cls.__name__}Options") is cls.Options


@every_method
def test_a_method_has_a_description_a_citation_and_a_page_in_the_documentation(name):
    cls = METHODS[name]
    assert importlib.import_module(cls.__module__).__doc__ and cls.__doc__ and cls.Options.__doc__
    if name not in WITHOUT_PAPER:
        assert "citation" in vars(cls), "a method does not inherit the paper of another"
        assert citation_of(name).text and citation_of(name).bibtex.startswith("@")
    if DOCS.is_dir():
        assert (DOCS / f"{name}.md").is_file()


def test_only_methods_with_a_paper_are_cited():
    assert citation_of("supervised") is None and citation_of("mine") is None and citation_of(None) is None


def test_every_public_name_can_be_imported():
    names = {}
    exec("from corrmatch_hf import *", names)
    assert set(corrmatch_hf.__all__) <= names.keys()
    with pytest.raises(AttributeError, match="UniMatchV3"):
        _ = corrmatch_hf.UniMatchV3
    with pytest.raises(InputError, match="unimatch_v2"):
        corrmatch_hf.methods.method_class("unimatchv2")


# -------------------- options


def options_of_all_methods(wanted):
    for name, cls in METHODS.items():
        hints = get_type_hints(cls.Options)
        for spec in dataclasses.fields(cls.Options):
            if wanted(spec, hints[spec.name]):
                yield pytest.param(cls.Options, spec, id=f"{name}-{spec.name}")


def refused(options, name, value):
    with pytest.raises(InputError) as error:
        options(**{name: value}).check()
    assert str(error.value).startswith(f"--{name} is {value!r}; ") and ". " not in str(error.value)


@pytest.mark.parametrize(
    ("options", "spec"), options_of_all_methods(lambda spec, hint: spec.metadata["bounds"])
)
def test_numbers_outside_their_range_are_refused(options, spec):
    options().check()
    bounds = spec.metadata["bounds"]
    outside = [math.nan, math.inf, -math.inf]
    outside += [bounds["at_least"] - 1e-9] if "at_least" in bounds else []
    outside += [bounds["above"]] if "above" in bounds else []
    outside += [bounds["at_most"] + 1e-9] if "at_most" in bounds else []
    outside += [bounds["below"]] if "below" in bounds else []
    for value in outside:
        refused(options, spec.name, value)
    needs_another = {("ipixmatch", "inter_pixel_weight"), ("gatematch", "propagation_accuracy")}
    alone = all(options is not METHODS[name].Options or spec.name != needy for name, needy in needs_another)
    for end in ("at_least", "at_most"):
        if end in bounds and alone:
            options(**{spec.name: bounds[end]}).check()


@pytest.mark.parametrize(("options", "spec"), options_of_all_methods(lambda spec, hint: choices_of(hint)))
def test_choices_that_do_not_exist_are_refused(options, spec):
    refused(options, spec.name, "nonsense")


@every_method
def test_every_option_is_explained_and_every_float_has_a_range(name):
    options = METHODS[name].Options
    hints = get_type_hints(options)
    for spec in dataclasses.fields(options):
        assert spec.metadata["help"].endswith((".", ")")) and len(spec.metadata["help"]) < 250, spec.name
        assert hints[spec.name] is not float or spec.metadata["bounds"], spec.name


# -------------------- a step


@pytest.mark.parametrize("network", ["resnet", "dpt", "linear"])
@every_method
def test_two_steps_are_finite_and_train_everything(name, network):
    torch.manual_seed(0)
    model = tiny_model() if network == "resnet" else tiny_vit(network)
    sure = "confidence_threshold" in METHODS[name].Options.__dataclass_fields__
    method = tiny_method(name, model, **({"confidence_threshold": 0.2} if sure else {}))
    before = {k: p.detach().clone() for k, p in method.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        loss, logs = method(batch_for(name, step, size=64, seed=step))
        assert loss.isfinite() and all(v.isfinite() and not v.requires_grad for v in logs.values())
        optimizer.zero_grad()
        loss.backward()
        for key, p in method.named_parameters():
            assert not p.requires_grad or (p.grad is not None and p.grad.isfinite().all()), key
            assert not (p.requires_grad and key.startswith("teacher")), key
        optimizer.step()
        method.after_step()
    still = [k for k, p in method.model.named_parameters() if k in before and torch.equal(p, before[k])]
    assert still == []
    assert all(value.isfinite().all() for value in method.state_dict().values())


@pytest.mark.parametrize("position", ["encoder", "aspp", "fusion", "classifier"])
def test_the_correlation_head_gets_a_gradient_at_every_position(position):
    method = tiny_method("corrmatch", tiny_model(correlation_position=position))
    method(random_batch())[0].backward()
    assert [name for name, p in method.model.named_parameters() if p.grad is None] == []


@every_method
def test_a_batch_without_a_box_is_finite(name):
    loss, logs = tiny_method(name)(batch_for(name, rows=()))
    loss.backward()
    assert loss.isfinite() and all(value.isfinite() for value in logs.values())


@every_method
def test_a_method_reads_only_the_views_that_it_asks_for(name):
    cls, batch = METHODS[name], batch_for(name)
    absent = {} if cls.strong_views else {"strong": None, "box": None, "partner_rows": []}
    absent |= {} if cls.strong_views else {"partner_weak": None, "partner_valid": None}
    absent |= {} if cls.uses_unlabeled else {"weak": None, "valid": None}
    assert tiny_method(name)(dataclasses.replace(batch, **absent))[0].isfinite()


@every_variant
def test_a_step_leaves_training_modes_as_they_were(name, options):
    method = tiny_method(name, **options)
    norms = [m for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    norms[0].eval()  # a frozen one
    before = [m.training for m in method.modules()]
    method(batch_for(name))
    assert [m.training for m in method.modules()] == before


@pytest.mark.parametrize("rows", [(), (0, 1)])
@every_method
def test_passes_without_gradient_take_none_away_under_autocast(name, rows):
    """Autocast caches the cast weights; those of a pass without gradient must not be used with one."""
    method = tiny_method(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = method(batch_for(name, rows=rows))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert all(p.grad.abs().sum() > 0 for p in method.model.decoder.classify.parameters())


@every_variant
def test_a_step_reads_nothing_back(name, options, monkeypatch):
    # Region propagation as it runs on a GPU, without Triton.
    monkeypatch.setattr(
        corrmatch,
        "propagate_rows",
        lambda rows, labels, confident, allowed, tau, num_labels: _propagate_batched(
            labels, confident, row_shapes(rows, labels.shape[-2:]) & allowed.unsqueeze(1), tau, num_labels
        ),
    )
    method = tiny_method(name, **options)
    for step in (1, 2):  # DGCL with half of its four steps supervised: both kinds
        batch = batch_for(name, step)
        with CountReadBacks() as mode:
            loss, _ = method(batch)
            loss.backward()
            method.after_step()
        assert mode.seen == []


def test_the_counter_of_read_backs_counts():
    with CountReadBacks() as mode:
        x = torch.arange(4.0)
        x[x > 1]
        x.sum().item()
    assert len(mode.seen) >= 2


# -------------------- state


def train(method, steps):
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss, _ = method(batch_for(method.name, step, seed=step, rows=(0, 1)))
        loss.backward()
        optimizer.step()
        method.after_step()
        losses.append(loss.detach())
    return losses


@every_variant
def test_a_method_restored_from_its_state_goes_on_bit_by_bit(name, options):
    whole = tiny_method(name, **options)
    train(whole, range(2))
    state = copy.deepcopy(whole.state_dict())
    want = train(whole, range(2, 4))
    torch.manual_seed(123)  # neither the new weights nor the global generator matter
    resumed = tiny_method(name, **options)
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(train(resumed, range(2, 4)), want, strict=True))
    for (key, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), key

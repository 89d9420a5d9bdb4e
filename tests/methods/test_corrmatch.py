"""The CorrMatch step: all losses, threshold and gradients of the reference step; options; process independence."""

import pytest
import torch
from safetensors.torch import load_file

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import CorrMatch, CorrMatchOptions, Supervised
from corrmatch_hf.methods.corrmatch import Predictions
from corrmatch_hf.model import pixel_propagation

from .tiny import pseudo, random_batch, targets, tiny_model


def test_a_model_that_another_method_trained_before_trains_its_correlation_head():
    model = tiny_model()
    Supervised(model)
    assert not any(p.requires_grad for p in model.correlation.parameters())
    CorrMatch(model)
    assert all(p.requires_grad for p in model.correlation.parameters())


@pytest.fixture(scope="module")
def reference(shared_dir):
    return load_file(shared_dir / "reference/step.safetensors")


def reference_step(t, **options):
    method = CorrMatch(
        tiny_model(t["in.logits_x"].shape[1]),
        CorrMatchOptions(threshold_initial=t["in.threshold_init"].item(), **options),
    )
    names = {"x": "logits_x", "x_corr": "corr_logits_x", "weak": "logits_w", "weak_corr": "corr_logits_w",
             "weak_perturbed": "logits_fp", "strong": "logits_s", "strong_corr": "corr_logits_s",
             "partner": "logits_mix"}  # fmt: skip
    inputs = {ours: t[f"in.{theirs}"].clone().requires_grad_() for ours, theirs in names.items()}
    weak = pseudo(inputs["weak"], t["in.ignore"] != 255)
    partner = pseudo(inputs["partner"], t["in.ignore_mix"] != 255)
    # A shape is a row that has full resolution already.
    predictions = Predictions(**inputs | {"weak": weak, "partner": partner}, rows=t["in.shapes"].float())
    total, logs = method.losses(predictions, targets(t["in.labels"].long(), t["in.cutmix_box"].bool()))
    return method, total, logs, inputs, names


def test_reference_step_losses_and_threshold(reference):
    t = reference
    method, total, logs, *_ = reference_step(t)
    for name in ("x", "x_corr", "s", "corr_s", "corr_w", "kl", "fp"):
        torch.testing.assert_close(logs[f"loss/{name}"], t[f"out.loss.{name}"], rtol=1e-5, atol=0)
    torch.testing.assert_close(total, t["out.loss.total"], rtol=1e-5, atol=0)
    torch.testing.assert_close(method.threshold.value, t["out.threshold"], rtol=1e-6, atol=0)


def test_reference_step_gradients(reference):
    t = reference
    _, total, _, inputs, names = reference_step(t)
    total.backward()
    seen = 0
    for ours, theirs in names.items():
        key = f"out.grad_norm.{theirs}"
        if key in t:
            torch.testing.assert_close(inputs[ours].grad.norm(), t[key], rtol=1e-5, atol=0)
            seen += 1
        else:
            assert inputs[ours].grad is None, f"{theirs} gives targets only"
    assert seen == 6


def test_ablations_change_the_terms_they_name(reference):
    _, base, logs, *_ = reference_step(reference)
    for options in (
        {"hard_weight": 1.0}, {"soft_weight": 0.0}, {"correlation_weight": 0.0}, {"labeled_correlation_weight": 0.0},
        {"unlabeled_weight": 0.25}, {"soft_loss": "cosine"}, {"soft_loss": "cross_entropy"},
        {"mix_soft_targets": True}, {"threshold_update": "global_mean"},
        {"threshold_update": "fixed"}, {"threshold_update": "per_class"}, {"threshold_momentum": 0.5},
        {"labeled_loss": "ohem", "ohem_min_kept": 100},
    ):  # fmt: skip
        _, total, changed, *_ = reference_step(reference, **options)
        assert total.isfinite()
        different = total != base or any(changed[k] != logs[k] for k in logs)
        assert different, options


def test_threshold_zero_keeps_every_valid_pixel(reference):
    _, _, logs, *_ = reference_step(
        {**reference, "in.threshold_init": torch.tensor(0.0)}, threshold_update="fixed"
    )
    assert logs["kept_ratio"].item() == pytest.approx(1)


@pytest.mark.parametrize(
    "options",
    [
        {"propagation": "none"},
        {"shape_sampling": "uniform"},
        {"feature_perturbation": "none"},
        {"feature_perturbation": "complementary"},
        {"teacher": "ema"},
        {"num_shapes": 1},
    ],
)
def test_step_options_run(options):
    loss, logs = CorrMatch(tiny_model(), CorrMatchOptions(**options)).train()(random_batch())
    assert loss.isfinite()
    assert ("loss/fp" in logs) == (options.get("feature_perturbation") != "none")


def test_correlation_scale_as_printed_in_the_paper():
    query, key, logits = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), torch.randn(1, 2, 3, 3)
    rows = torch.einsum("ndp,ndq->npq", query.flatten(2), key.flatten(2)).softmax(-1) / 4**0.5
    want = torch.einsum("nkp,npq->nkq", logits.flatten(2), rows).view(1, 2, 3, 3)
    torch.testing.assert_close(pixel_propagation(query, key, logits, scale="rows"), want)
    losses = [
        CorrMatch(tiny_model(correlation_scale=s)).train()(random_batch())[0] for s in ("scores", "rows")
    ]
    assert all(loss.isfinite() for loss in losses)


def test_partner_pass_is_in_evaluation_mode_and_restores_modes():
    model = tiny_model()
    method = CorrMatch(model).train()
    frozen = next(m for m in model.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    frozen.eval()
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    method(random_batch())
    assert seen == [False], "the model's own forward runs once, for the partner"
    assert model.training and not frozen.training


def test_the_step_is_a_function_of_seed_and_step():
    model = tiny_model()
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def loss(seed, step):
        model.load_state_dict(state)
        torch.manual_seed(torch.seed() % 2**31)  # the global generator must not matter
        return CorrMatch(model, seed=seed).train()(random_batch(step))[0].item()

    assert loss(0, 3) == loss(0, 3)
    assert loss(0, 3) != loss(1, 3)
    assert loss(0, 3) != loss(0, 4)


def test_shapes_never_start_at_the_last_position():
    method = CorrMatch(tiny_model())
    index = torch.cat([method._shape_index(4, step, torch.device("cpu")) for step in range(50)])
    assert set(index.tolist()) == {0, 1, 2}
    assert method._shape_index(1, 0, torch.device("cpu")).tolist() == [0] * 128


def test_a_model_without_the_head_is_refused():
    with pytest.raises(InputError, match="correlation head"):
        CorrMatch(tiny_model(correlation_head=False))


@pytest.mark.parametrize("rows", [(), (0, 1)])
def test_the_partner_pass_takes_no_gradient_away_under_autocast(rows):
    """Autocast caches the cast weights; those of the pass without gradient must not be used with one."""
    method = CorrMatch(tiny_model()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = method(random_batch(rows=rows))
    loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.model.decoder.classify.parameters())


def test_supervised_is_the_labelled_loss_alone():
    model = tiny_model(correlation_head=False)
    batch = random_batch()
    loss, logs = Supervised(model).eval()(batch)
    want = torch.nn.functional.cross_entropy(model(batch.image).logits, batch.label, ignore_index=255)
    torch.testing.assert_close(loss, want)
    assert set(logs) == {"loss/x"}

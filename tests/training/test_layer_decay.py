"""Rates that fall from the encoder's last layer to its first, against timm's own groups of whole models."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, TrainingConfig
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import CPS
from corrmatch_hf.model.encoder_corrmatch import CorrMatchEncoder, pretrained_encoder_weights
from corrmatch_hf.training.optimizer import build_optimizer, layer_scales

from ..methods.tiny import tiny_vit


def config(**options):
    return TrainingConfig(**{"max_steps": 1, "learning_rate": 0.1, "layer_decay": 0.5} | options)


def test_layers_of_a_transformer_by_hand():
    model = tiny_vit(decoder="linear")
    scales = layer_scales(model, 0.5)
    for name, p in model.encoder.body.model.named_parameters():
        if name.startswith("blocks."):
            want = 0.5 ** (3 - int(name.split(".")[1]))  # of four blocks
        else:
            want = 1.0 if name.startswith("norm.") else 0.5**4
        assert scales[p] == want, name
    assert len(scales) == len(list(model.encoder.parameters()))


# A plain transformer and each of timm's ways to take features of a model, with and without other names.
@pytest.mark.parametrize(
    "name",
    ["test_vit", "test_resnet", "convnext_atto", "mobilenetv3_small_050", "xception41", "hiera_tiny_224"],
)
def test_layers_are_those_that_timm_gives_the_whole_model(name, tmp_path):
    whole = timm.create_model(name, num_classes=0)
    parameters = dict(whole.named_parameters())
    with torch.no_grad():  # each knows its number
        for number, p in enumerate(parameters.values()):
            p.fill_(number)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    of_number, numbers = {}, {id(p): number for number, p in enumerate(parameters.values())}
    for group in param_groups_layer_decay(whole, layer_decay=0.8):
        of_number |= {numbers[id(p)]: group["lr_scale"] for p in group["params"]}

    encoder = CorrMatchEncoder(name)
    encoder.body.load_state_dict(
        pretrained_encoder_weights(encoder.plan.options, tmp_path / "whole.safetensors")
    )
    scales = layer_scales(encoder, 0.8)
    seen = {key: int(p.flatten()[0]) for key, p in encoder.named_parameters()}
    # What lies behind the features (a last convolution before the classifier) is not part of an encoder.
    behind = max(of_number[number] for number in seen.values())
    for key, p in encoder.named_parameters():
        assert (p == seen[key]).all()
        assert scales[p] == pytest.approx(of_number[seen[key]] / behind), key
    assert len(set(scales.values())) > 3


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("spared", [False, True])
def test_every_weight_has_its_rate(kind, spared):
    """Of both networks of CPS; none twice, none left out, no group empty."""
    method = CPS(tiny_vit(correlation_head=False))
    chosen = config(optimizer=kind, head_lr_multiplier=5, no_decay_norm_bias=spared, weight_decay=0.01)
    groups = build_optimizer(method, chosen, total_batch=8).param_groups
    assert groups[0]["lr"] == pytest.approx(0.1), "what is logged is the highest rate of the encoder"
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) and all(g["params"] for g in groups)
    assert rates.keys() == {id(p) for p in method.parameters() if p.requires_grad}
    for network in (method.model, method.second):
        assert {rates[id(p)] for p in network.decoder.parameters()} == {0.5}
        blocks = network.encoder.body.model.blocks
        assert [rates[id(block.norm1.weight)] for block in blocks] == pytest.approx(
            [0.0125, 0.025, 0.05, 0.1]
        )
    for group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.0 if spared and p.ndim == 1 else 0.01)


def test_a_run_logs_the_rate_of_the_last_layer_and_lowers_all(make_trainer):
    trainer = make_trainer("supervised", layer_decay=0.5, max_steps=2)
    start = [group["lr"] for group in trainer.optimizer.param_groups]
    assert len(set(start)) > 3 and trainer.schedule.get_last_lr()[0] == pytest.approx(0.01)
    trainer.optimizer.step()
    trainer.schedule.step()
    now = [group["lr"] for group in trainer.optimizer.param_groups]
    assert now == pytest.approx([rate * 0.5**0.9 for rate in start])


def test_an_encoder_without_known_layers_is_refused():
    with pytest.raises(InputError, match=r"--layer_decay: .*'poolformerv2_s12'"):
        layer_scales(CorrMatchForSegmentation(CorrMatchConfig(encoder_name="poolformerv2_s12")), 0.5)

"""A frozen encoder stays as it is, to the last statistic, and costs no backward pass."""

import pytest
import torch

from corrmatch_hf.methods import METHODS, method_class
from corrmatch_hf.model.encoder_corrmatch import CorrMatchEncoder

from ..methods.tiny import tiny_vit


def encoders(method):
    return {name: m for name, m in method.named_modules() if isinstance(m, CorrMatchEncoder)}


def options_of(name):
    return (
        method_class(name).Options(dgcl_memory_size=64, dgcl_supervised_share=0.0) if name == "dgcl" else None
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_encoder_of_a_method_stays(make_trainer, name):
    trainer = make_trainer(
        name, options=options_of(name), freeze_encoder=True, optimizer="adamw", max_steps=3, eval_steps=1
    )
    method, seen = trainer.method, []
    second = {"cps": "second"} | dict.fromkeys(
        ["mean_teacher", "unimatch_v2", "dgcl", "gatematch"], "teacher.network"
    )
    networks = ["model", second[name]] if name in second else ["model"]
    assert list(encoders(method)) == [f"{network}.encoder" for network in networks]
    before = {k: v.clone() for k, v in method.state_dict().items()}

    def look(encoder, _, levels):
        seen.append((encoder.training, [level.requires_grad for level in levels]))

    for encoder in encoders(method).values():
        encoder.register_forward_hook(look)
    trainer.train()
    assert seen and all(not training and not any(grads) for training, grads in seen)
    changed = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and not [k for k in changed if ".encoder." in f".{k}"]
    assert any("decoder" in k for k in changed)
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in method.parameters() if p.requires_grad}
    assert all(group["params"] for group in trainer.optimizer.param_groups)


def test_a_frozen_run_resumes_exactly(make_trainer):
    settings = {"freeze_encoder": True, "max_steps": 4, "save_steps": 2}
    whole = make_trainer("unimatch_v2", **settings)
    whole.train()
    checkpoint = whole.output_dir / "checkpoints" / "step_00000002"
    resumed = make_trainer("unimatch_v2", **settings, resume_from_checkpoint=str(checkpoint))
    resumed.train()
    for key, value in whole.method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[key]), key


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("transformer", [False, True])
def test_it_needs_less_memory(make_trainer, tiny_data, transformer, checkpointing):
    def needs(freeze):
        model = None
        if transformer:
            labels = {
                "id2label": tiny_data.id2label,
                "label2id": {v: k for k, v in tiny_data.id2label.items()},
            }
            model = tiny_vit("linear", correlation_head=False, **labels)
            if checkpointing:
                model.activation_checkpointing_enable()
        return make_trainer("unimatch_v2", model=model, crop_size=64, freeze_encoder=freeze).memory_estimate

    if checkpointing and not transformer:
        pytest.skip("one encoder suffices")
    free, frozen = needs(False), needs(True)
    assert frozen.activations < free.activations * (0.95 if checkpointing else 0.7)
    assert frozen.weights < free.weights and frozen.checkpoint < free.checkpoint


def test_it_takes_the_features_that_an_evaluation_takes(make_trainer):
    """BatchNorm's own statistics: the features of an image do not depend on the batch."""
    trainer = make_trainer("supervised", freeze_encoder=True, max_steps=1)
    images, found = torch.randn(2, 3, 33, 33), []
    trainer.wrapped.register_forward_pre_hook(lambda *_: found.append(trainer.method.model.encode(images)))
    trainer.train()
    alone = trainer.method.model.eval().encode(images[:1])
    for level, single in zip(found[0], alone, strict=True):
        torch.testing.assert_close(level[:1], single)

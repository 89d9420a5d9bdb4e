"""Every method on a plain vision transformer, with the decoders that go with one."""

import pytest
import torch

from corrmatch_hf.methods import METHODS, method_class

from .test_corrmatch import random_batch, tiny_model


def tiny_vit(decoder="dpt", **config):
    return tiny_model(
        encoder_name="test_vit",
        encoder_kwargs={"depth": 4, "embed_dim": 48, "num_heads": 3},
        output_stride=None,
        decoder=decoder,
        decoder_channels=8,
        **config,
    )


@pytest.mark.parametrize("decoder", ["dpt", "linear"])
@pytest.mark.parametrize("name", METHODS)
def test_two_steps_are_finite_and_train_everything(name, decoder):
    cls = method_class(name)
    options = {"dgcl_memory_size": 40, "dgcl_supervised_share": 0.0} if name == "dgcl" else {}
    if "confidence_threshold" in cls.Options.__dataclass_fields__:
        options["confidence_threshold"] = 0.2
    torch.manual_seed(0)
    method = cls(tiny_vit(decoder), cls.Options(**options)).train()
    before = {k: p.detach().clone() for k, p in method.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        loss, logs = method(random_batch(step, size=64, seed=step, views=max(cls.strong_views, 1)))
        assert loss.isfinite() and all(value.isfinite() for value in logs.values())
        optimizer.zero_grad()
        loss.backward()
        for key, p in method.named_parameters():
            assert not p.requires_grad or (p.grad is not None and p.grad.isfinite().all()), key
        optimizer.step()
        method.after_step()
    still = [k for k, p in method.model.named_parameters() if k in before and torch.equal(p, before[k])]
    assert still == []
    assert all(value.isfinite().all() for value in method.state_dict().values())

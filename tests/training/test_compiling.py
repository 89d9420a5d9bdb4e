"""Compiled networks give the run that uncompiled ones give."""

from functools import partial

import pytest
import torch

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.methods import FixMatchOptions
from corrmatch_hf.training import optimizer
from corrmatch_hf.training import run as run_module
from corrmatch_hf.training.memory import blank_batch
from corrmatch_hf.training.optimizer import compile_networks


def test_a_compiled_run_is_the_same(make_trainer, tmp_path, monkeypatch):
    # All of dynamo and of autograd's tracing, without the minutes of the compiler itself.
    monkeypatch.setattr(run_module, "compile_networks", partial(compile_networks, backend="aot_eager"))
    run = partial(
        make_trainer, "fixmatch", options=FixMatchOptions(teacher="ema"), ema_decay=0.9, max_steps=2
    )
    plain = run(output_dir=str(tmp_path / "plain"))
    expected = plain.train()
    compiled = run(output_dir=str(tmp_path / "compiled"), compile=True)
    found = compiled.train()
    assert found["final"]["pixel_accuracy"] == pytest.approx(expected["final"]["pixel_accuracy"], abs=0.01)
    ours, theirs = compiled.method.state_dict(), plain.method.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    networks = [m for m in compiled.method.modules() if isinstance(m, CorrMatchForSegmentation)]
    assert len(networks) == 2, "the trained one and the teacher"
    assert all(network.encoder._compiled_call_impl is not None for network in networks)


def test_without_the_option_nothing_is_compiled(make_trainer):
    network = make_trainer("supervised").method.segmentation_model
    assert network.encoder._compiled_call_impl is None


@pytest.mark.parametrize(
    ("asked", "slow_cpu", "encoder", "channels_last"),
    [
        (True, False, "test_resnet", True),
        (False, False, "test_resnet", False),
        (True, True, "test_resnet", False),
        (True, True, "test_efficientnet", True),  # depthwise convolutions
    ],
)
def test_the_layout_of_the_weights(
    asked, slow_cpu, encoder, channels_last, make_trainer, monkeypatch, tiny_data
):
    monkeypatch.setattr(optimizer, "SLOW_GRADIENTS", slow_cpu)
    config = CorrMatchConfig(
        encoder_name=encoder,
        aspp_channels=8,
        decoder_channels=8,
        correlation_head=False,
        id2label=tiny_data.id2label,
    )
    trainer = make_trainer("supervised", model=CorrMatchForSegmentation(config), channels_last=asked)
    weight = next(p for p in trainer.method.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous() != channels_last


@pytest.mark.parametrize("name", ["corrmatch", "unimatch", "unimatch_v2"])  # the others call no other parts
def test_no_graph_break_in_what_is_compiled(name, make_trainer):
    """`fullgraph` makes a break an error. What a method does between its networks is not compiled."""
    torch._dynamo.reset()
    trainer = make_trainer(name)
    compile_networks(trainer.method, backend="eager", fullgraph=True)
    trainer.method.train()
    loss, _ = trainer.method(blank_batch(trainer.method, 2, 2, 64, torch.device("cpu")))
    loss.backward()
    compiled = [m for m in trainer.method.modules() if m._compiled_call_impl is not None]
    assert loss.isfinite() and len(compiled) >= 2

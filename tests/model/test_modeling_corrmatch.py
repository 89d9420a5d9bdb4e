import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from corrmatch_hf import model as package
from corrmatch_hf.model import CorrMatchForSegmentation, pixel_propagation, resize

IMAGES = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(5))
SMALL_SWIN = (
    "swin_tiny_patch4_window7_224",
    {"depths": (2, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)},
)


def labels(ignored=0.2):
    ids = torch.randint(5, (2, 65, 97))
    ids[torch.rand(ids.shape) < ignored] = 255
    return ids


def test_output_at_inference(network):
    model = network().eval()
    model.correlation.register_forward_hook(lambda *_: pytest.fail("correlation head computed at inference"))
    output = model(IMAGES)
    assert list(output.keys()) == ["logits"]
    assert output.logits.shape == (2, 5, 65, 97)
    assert torch.equal(model(IMAGES, return_dict=False)[0], output.logits)


@pytest.mark.parametrize("position", ["encoder", "aspp", "fusion", "classifier"])
def test_correlation_positions(position, network):
    model = network(correlation_position=position, correlation_dim=7).eval()
    output = model(IMAGES, output_correlation=True)
    assert output.query.shape == output.key.shape == (2, 7, 5, 7)
    assert output.correlation_logits.shape == (2, 5, 65, 97)
    expected = pixel_propagation(output.query, output.key, resize(output.logits, (5, 7)))
    assert torch.equal(output.correlation_logits, model.upsample(expected, (65, 97)))


def test_steps_are_the_forward_pass(network):
    model = network().eval()
    features = model.encode(IMAGES)
    decoded = model.decode(features)
    query, key = model.correlate(features, decoded, channel_mask=torch.ones(2, 16))
    output = model(IMAGES, output_correlation=True)
    assert decoded.aspp.shape == (2, 16, 5, 7)
    assert decoded.fused.shape == (2, 16, 17, 25) and decoded.logits.shape == (2, 5, 17, 25)
    assert torch.equal(model.upsample(decoded.logits, (65, 97)), output.logits)
    assert torch.equal(query, output.query) and torch.equal(key, output.key)


def test_loss_is_the_mean_of_both(network):
    model, y = network().eval(), labels()
    output = model(IMAGES, labels=y)
    both = [F.cross_entropy(z, y, ignore_index=255) for z in (output.logits, output.correlation_logits)]
    torch.testing.assert_close(output.loss, sum(both) / 2)

    model = network(correlation_head=False, ignore_index=-1).eval()
    y[y == 255] = -1
    output = model(IMAGES, labels=y.to(torch.int32))
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, y, ignore_index=-1))
    assert output.correlation_logits is None


def test_all_ignored_labels_give_zero(network):
    model = network().train()
    loss = model(IMAGES, labels=torch.full((2, 65, 97), 255)).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_correlation_loss_leaves_the_decoder_alone(network):
    """The logits are constants to the propagation, so only encoder and correlation head learn from it."""
    # timm starts the last norm of every residual block at zero, and with it the block's gradient
    model = network(encoder_kwargs={"zero_init_last": False}).train()
    model(IMAGES, output_correlation=True).correlation_logits.square().sum().backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    for part in (model.encoder, model.correlation):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters() if p.ndim == 4)


def test_batch_of_one_trains(network):
    model = network().train()
    loss = model(IMAGES[:1], labels=labels()[:1]).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_bad_inputs_are_explained(network):
    model = network(correlation_head=False)
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\), not \(3, 65, 97\)"):
        model(IMAGES[0])
    with pytest.raises(ValueError, match=r"not \(2, 1, 65, 97\)"):
        model(IMAGES[:, :1])
    with pytest.raises(ValueError, match=r"labels must be .*\(2, 65, 97\), not \(2, 64, 97\)"):
        model(IMAGES, labels=labels()[:, 1:])
    with pytest.raises(ValueError, match="correlation_head=True"):
        model(IMAGES, output_correlation=True)
    with pytest.raises(ValueError, match="correlation_head=True"):
        model.correlate(model.encode(IMAGES), None)


def test_decoder_initialisation(network):
    model = network(aspp_channels=64)
    weight = model.decoder.aspp.dilated[0].conv.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)  # kaiming normal
    assert (model.decoder.classify.bias == 0).all() and (model.correlation.project.norm.weight == 1).all()


# ----------------------------------------------------------------------------------------- precision and
# layout


def test_bfloat16(network):
    model = network().to(torch.bfloat16).train()
    output = model(IMAGES.bfloat16(), labels=labels())
    assert output.logits.dtype == torch.bfloat16 and output.correlation_logits.dtype == torch.float32
    output.loss.backward()
    assert output.loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_autocast(network):
    model = network().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(IMAGES, labels=labels())
    assert output.query.dtype == torch.bfloat16 and output.correlation_logits.dtype == torch.float32
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, model(IMAGES, labels=labels()).loss, rtol=0.2, atol=0)


def test_channels_last(network):
    model = network().eval()
    expected = model(IMAGES, output_correlation=True)
    model = model.to(memory_format=torch.channels_last)
    output = model(IMAGES.to(memory_format=torch.channels_last), output_correlation=True)
    assert output.query.is_contiguous(memory_format=torch.channels_last)
    for key in ("logits", "correlation_logits"):
        torch.testing.assert_close(output[key], expected[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name, options", [("resnet18", {}), SMALL_SWIN, ("mobilenetv2_100", {})])
def test_gradient_checkpointing(name, options, network):
    options = {**options, "drop_path_rate": 0.0}
    model = network(encoder_name=name, output_stride=32, encoder_kwargs=options).train()
    model.correlation.dropout.p = 0.0
    y, gradients = labels(), []
    for on in (False, True):
        if on:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.zero_grad()
        model(IMAGES, labels=y).loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters()})
    for key in gradients[0]:
        torch.testing.assert_close(gradients[1][key], gradients[0][key], rtol=1e-3, atol=1e-5)
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


@pytest.mark.parametrize("name, options", [("resnet18", {}), SMALL_SWIN])
def test_compiles_to_one_graph(name, options, network):
    model = network(encoder_name=name, output_stride=32, encoder_kwargs=options).eval()
    with torch.no_grad():
        expected = model(IMAGES).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(IMAGES).logits, expected)
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------- saving and
# loading


def test_auto_classes(network, tmp_path):
    model = network(id2label={0: "road", 1: "sky"}).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is CorrMatchForSegmentation and loaded.config.id2label == {0: "road", 1: "sky"}
    code = {path.name for path in Path(package.__file__).parent.glob("*_corrmatch.py")}
    code -= {
        "image_processing_corrmatch.py",
        "palette_corrmatch.py",
        "picture_corrmatch.py",
    }  # which the processor brings
    assert {path.name for path in tmp_path.glob("*.py")} == code
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    fresh = AutoModelForSemanticSegmentation.from_config(AutoConfig.from_pretrained(tmp_path))
    assert type(fresh) is CorrMatchForSegmentation


def test_new_classes_for_old_weights(network, tmp_path):
    network().save_pretrained(tmp_path)
    loaded = CorrMatchForSegmentation.from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    assert loaded.decoder.classify.weight.shape[0] == 9
    assert loaded.decoder.classify.weight.isfinite().all()
    old = load_file(tmp_path / "model.safetensors")
    assert torch.equal(loaded.encoder.body.conv1.weight, old["encoder.body.conv1.weight"])


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_incomplete_encoders_are_refused(damage, network, tmp_path):
    network().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    if damage == "missing":
        del state["encoder.body.layer1.0.conv1.weight"]
    else:
        state["encoder.body.layer1.0.conv1.weight"] = torch.zeros(2, 2)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of encoder 'resnet18'.*layer1\.0\.conv1\.weight"):
        CorrMatchForSegmentation.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_other_classes_need_saying_so(network, tmp_path):
    network().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"decoder\.classify\.bias \(5,\) instead of \(9,\).*pass ignore_mismatched_sizes=True",
    ):
        CorrMatchForSegmentation.from_pretrained(tmp_path, num_labels=9)


@pytest.mark.parametrize("stored, asked, expected", [
    (torch.bfloat16, None, torch.bfloat16), (torch.bfloat16, torch.float32, torch.float32),
    (torch.float32, "bfloat16", torch.bfloat16), (torch.float32, None, torch.float32),
])  # fmt: skip
def test_dtype_is_the_stored_one_or_the_one_asked_for(stored, asked, expected, network, tmp_path):
    network().to(stored).save_pretrained(tmp_path)
    options = {} if asked is None else {"dtype": asked}
    loaded = CorrMatchForSegmentation.from_pretrained(tmp_path, device_map="cpu", **options)
    assert {p.dtype for p in loaded.parameters()} == {expected} and loaded.dtype == expected
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert loaded(IMAGES.to(expected)).logits.dtype == expected


def test_inference_only_gives_the_same_logits_from_a_smaller_file(network, tmp_path):
    model = network(correlation_channels=64).eval()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "slim", inference_only=True)
    assert model.correlation is not None and model.config.correlation_head
    assert json.loads((tmp_path / "slim" / "config.json").read_text())["correlation_head"] is False

    slim, info = CorrMatchForSegmentation.from_pretrained(tmp_path / "slim", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and slim.correlation is None
    assert torch.equal(
        copy.deepcopy(slim)(IMAGES).logits, model(IMAGES).logits
    )  # at even addresses, as the other
    whole, slimmed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "slim"))
    assert {k for k in whole if not k.startswith("correlation.")} == slimmed.keys() < whole.keys()

    # as transformers calls it, by position
    doubled = {key: 2 * value for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "given", True, doubled, inference_only=True)
    key = "decoder.classify.weight"
    assert torch.equal(load_file(tmp_path / "given" / "model.safetensors")[key], doubled[key])

    slim.save_pretrained(tmp_path / "again", inference_only=True)  # has nothing left to leave out
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == slimmed.keys()


def test_a_slim_model_gets_a_new_correlation_head_where_asked(network, tmp_path):
    network().save_pretrained(tmp_path, inference_only=True)
    model, info = CorrMatchForSegmentation.from_pretrained(
        tmp_path, correlation_head=True, output_loading_info=True
    )
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"correlation"}
    assert model(IMAGES, output_correlation=True).correlation_logits.isfinite().all()


def test_errors_of_the_caller_are_not_blamed_on_the_files(network, tmp_path):
    network().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such_option'"):
        CorrMatchForSegmentation.from_pretrained(tmp_path, no_such_option=1)
    with pytest.raises(RuntimeError, match="meta device context manager"), torch.device("meta"):
        CorrMatchForSegmentation.from_pretrained(tmp_path)

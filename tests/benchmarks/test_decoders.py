"""The counts of the decoders' benchmark are those of closed forms, and of the same step with contents."""

import multiprocessing.dummy

import pytest
import torch
from torch import nn

from benchmarks import decoders
from benchmarks.counting import flops, without_contents
from benchmarks.decoders import BF16, CHECKPOINTED, FROZEN, PLAIN
from corrmatch_hf.model import pixel_propagation
from corrmatch_hf.model.convolutions_corrmatch import Conv3x3
from corrmatch_hf.training.memory import estimate_memory

ENCODER, CROP, IMAGES = "test_vit", 64, 2  # patches of 16 pixels
GRID = CROP // 16
# As few blocks as DPT needs, with DINOv2's layer scales.
ENCODER_KWARGS = {"encoder_kwargs": {"depth": 4, "init_values": 1e-5}}
SMALL = {"decoder_channels": 8, **ENCODER_KWARGS}


def counted(method, mode):
    return decoders.counted(method, mode, ENCODER, IMAGES, CROP, **SMALL)


def vit(images: int) -> tuple[int, int, int]:
    """FLOPs of the test encoder on so many images: patches, all layers of its blocks, all attention."""
    model = decoders.network(ENCODER, "linear", **ENCODER_KWARGS).encoder.body.model
    tokens, dim, depth = GRID**2 + model.num_prefix_tokens, model.embed_dim, len(model.blocks)
    ratio = model.blocks[0].mlp.fc1.out_features / dim
    layers = 2 * tokens * dim * (3 * dim + dim + 2 * ratio * dim)  # query, key, value; their projection; MLP
    attention = 2 * tokens**2 * dim * 2
    patches = 2 * GRID**2 * (3 * 16 * 16) * dim
    return images * patches, images * depth * int(layers), images * depth * attention


def convolutions(model: nn.Module, run) -> int:
    """Weights times the places where each is applied, read off the layers while they run."""
    total = 0

    def add(layer, inputs, output):
        nonlocal total
        at = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        taps = 1.0
        if isinstance(layer, Conv3x3):  # outer taps that only reach the padding are skipped
            taps = 3.0 ** -sum(layer.dilation[0] >= side for side in at.shape[2:])
        total += round(2 * layer.weight.numel() * taps) * at.shape[0] * at.shape[2] * at.shape[3]

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(add)
    run()
    return total


@pytest.mark.parametrize(
    ("encoder", "decoder", "config"),
    [
        (ENCODER, "dpt", SMALL),
        (ENCODER, "linear", ENCODER_KWARGS),
        ("test_resnet", "deeplabv3plus", {"aspp_channels": 16}),
    ],
)
def test_forward(encoder, decoder, config):
    with torch.device("meta"):
        empty = decoders.network(encoder, decoder, **config)
    encoding, decoding = decoders.network_flops(empty, CROP)
    model = decoders.network(encoder, decoder, **config)
    with torch.no_grad():
        features = model.encode(torch.zeros(1, 3, CROP, CROP))
        assert decoding == convolutions(model.decoder, lambda: model.decode(features)) > 0
        if encoder == ENCODER:
            assert encoding == sum(vit(1))
        else:
            image = torch.zeros(1, 3, CROP, CROP)
            assert encoding == convolutions(model.encoder, lambda: model.encode(image)) > 0


@pytest.mark.parametrize(
    ("layer", "places"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 6 * 7),  # depthwise
        (nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4), 3 * 4),
        (nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2), 6 * 7),
        (nn.Conv2d(8, 4, 1), 6 * 7),
    ],
)
def test_the_gradients_of_a_grouped_convolution(layer, places):
    with without_contents(layer):
        image = torch.empty(3, 8, 6, 7, requires_grad=True)
        forward = flops(lambda: layer(image))
        assert forward == 3 * places * 2 * layer.weight.numel()
        assert flops(lambda: layer(image).sum().backward()) == 3 * forward
        assert flops(lambda: layer(image.detach()).sum().backward()) == 2 * forward


def test_a_step():
    patches, layers, attention = vit(IMAGES)
    plain, again, bf16, frozen = (counted("supervised", mode) for mode in (PLAIN, CHECKPOINTED, BF16, FROZEN))
    # The gradients of input and weight; five products where forward has two; images need no gradient.
    assert plain.encoder_backward == patches + 2 * layers + attention * 5 // 2
    assert again.encoder_backward == plain.encoder_backward + layers + attention
    assert frozen.encoder_backward == 0
    assert plain.encoder_forward == again.encoder_forward == frozen.encoder_forward == sum(vit(IMAGES))
    assert plain.other_forward == again.other_forward == frozen.other_forward > 0
    assert bf16.flops == plain.flops
    # What the decoder's first layers see needs a gradient no more.
    first = decoders.network(ENCODER, "dpt", **SMALL).decoder.project
    inputs = IMAGES * GRID**2 * sum(2 * layer.weight.numel() for layer in first)
    assert plain.other_backward - frozen.other_backward == inputs
    assert frozen.kept < again.kept < plain.kept


@pytest.mark.parametrize(("images", "partners"), [(1, 1), (2, 0)])
def test_passes_of_unimatch_v2(images, partners):
    """Labelled images, two strong views; of the teacher weak views, and partners that are not among them."""
    count = decoders.counted("unimatch_v2", FROZEN, ENCODER, images, CROP, **SMALL)
    assert count.encoder_forward == sum(vit(3 * images + images + partners))


@pytest.mark.parametrize(
    ("method", "mode"),
    [("unimatch_v2", CHECKPOINTED), ("corrmatch", FROZEN)],
)
def test_bytes_are_those_of_a_step_with_contents(method, mode):
    trained, _ = decoders.training(method, mode, ENCODER, **SMALL)
    batch = decoders.step_batch(trained, IMAGES, CROP)
    found = estimate_memory(trained, "adamw", average=False, batch=batch, times=1)
    expected = counted(method, mode)
    assert expected.kept == found.activations
    assert expected.memory - expected.kept == found.weights


def test_pixel_propagation():
    n, dim, classes, side = 2, 5, 3, 6
    module = nn.Module()
    with without_contents(module):
        query, key = (torch.empty(n, dim, side, side, requires_grad=True) for _ in range(2))
        logits = torch.empty(n, classes, side, side)
        results = []
        forward = flops(lambda: results.append(pixel_propagation(query, key, logits)))
        backward = flops(lambda: results[0].sum().backward())
    matrix = n * side**4
    assert forward == 2 * matrix * dim + 2 * matrix * classes
    assert backward == 2 * matrix * dim + 2 * matrix * classes + 2 * (2 * matrix * dim)


def test_tables(monkeypatch):
    # Threads, which start faster than processes.
    monkeypatch.setattr(decoders.multiprocessing, "get_context", lambda method: multiprocessing.dummy)
    rows = list(decoders.network_rows(ENCODER, CROP, {"dpt": SMALL, "linear": ENCODER_KWARGS}, repeats=1))
    assert [cell.strip() for cell in rows[0].split("|")][1:3] == [f"{ENCODER}, {CROP}", "dpt"]
    assert all(row.count("|") == decoders.NETWORK_HEADER.split("\n")[0].count("|") for row in rows)
    monkeypatch.setattr(decoders, "MODES", (PLAIN, FROZEN))
    rows = list(decoders.step_rows(ENCODER, IMAGES, CROP, ("supervised",), **SMALL))
    assert len(rows) == 2
    assert all(row.count("|") == decoders.STEP_HEADER.split("\n")[0].count("|") for row in rows)
    rows = list(decoders.measured_rows(ENCODER, IMAGES, CROP, 1, modes=(PLAIN, FROZEN), **SMALL))
    assert all(row.count("|") == decoders.MEASURED_HEADER.split("\n")[0].count("|") for row in rows)
    seconds, ratio, counted_ratio = (float(cell) for cell in rows[1].split("|")[2:5])
    assert seconds > 0 and ratio > 0 and counted_ratio < 1

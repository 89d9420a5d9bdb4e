"""The network is the authors': one of their checkpoints gives their logits here."""

import json

import numpy as np
import pytest
import torch

from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation

PREFIXES = {  # theirs: ours
    "backbone.": "encoder.body.",
    "head.b0.0.": "decoder.aspp.point.conv.",
    "head.b0.1.": "decoder.aspp.point.norm.",
    **{f"head.b{i}.0.": f"decoder.aspp.dilated.{i - 1}.conv." for i in (1, 2, 3)},
    **{f"head.b{i}.1.": f"decoder.aspp.dilated.{i - 1}.norm." for i in (1, 2, 3)},
    "head.b4.gap.1.": "decoder.aspp.pooled.conv.",
    "head.b4.gap.2.": "decoder.aspp.pooled.norm.",
    "head.project.0.": "decoder.aspp.project.conv.",
    "head.project.1.": "decoder.aspp.project.norm.",
    "reduce.0.": "decoder.fuse.reduce.conv.",
    "reduce.1.": "decoder.fuse.reduce.norm.",
    "fuse.0.": "decoder.fuse.convs.0.conv.",
    "fuse.1.": "decoder.fuse.convs.0.norm.",
    "fuse.3.": "decoder.fuse.convs.1.conv.",
    "fuse.4.": "decoder.fuse.convs.1.norm.",
    "classifier.": "decoder.classify.",
    "proj.0.": "correlation.project.conv.",
    "proj.1.": "correlation.project.norm.",
    "corr.conv1.": "correlation.query.",
    "corr.conv2.": "correlation.key.",
}


def our_name(name):
    theirs = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[theirs] + name.removeprefix(theirs)


@pytest.fixture(scope="module")
def model():
    config = CorrMatchConfig(encoder_name="resnet50s", output_stride=8, num_labels=21)
    return CorrMatchForSegmentation(config).eval()


def test_same_names_and_shapes(model, shared_dir):
    shapes = json.loads((shared_dir / "reference" / "official_resnet50_state_dict_shapes.json").read_text())
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert {our_name(key.removeprefix("module.")): shape for key, shape in shapes.items()} == ours


def test_same_logits(model, shared_dir):
    with np.load(shared_dir / "reference" / "official_resnet50_ternary.npz") as file:
        ref = {key: torch.from_numpy(file[key]) for key in file.files}
    state = {}
    for key, value in ref.items():
        if key.endswith("|t"):
            state[our_name(key[:-2])] = value.float() * ref[key[:-2] + "|s"]
        elif not key.startswith(("in.", "out.")) and not key.endswith("|s"):
            state[our_name(key)] = value
    state |= {key: torch.tensor(1) for key in model.state_dict() if key.endswith("num_batches_tracked")}
    model.load_state_dict(state)

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        output = model((ref["in.image_uint8"] / 255 - mean) / std, output_correlation=True)
    for name, ours in (("out.logits", output.logits), ("out.corr_logits", output.correlation_logits)):
        error = (ours[..., ::4, ::4] - ref[name]).abs().max()
        assert error < 1e-3 * ref[name].std(), (name, error, ref[name].std())
    assert torch.equal(output.logits.argmax(1), ref["out.argmax"].long())

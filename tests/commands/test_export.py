"""The command in this process; the file is then used as somebody would who has nothing else."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.commands import export as command
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation.export import compare, write_onnx, write_torch

from ..conftest import ID2LABEL

SMALL = {"id2label": ID2LABEL, "aspp_channels": 8, "decoder_channels": 8, "correlation_channels": 8}
RESNET = {
    "encoder_name": "resnet18",
    "encoder_kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]},
}
MODELS = {
    "resnet": RESNET | {"decoder_separable": True},  # with a correlation head, which the file does not need
    "dinov3": {
        "encoder_name": "vit_small_patch16_dinov3",
        "encoder_kwargs": {"depth": 3, "embed_dim": 48, "num_heads": 2},
        "decoder_type": "linear",
    },
    "dinov2": {
        "encoder_name": "vit_small_patch14_reg4_dinov2",
        "encoder_kwargs": {"depth": 4, "embed_dim": 48, "num_heads": 2},
        "decoder_type": "dpt",
    },
    "beit": {
        "encoder_name": "beit_base_patch16_224",
        "encoder_kwargs": {"depth": 3, "embed_dim": 48, "num_heads": 2, "img_size": [64, 96]},
        "decoder_type": "linear",
    },
}


def save_model(folder, **options):
    """A tiny model in which positions matter, as after training, and a normalisation of its own."""
    torch.manual_seed(0)
    model = CorrMatchForSegmentation(CorrMatchConfig(**(SMALL | options)))
    with torch.no_grad():
        for key, parameter in model.encoder.named_parameters():
            if "gamma" in key:
                parameter.fill_(1)
            elif any(
                part in key for part in ("qkv", "q_proj", "k_proj", "v_proj", "pos_embed", "bias_table")
            ):
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    CorrMatchImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), **RESNET)


def photo_and_logits(model_folder, size):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    model = CorrMatchForSegmentation.from_pretrained(model_folder)
    processor = CorrMatchImageProcessor.from_pretrained(model_folder)
    with torch.no_grad():
        return photo, model(**processor(images=photo, return_tensors="pt")).logits.numpy()


def prepare(photo, metadata):
    mean, std, factor = (json.loads(metadata[key]) for key in ("image_mean", "image_std", "rescale_factor"))
    pixels = (np.asarray(photo) * factor - mean) / std
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


@pytest.mark.parametrize(
    ("name", "file", "sizes"),
    [
        ("resnet", "model.onnx", ["1 x 97 x 131", "3 x 64 x 160", "1 x 257 x 193"]),
        ("dinov3", "model.onnx", ["1 x 97 x 131", "3 x 64 x 160", "1 x 257 x 193"]),
        ("dinov2", "model.pt2", ["1 x 85 x 115", "3 x 56 x 140", "1 x 225 x 169"]),
        ("beit", "model.onnx", ["1 x 64 x 96", "3 x 64 x 96", "4 x 64 x 96"]),
    ],
)
def test_the_file_is_enough_to_segment_a_photo(name, file, sizes, tmp_path, capsys):
    """Of any size; of one size, for BEiT."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = save_model(tmp_path / "model", **MODELS[name])
    output = tmp_path / "new" / file
    kind = "torch" if file.endswith(".pt2") else "onnx"
    command.main(["--model", str(folder), "--output", str(output), "--format", kind])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == sizes
    assert [path.name for path in output.parent.iterdir()] == [file]  # the weights are inside

    only = [64, 96] if name == "beit" else None
    photo, expected = photo_and_logits(folder, only or (75, 110))
    run = {"torch": run_torch, "onnx": run_onnx}[kind]
    metadata, found = run(output, photo, only)
    assert json.loads(metadata["id2label"]) == {str(i): label for i, label in ID2LABEL.items()}
    assert json.loads(metadata["image_size"]) == only and json.loads(metadata["size_multiple"]) == 1
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def run_onnx(path, photo, only):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    size = only or ("height", "width")
    assert session.get_inputs()[0].shape == ["batch", 3, *size]
    assert session.get_outputs()[0].shape == ["batch", len(ID2LABEL), *size]
    metadata = session.get_modelmeta().custom_metadata_map
    return metadata, session.run(["logits"], {"pixel_values": prepare(photo, metadata)})[0]


def run_torch(path, photo, only):
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert not any(name.startswith("model.correlation") for name in program.state_dict)
    metadata = json.loads(extra["metadata.json"])
    with torch.no_grad():
        return metadata, program.module()(torch.from_numpy(prepare(photo, metadata))).numpy()


def test_an_encoder_padded_like_tensorflow(saved_model, tmp_path, capsys):
    """The built-in dataset's encoder pools like this."""
    output = tmp_path / "model.pt2"
    command.main(["--model", str(saved_model), "--format", "torch", "--output", str(output)])
    assert "3 x 64 x 160: logits differ by" in capsys.readouterr().out


def test_a_file_that_gives_something_else_is_not_passed(model_folder):
    model = CorrMatchForSegmentation.from_pretrained(model_folder)

    def run(image, factor=1.0, swap=False):
        with torch.no_grad():
            logits = model(image).logits * factor
        return logits.flip(1) if swap else logits

    assert "classes at 0 of" in compare(model, run, (2, 33, 47))
    with pytest.raises(InputError, match="different logits"):
        compare(model, lambda image: run(image, factor=1.001), (2, 33, 47))
    with pytest.raises(InputError, match="different logits"):
        compare(model, lambda image: run(image, swap=True), (2, 33, 47))
    with pytest.raises(InputError, match="different logits"):
        compare(model, lambda image: run(image)[..., :-1], (2, 33, 47))
    with pytest.raises(InputError, match="different logits"):
        compare(model, lambda image: run(image) * float("nan"), (2, 33, 47))

    def insists(image):
        raise AssertionError("Guard failed:\nheight == 6")

    with pytest.raises(
        InputError, match=r"At 2 x 33 x 47 .* fails \(Guard failed: height == 6\): use the other"
    ):
        compare(model, insists, (2, 33, 47))


def test_what_cannot_be_exported_is_told(model_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"No segmentation model .*nowhere"):
        command.main(["--model", str(tmp_path / "nowhere"), "--format", "torch"])
    with pytest.raises(InputError, match=r"end in \.pt2"):
        command.main(
            ["--model", str(model_folder), "--format", "torch", "--output", str(tmp_path / "a.onnx")]
        )
    with pytest.raises(InputError, match="is a folder"):
        command.main(["--model", str(model_folder), "--output", str(tmp_path)])
    with pytest.raises(InputError, match="use --format onnx"):
        write_torch("no program", tmp_path / "a.pt2", {})
    assert not (tmp_path / "a.pt2").exists()

    def translate(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("no such operator\nand 100 lines")

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", translate)
        with pytest.raises(InputError, match=r"encoder \(no such operator\): use --format torch"):
            write_onnx(None, tmp_path / "model.onnx", {})
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(InputError, match=r"onnxruntime .*pip install corrmatch-hf\[onnx\]"):
        command.main(["--model", str(model_folder), "--output", str(tmp_path / "model.onnx")])
    assert not (tmp_path / "model.onnx").exists()

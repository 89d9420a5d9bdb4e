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
from corrmatch_hf.evaluation.export import compare, write_onnx

from .conftest import ID2LABEL


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny network with a correlation head, and a normalisation of its own."""
    torch.manual_seed(0)
    config = CorrMatchConfig(
        encoder_name="resnet18", encoder_kwargs={"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]},
        id2label=ID2LABEL, aspp_channels=8, decoder_channels=8, correlation_channels=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    CorrMatchForSegmentation(config).save_pretrained(folder)
    CorrMatchImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]).save_pretrained(folder)
    return folder


def photo_and_logits(model_folder):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 110, 3), dtype=np.uint8))
    model = CorrMatchForSegmentation.from_pretrained(model_folder)
    processor = CorrMatchImageProcessor.from_pretrained(model_folder)
    with torch.no_grad():
        return photo, model(**processor(images=photo, return_tensors="pt")).logits.numpy()


def prepare(photo, metadata):
    mean, std, factor = (json.loads(metadata[key]) for key in ("image_mean", "image_std", "rescale_factor"))
    pixels = (np.asarray(photo) * factor - mean) / std
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def test_an_onnx_file_is_enough_to_segment_a_photo(model_folder, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    output = tmp_path / "new" / "model.onnx"
    command.main(["--model", str(model_folder), "--output", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["1 x 97 x 131", "3 x 64 x 160", "1 x 257 x 193"]
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]  # the weights are inside

    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 3, "height", "width"]  # three classes
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["id2label"]) == {str(i): name for i, name in ID2LABEL.items()}
    photo, expected = photo_and_logits(model_folder)
    found = session.run(["logits"], {"pixel_values": prepare(photo, metadata)})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def test_a_program_of_torch_export(model_folder, tmp_path):
    output = tmp_path / "model.pt2"
    command.main(["--model", str(model_folder), "--format", "torch", "--output", str(output)])
    extra = {"metadata.json": ""}
    program = torch.export.load(output, extra_files=extra)
    assert not any(name.startswith("model.correlation") for name in program.state_dict)
    photo, expected = photo_and_logits(model_folder)
    with torch.no_grad():
        found = program.module()(torch.from_numpy(prepare(photo, json.loads(extra["metadata.json"]))))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * np.abs(expected).max())


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


@pytest.mark.parametrize(
    "encoder, decoder, file, sizes",
    [
        ("vit_small_patch16_dinov3", "dpt", "model.onnx", ["1 x 97 x 131", "3 x 64 x 160", "1 x 257 x 193"]),
        (
            "vit_small_patch14_reg4_dinov2",
            "dpt",
            "model.pt2",
            ["1 x 85 x 115", "3 x 56 x 140", "1 x 225 x 169"],
        ),
        ("eva02_tiny_patch14_224", "linear", "model.onnx", ["1 x 85 x 115", "3 x 56 x 140", "1 x 225 x 169"]),
        ("beit_base_patch16_224", "linear", "model.onnx", ["1 x 64 x 96", "3 x 64 x 96", "4 x 64 x 96"]),
    ],
)
def test_plain_transformers(encoder, decoder, file, sizes, tmp_path, capsys):
    """Patches, positions and DPT's four sizes, for images that are brought to whole patches; of one size, for BEiT."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    only = [64, 96] if "beit" in encoder else None
    kwargs = {"depth": 4, "embed_dim": 48, "num_heads": 2} | ({"img_size": only} if only else {})
    config = CorrMatchConfig(
        encoder_name=encoder, encoder_kwargs=kwargs, decoder=decoder, id2label=ID2LABEL, decoder_channels=8,
        correlation_channels=8,
    )  # fmt: skip
    model = CorrMatchForSegmentation(config)
    with torch.no_grad():  # as after training: positions matter, which hardly show in a new network
        for key, parameter in model.encoder.named_parameters():
            if "gamma" in key:
                parameter.fill_(1)
            elif any(
                part in key for part in ("qkv", "q_proj", "k_proj", "v_proj", "pos_embed", "bias_table")
            ):
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "model")
    CorrMatchImageProcessor().save_pretrained(tmp_path / "model")
    output = tmp_path / file
    command.main(
        ["--model", str(tmp_path / "model"), "--output", str(output)]
        + (["--format", "torch"] if file.endswith(".pt2") else [])
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == sizes
    if file.endswith(".pt2"):
        torch.export.load(output, extra_files=(extra := {"metadata.json": ""}))
        metadata = json.loads(extra["metadata.json"])
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == ["batch", 3, *(only or ("height", "width"))]
        metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["image_size"]) == only and json.loads(metadata["size_multiple"]) == 1


def test_what_cannot_be_exported_is_told(model_folder, saved_model, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"No segmentation model .*nowhere"):
        command.main(["--model", str(tmp_path / "nowhere"), "--format", "torch"])
    with pytest.raises(InputError, match=r"end in \.pt2"):
        command.main(
            ["--model", str(model_folder), "--format", "torch", "--output", str(tmp_path / "a.onnx")]
        )
    with pytest.raises(InputError, match="is a folder"):
        command.main(["--model", str(model_folder), "--output", str(tmp_path)])
    # pooled with the padding of TensorFlow, in whose sizes there is a rounding that torch cannot write
    with pytest.raises(InputError, match="use --format onnx"):
        command.main(["--model", str(saved_model), "--format", "torch", "--output", str(tmp_path / "a.pt2")])
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

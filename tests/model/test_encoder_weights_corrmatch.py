import pickle

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from corrmatch_hf.model import CorrMatchForSegmentation


@pytest.fixture
def resnet_file(tmp_path):
    """A file of the whole timm model, with a classifier of its own."""
    path = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18", num_classes=7).state_dict(), path)
    return path


def test_real_weights(shared_dir, config):
    path = shared_dir / "weights" / "mobilenetv2_100.safetensors"
    mobile = config(encoder_name="mobilenetv2_100")
    model = CorrMatchForSegmentation.from_encoder_pretrained(mobile, path).eval()
    overlay = {"file": str(path), "hf_hub_id": None, "url": ""}
    expected = timm.create_model(
        "mobilenetv2_100",
        pretrained=True,
        features_only=True,
        output_stride=16,
        out_indices=(1, 4),
        pretrained_cfg_overlay=overlay,
    ).eval()
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        for ours, theirs in zip(model.encode(image), expected(image), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "hrnet_w18_small"])
def test_names_are_translated(name, config, tmp_path):
    """A feature encoder has other names than the model whose weights the file holds."""
    full = timm.create_model(name, num_classes=3).eval()
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    model = CorrMatchForSegmentation.from_encoder_pretrained(
        config(encoder_name=name, output_stride=32), tmp_path / "full.safetensors"
    ).eval()
    # the stem is untouched by image size, stride or selection of levels
    stem = next(iter(full.state_dict().values()))
    assert torch.equal(next(iter(model.encoder.body.state_dict().values())), stem)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_torch_files(suffix, wrap, resnet_file, config):
    state = load_file(resnet_file)
    path = resnet_file.with_suffix(suffix)
    torch.save(wrap(state), path)
    model = CorrMatchForSegmentation.from_encoder_pretrained(config(), path)
    assert torch.equal(model.encoder.body.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_missing_weights_are_listed(resnet_file, config):
    state = load_file(resnet_file)
    del state["layer3.0.conv1.weight"], state["layer2.0.bn1.running_mean"], state["fc.weight"]
    save_file(state, resnet_file)
    with pytest.raises(ValueError, match=r"lacks .*: layer2.0.bn1.running_mean, layer3.0.conv1.weight\. "):
        CorrMatchForSegmentation.from_encoder_pretrained(config(), resnet_file)


def test_wrong_shapes_are_listed(resnet_file, config):
    state = load_file(resnet_file)
    state["layer3.0.conv1.weight"] = torch.zeros(3, 3)
    save_file(state, resnet_file)
    with pytest.raises(ValueError, match=r"does not fit encoder 'resnet18'.*layer3.0.conv1.weight"):
        CorrMatchForSegmentation.from_encoder_pretrained(config(), resnet_file)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv2_100", "resnet50"])
def test_weights_of_another_model(name, resnet_file, config):
    with pytest.raises(ValueError, match=f"{name}"):
        CorrMatchForSegmentation.from_encoder_pretrained(config(encoder_name=name), resnet_file)


class Malicious:
    def __reduce__(self):
        return print, ("code from a checkpoint",)


def test_files_that_run_code_are_refused(tmp_path, config, capsys):
    path = tmp_path / "evil.pth"
    with open(path, "wb") as file:
        pickle.dump(Malicious(), file)
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        CorrMatchForSegmentation.from_encoder_pretrained(config(), path)
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": Malicious()}, path)
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        CorrMatchForSegmentation.from_encoder_pretrained(config(), path)
    assert "code from" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.pth", None, "There is no file"),
        ("weights.onnx", b"x", "must be a .safetensors, .pth, .pt, .bin file"),
        ("broken.safetensors", b"not a file", "cannot be read as plain weights"),
        ("broken.pth", b"not a file", "cannot be read as plain weights"),
    ],
)
def test_unusable_files(name, content, message, tmp_path, config):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        CorrMatchForSegmentation.from_encoder_pretrained(config(), tmp_path / name)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2)])
def test_files_without_weights(content, tmp_path, config):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"contains no weights|cannot be read as plain weights"):
        CorrMatchForSegmentation.from_encoder_pretrained(config(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet18.no_such_tag", r"Invalid pretrained tag \(no_such_tag\)"),
        ("mobilenetv2_035", r"no pretrained weights for 'mobilenetv2_035' \(it has: none\)"),
    ],
)
def test_pretrained_weights_that_do_not_exist(name, message, config):
    with pytest.raises(ValueError, match=message):
        CorrMatchForSegmentation.from_encoder_pretrained(config(encoder_name=name))

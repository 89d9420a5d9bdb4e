"""Checkpoints of the authors through the command, against the authors' outputs and an independent network."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import resnet50

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.commands.convert import main
from corrmatch_hf.commands.predict import main as predict
from corrmatch_hf.errors import InputError
from corrmatch_hf.official.convert import to_official
from corrmatch_hf.official.published import PUBLISHED
from tests.official.test_dpt import TINY, random_state, their_logits


@pytest.fixture(scope="module")
def reference(shared_dir):
    with np.load(shared_dir / "reference" / "official_resnet50_ternary.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="module")
def state(reference):
    """The weights of the reference checkpoint, under the authors' names."""
    state = {}
    for key, value in reference.items():
        if key.endswith("|t"):
            state[key[:-2]] = value.float() * reference[key[:-2] + "|s"]
        elif not key.startswith(("in.", "out.")) and not key.endswith("|s"):
            state[key] = value.float()
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    return state | {f"{norm}num_batches_tracked": torch.tensor(1) for norm in norms}


@pytest.fixture(scope="module")
def image(reference):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (reference["in.image_uint8"] / 255 - mean) / std


@pytest.fixture(scope="module")
def converted(state, tmp_path_factory):
    """The reference checkpoint as data-parallel training saves it, and the folder made of it."""
    folder = tmp_path_factory.mktemp("converted")
    checkpoint = folder / "corrmatch.pth"
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 79}, checkpoint)
    main([str(checkpoint), str(folder / "model"), "--recipe", "pascal"])
    return folder / "model"


def test_a_converted_checkpoint_gives_the_authors_logits(converted, reference, image):
    model = CorrMatchForSegmentation.from_pretrained(converted)
    assert model.config.output_stride == 8 and model.config.correlation_head
    with torch.no_grad():
        output = model(image, output_correlation=True)
    for name, ours in (("out.logits", output.logits), ("out.corr_logits", output.correlation_logits)):
        error = (ours[..., ::4, ::4] - reference[name]).abs().max()
        assert error < 1e-3 * reference[name].std(), (name, error, reference[name].std())
    assert torch.equal(output.logits.argmax(1), reference["out.argmax"].long())


def test_the_folder_is_a_whole_model(converted):
    names = {path.name for path in converted.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "modeling_corrmatch.py"} <= names
    assert "README.md" not in names
    config = json.loads((converted / "config.json").read_text())
    assert config["encoder_name"] == "resnet50s" and config["encoder_origin"] is None
    assert (
        config["converted_from"]["file"] == "corrmatch.pth" and len(config["converted_from"]["sha256"]) == 64
    )
    assert config["id2label"]["0"] == "background" and config["id2label"]["20"] == "tvmonitor"
    assert CorrMatchImageProcessor.from_pretrained(converted).ignore_index == 255


def test_theirs_to_ours_to_theirs_is_the_same(converted, state, tmp_path, capsys):
    main([str(converted), str(tmp_path / "new" / "back.pth"), "--data_parallel"])
    again = torch.load(tmp_path / "new" / "back.pth", weights_only=True, mmap=True)
    assert again.keys() == {f"module.{key}" for key in state}
    for key, value in state.items():
        assert torch.equal(again[f"module.{key}"], value) and again[f"module.{key}"].dtype == value.dtype, key
    assert "written to" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"back.pth exists; nothing is overwritten"):
        main([str(converted), str(tmp_path / "new" / "back.pth")])


def unimatch(state, image):
    """UniMatch V1's network at output stride 16, from its description: torchvision's ResNet with a deep stem."""
    encoder = resnet50(replace_stride_with_dilation=[False, False, True])
    stem = [
        nn.Conv2d(i, o, 3, stride, 1, bias=False) for i, o, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1))
    ]
    encoder.conv1 = nn.Sequential(
        stem[0], nn.BatchNorm2d(64), nn.ReLU(), stem[1], nn.BatchNorm2d(64), nn.ReLU(), stem[2]
    )
    encoder.bn1 = nn.BatchNorm2d(128)
    encoder.layer1[0].conv1 = nn.Conv2d(128, 64, 1, bias=False)
    encoder.layer1[0].downsample[0] = nn.Conv2d(128, 256, 1, bias=False)
    encoder.fc = nn.Identity()
    prefix = "backbone."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    encoder.eval()

    def layer(x, name, place=0, dilation=1):
        weight = state[f"{name}.{place}.weight"]
        x = F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
        norm = [
            state[f"{name}.{place + 1}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.relu(F.batch_norm(x, *norm))

    def enlarged(x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    low = encoder.layer1(encoder.maxpool(F.relu(encoder.bn1(encoder.conv1(image)))))
    high = encoder.layer4(encoder.layer3(encoder.layer2(low)))
    branches = [layer(high, "head.b0")]
    branches += [layer(high, f"head.b{i}", dilation=6 * i) for i in (1, 2, 3)]
    pooled = layer(F.adaptive_avg_pool2d(high, 1), "head.b4.gap", 1)
    aspp = layer(torch.cat([*branches, enlarged(pooled, high.shape[-2:])], 1), "head.project")
    fused = torch.cat([layer(low, "reduce"), enlarged(aspp, low.shape[-2:])], 1)
    fused = layer(layer(fused, "fuse"), "fuse", 3)
    logits = F.conv2d(fused, state["classifier.weight"], state["classifier.bias"])
    return enlarged(logits, image.shape[-2:])


def test_a_unimatch_checkpoint_gives_unimatchs_logits(state, image, tmp_path, capsys):
    state = {key: value for key, value in state.items() if not key.startswith(("corr.", "proj."))}
    state["classifier.weight"], state["classifier.bias"] = (
        state["classifier.weight"][:19],
        state["classifier.bias"][:19],
    )
    torch.save({"model": state, "previous_best": np.float64(76.6)}, tmp_path / "unimatch.pth")
    main([str(tmp_path / "unimatch.pth"), str(tmp_path / "model"), "--recipe", "cityscapes"])
    printed = capsys.readouterr().out
    assert "16, with dilation rates 6, 12, 18" in printed and "--window 801" in printed

    model = CorrMatchForSegmentation.from_pretrained(tmp_path / "model")
    assert model.config.id2label[0] == "road" and model.correlation is None
    with torch.no_grad():
        expected, ours = unimatch(state, image), model(image).logits
    assert (ours - expected).abs().max() < 1e-3 * expected.std()
    assert torch.equal(ours.argmax(1), expected.argmax(1))


@pytest.fixture
def checkpoint(tmp_path):
    """Of 3 classes; one number for each weight makes a small file."""
    config = CorrMatchConfig(
        encoder_name="resnet50s", num_labels=3, correlation_head=False, aspp_channels=8, decoder_channels=8
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in to_official(CorrMatchForSegmentation(config)).items()}
    torch.save({name: torch.ones(()).expand(shape) for name, shape in shapes.items()}, tmp_path / "own.pth")
    return tmp_path / "own.pth"


def test_class_names_of_ones_own(checkpoint, tmp_path, capsys):
    (tmp_path / "names.json").write_text('{"0": "sky", "1": "road", "2": "car"}')
    out = tmp_path / "out"
    main([str(checkpoint), str(out), "--output_stride", "8", "--id2label", str(tmp_path / "names.json")])
    config = CorrMatchForSegmentation.from_pretrained(out).config
    assert config.id2label == {0: "sky", 1: "road", 2: "car"} and config.output_stride == 8
    printed = capsys.readouterr().out
    assert "3: sky, road, car" in printed and "resnet50s" in printed and "correlation head  no" in printed
    for command in ("predict photo.jpg --model", "evaluate --model", "push"):
        assert f"corrmatch {command} {out}" in printed

    before = (out / "config.json").read_bytes()
    with pytest.raises(InputError, match="exists and is not empty; nothing is overwritten"):
        main([str(checkpoint), str(out), "--output_stride", "16"])
    assert (out / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--recipe", "pascal"], "has 3 classes, so 3 names are needed.*given are 21"),
        ([], "output stride is not in a checkpoint"),
        (["--recipe", "pascal", "--id2label", "x.json"], "both name the classes"),
        (["--output_stride", "8", "--id2label", "none.json"], "none.json cannot be read"),
        (["--recipe", "pascal", "--data_parallel"], "--data_parallel is for writing"),
    ],
)
def test_contradictions_are_refused_and_write_nothing(checkpoint, tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        main([str(checkpoint), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_meant(checkpoint, saved_model, tmp_path):
    with pytest.raises(InputError, match="is a folder; to write a checkpoint"):
        main([str(saved_model), str(tmp_path / "out"), "--recipe", "pascal"])
    with pytest.raises(InputError, match="is a file; to write a checkpoint"):
        main([str(checkpoint), str(tmp_path / "out.pth")])
    with pytest.raises(InputError, match="--recipe is for reading a checkpoint"):
        main([str(saved_model), str(tmp_path / "out.pth"), "--recipe", "pascal"])
    with pytest.raises(
        InputError, match="cannot be saved as a checkpoint of the authors: it has encoder test_resnet"
    ):
        main([str(saved_model), str(tmp_path / "out.pth")])
    assert not (tmp_path / "out.pth").exists()


@pytest.fixture
def second_version(tmp_path):
    """A checkpoint of UniMatch V2 with 19 classes, and the weights of its moving average."""
    student, average = (
        {key: factor * value.float() for key, value in random_state(*TINY[:-1], 19).items()}
        for factor in (0.9, 1)
    )
    contents = {"model": student, "model_ema": average, "epoch": 179, "previous_best": np.float64(83.6)}
    torch.save(contents, tmp_path / "v2.pth")
    return tmp_path / "v2.pth", average


def test_a_checkpoint_of_unimatch_v2(second_version, tmp_path, capsys):
    path, average = second_version
    out = tmp_path / "model"
    main([str(path), str(out), "--recipe", "cityscapes", "--key", "model_ema"])
    printed = capsys.readouterr().out
    assert "decoder           dpt\n" in printed and "output stride     14\n" in printed
    assert "--window 798" in printed
    model = CorrMatchForSegmentation.from_pretrained(out)
    assert model.config.encoder_kwargs["img_size"] == 798 and model.config.id2label[0] == "road"

    picture = np.random.default_rng(0).integers(0, 256, (798, 798, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    pixels = CorrMatchImageProcessor.from_pretrained(out)(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected, ours = their_logits(average, pixels, [0, 1, 2, 3]), model(pixels).logits
    assert (ours - expected).abs().max() < 1e-3 * expected.std()
    predict(["--model", str(out), "--output_dir", str(tmp_path / "drawn"), str(tmp_path / "photo.png")])
    (mask,) = (np.asarray(Image.open(file)) for file in (tmp_path / "drawn").glob("*mask.png"))
    assert (mask == expected.argmax(1)[0].numpy()).mean() > 0.9999

    with pytest.raises(InputError, match="images of 798x798 pixels instead of 518x518"):
        main([str(out), str(tmp_path / "back.pth")])


def test_unimatch_v2_needs_neither_recipe_nor_stride(second_version, tmp_path):
    path, average = second_version
    main([str(path), str(tmp_path / "model"), "--key", "model_ema"])
    main([str(tmp_path / "model"), str(tmp_path / "back.pth")])
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == average.keys()
    unused = [key for key in average if not torch.equal(back[key], average[key])]
    assert {key.rsplit(".", 2)[0] for key in unused} == {"backbone", "head.scratch.refinenet4.resConfUnit1"}
    for options, reason in (
        ([], "several sets of weights: choose one of model, model_ema with --key"),
        (["--key", "model", "--image_size", "800"], "image_size is 800"),
        (["--key", "model", "--output_stride", "16"], "output_stride is 16, but"),
    ):
        with pytest.raises(InputError, match=reason):
            main([str(path), str(tmp_path / "other"), *options])


def test_the_published_datasets_name_every_class_once():
    assert {name: len(set(dataset.classes)) for name, dataset in PUBLISHED.items()} == {
        "pascal": 21,
        "cityscapes": 19,
    }

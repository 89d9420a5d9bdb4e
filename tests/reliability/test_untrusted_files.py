"""Files that nobody vouches for: none runs a program, none fills the memory, each is refused with one sentence.

The payloads are real: what a test refuses makes a folder as soon as it is loaded the trusting way.
"""

import base64
import contextlib
import importlib.util
import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.data.images import open_picture
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.handler import EndpointHandler
from corrmatch_hf.hub.load import load_saved
from corrmatch_hf.hub.push import write_endpoint
from corrmatch_hf.model import encoder_corrmatch as encoder_weights_corrmatch
from corrmatch_hf.official.convert import from_official

ROOT = Path(__file__).resolve().parents[2]
NARROW = {"aspp_channels": 16, "low_level_channels": 8, "decoder_channels": 16, "correlation_channels": 16}


def tiny_config(**options) -> CorrMatchConfig:
    return CorrMatchConfig(**{"encoder_name": "test_resnet", "num_labels": 3, **NARROW, **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The folder of a model, with the files of an endpoint."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(1)
    CorrMatchForSegmentation(tiny_config()).save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    write_endpoint(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def trap(tmp_path) -> Path:
    """A folder that a payload makes."""
    return tmp_path / "made_by_the_payload"


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_pickle(contents, path):
    path.write_bytes(pickle.dumps(contents, protocol=2))


def write_legacy(contents, path):
    torch.save(contents, path, _use_new_zipfile_serialization=False)


WRITERS = {"zip": torch.save, "legacy": write_legacy, "plain pickle": write_pickle}
PLACES = {
    "alone": lambda state, payload: payload,
    "beside the weights": lambda state, payload: {**state, "note": payload},
    "nested": lambda state, payload: {"state_dict": state, "more": {"deep": [{"er": (payload,)}]}},
    "as a key's value of the weights": lambda state, payload: {"model": {**state, "weight": payload}},
}

# Every place, and every writer.
KINDS = [*(("zip", place) for place in PLACES), ("legacy", "nested"), ("plain pickle", "alone")]


def assert_real(path: Path, trap: Path) -> None:
    """The file does run its payload where it is loaded without care."""
    assert not trap.exists()
    with contextlib.suppress(Exception):  # of what is no file of torch's, it runs the beginning
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert trap.is_dir()


# Pickles


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("writer", "place", "suffix"),
    [*((*kind, ".pth") for kind in KINDS), ("zip", "nested", ".bin"), ("zip", "nested", ".safetensors")],
)
def test_encoder_weights_run_nothing(tmp_path, trap, writer, place, suffix):
    path = tmp_path / f"encoder{suffix}"
    state = timm.create_model("test_resnet").state_dict()
    WRITERS[writer](PLACES[place](state, Payload(trap)), path)
    with pytest.raises(ValueError, match=f"encoder{suffix} cannot be read as plain weights") as caught:
        CorrMatchForSegmentation.from_encoder_pretrained(tiny_config(), path)
    assert "\n" not in str(caught.value)
    assert_real(path, trap)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("writer", "place"), KINDS)
def test_official_checkpoints_run_nothing(tmp_path, trap, writer, place):
    path = tmp_path / "checkpoint.pth"
    WRITERS[writer](PLACES[place]({"classifier.weight": torch.zeros(1)}, Payload(trap)), path)
    for refuse in (
        lambda: from_official(path),
        lambda: run_command("convert", [str(path), str(tmp_path / "out"), "--recipe", "pascal"]),
    ):
        with pytest.raises(
            InputError, match=r"checkpoint.pth (cannot be read|contains more than weights)"
        ) as caught:
            refuse()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert_real(path, trap)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("writer", "place", "asked"), [*((*kind, True) for kind in KINDS), ("zip", "nested", False)]
)
def test_pytorch_model_bin_runs_nothing(folder, trap, writer, place, asked):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    WRITERS[writer](PLACES[place](state, Payload(trap)), path)
    options = {"use_safetensors": False} if asked else {}
    reason = "rejected and no code in them was run" if asked else "pass use_safetensors=False if you trust"
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin.*{reason}") as caught:
        CorrMatchForSegmentation.from_pretrained(folder, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        load_saved(str(folder))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        EndpointHandler(folder)
    assert_real(path, trap)


def test_a_harmless_pytorch_model_bin_loads_where_asked_for(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    model = CorrMatchForSegmentation.from_pretrained(folder, use_safetensors=False)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_pickle_that_is_called_safetensors_runs_nothing(folder, trap, writer):
    path = folder / "model.safetensors"
    WRITERS[writer]({"note": Payload(trap)}, path)
    with pytest.raises(
        ValueError, match=r"model\.safetensors of .* are corrupt, incomplete or in another format"
    ):
        CorrMatchForSegmentation.from_pretrained(folder)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_saved(str(folder))
    assert_real(path, trap)


# Code in a repository


@pytest.fixture
def repository_with_code(folder, trap) -> Path:
    """Every file of code that the model's configurations name makes the folder as soon as it is imported."""
    for file in folder.glob("*.py"):
        file.write_text(f"import os\nos.makedirs({str(trap)!r}, exist_ok=True)\n" + file.read_text())
    assert json.loads((folder / "config.json").read_text())["auto_map"]
    return folder


def run_command(name: str, args: list[str]):
    return importlib.import_module(f"corrmatch_hf.commands.{name}").main(args)


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_example", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_our_commands_run_no_code_of_a_repository(repository_with_code, trap, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 32), "red").save(photo)
    Image.new("L", (40, 32), 1).save(tmp_path / "photo_mask.png")
    model = str(repository_with_code)
    run_command("predict", [str(photo), "--model", model, "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "photo_mask.png").exists()
    for split in ("train", "validation"):
        for name, picture in (("images", photo), ("masks", tmp_path / "photo_mask.png")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            shutil.copy(picture, tmp_path / "data" / split / name / f"{split}.png")
    options = ["--data_dir", str(tmp_path / "data"), "--num_workers", "0"]
    run_command("evaluate", ["--model", model, *options, "--output", str(tmp_path / "evaluation.json")])
    pipeline("image-segmentation", model=model)(str(photo))
    assert not trap.exists()


def test_a_model_of_unknown_type_is_refused_instead_of_run(repository_with_code, trap):
    config = json.loads((repository_with_code / "config.json").read_text())
    (repository_with_code / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(InputError, match="No segmentation model could be loaded"):
        load_saved(str(repository_with_code))
    assert not trap.exists()


def test_the_space_runs_code_only_where_told(repository_with_code, trap, monkeypatch):
    config = json.loads((repository_with_code / "config.json").read_text())
    (repository_with_code / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    monkeypatch.setitem(sys.modules, "gradio", MagicMock())
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "space"))
    app = example("space/app")
    for value in ("", "0", "false"):
        monkeypatch.setenv("TRUST_REMOTE_CODE", value)
        with pytest.raises(
            ValueError, match="runs only where the variable TRUST_REMOTE_CODE is true"
        ) as caught:
            app.load_model(str(repository_with_code))
        assert "\n" not in str(caught.value) and not trap.exists()
    monkeypatch.setenv("TRUST_REMOTE_CODE", "true")
    try:
        app.load_model(str(repository_with_code))
    except ValueError as error:
        assert "TRUST_REMOTE_CODE" not in str(error)
    assert trap.is_dir()


@pytest.mark.parametrize("name", ["hf-hub:user/model", "local-dir:/tmp", "hf_hub:user/model"])
def test_an_encoder_is_a_name_and_no_address(name):
    with pytest.raises(ValueError, match="timm has no model named"):
        CorrMatchForSegmentation(tiny_config(encoder_name=name))


# Sizes


def header(contents: dict, data: bytes = b"") -> bytes:
    text = json.dumps(contents).encode()
    return struct.pack("<Q", len(text)) + text + data


DAMAGED = {
    "empty": lambda whole: b"",
    "header cut off": lambda whole: whole[:100],
    "data cut off": lambda whole: whole[:-1000],
    "header of exabytes": lambda whole: struct.pack("<Q", 2**62) + whole[8:],
    "header of blanks": lambda whole: struct.pack("<Q", 2**24) + b"{" + b" " * (2**24 - 1),
    "exabytes of numbers": lambda whole: header(
        {"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}
    ),
    "more numbers than bytes": lambda whole: header(
        {"a": {"dtype": "F32", "shape": [10**6, 10**5], "data_offsets": [0, 4]}}, b"1234"
    ),
    "negative shape": lambda whole: header(
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"
    ),
    "deep header": lambda whole: struct.pack("<Q", 20000) + b"[" * 20000,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_safetensors_are_named(folder, damage, tmp_path):
    path = folder / "model.safetensors"
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    start, before = time.perf_counter(), peak_mib()
    with pytest.raises(
        ValueError, match=rf"model\.safetensors of {folder} are corrupt, incomplete"
    ) as caught:
        CorrMatchForSegmentation.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"encoder\.safetensors cannot be read as plain weights"):
        CorrMatchForSegmentation.from_encoder_pretrained(
            tiny_config(), path.rename(tmp_path / "encoder.safetensors")
        )
    assert time.perf_counter() - start < 20 and peak_mib() - before < 500


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def test_compressed_weights_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_weights_corrmatch, "SMALL_IN_MEMORY", 2**20)
    torch.save({"conv1.weight": torch.zeros(10**7)}, tmp_path / "whole.pth")
    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for item in whole.infolist():
            small.writestr(item.filename, whole.read(item))
    assert path.stat().st_size < 2**17
    assert (
        torch.load(path, weights_only=True)["conv1.weight"].numel() == 10**7
    )  # torch unpacks it without a word
    monkeypatch.setattr(torch, "load", None)  # refused before it is
    for load in (
        lambda: CorrMatchForSegmentation.from_encoder_pretrained(tiny_config(), path),
        lambda: from_official(path),
    ):
        with pytest.raises(
            ValueError, match=r"bomb\.pth is rejected: its [\d,]+ bytes would take 40,\d+,\d+ bytes of memory"
        ):
            load()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**5, 10**5),
        torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6)),
    ],
    ids=["one number", "sparse"],
)
def test_tensors_larger_than_their_file_are_refused(tmp_path, tensor):
    path = tmp_path / "huge.pth"
    torch.save({"conv1.weight": tensor}, path)
    assert path.stat().st_size < 10_000
    for load in (
        lambda: CorrMatchForSegmentation.from_encoder_pretrained(tiny_config(), path),
        lambda: from_official(path),
    ):
        with pytest.raises(
            ValueError, match=r"huge\.pth is rejected: its [\d,]+ bytes would take [\d,]+ bytes of memory"
        ):
            load()


def test_a_checkpoint_of_too_many_classes_is_refused(tmp_path):
    with torch.device("meta"):
        state = timm.create_model("resnet50s", features_only=True).state_dict()
    state = {f"backbone.{key}": value for key, value in state.items()}
    state["classifier.weight"] = torch.empty(10**9, 256, 1, 1, device="meta")
    torch.save({"model": state}, tmp_path / "classes.pth")
    with pytest.raises(
        InputError, match=r"classes\.pth is not a checkpoint .*num_labels must be .* not 1000000000"
    ):
        from_official(tmp_path / "classes.pth")


# Pictures


@pytest.fixture(scope="module")
def handler(saved) -> EndpointHandler:
    return EndpointHandler(saved)


def picture_bytes(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def no_program_starts(monkeypatch):
    """EPS is what PIL hands to Ghostscript; whatever starts a program fails the test."""

    def refuse(*args, **kwargs):
        pytest.fail(f"a program was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")


def test_a_picture_that_is_a_program_starts_none(handler, tmp_path, monkeypatch, no_program_starts):
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    opened = Image.open(path)
    assert opened.format == "EPS"
    with pytest.raises(pytest.fail.Exception, match="a program was started"):
        opened.load()  # what the trap is for
    for inputs, message in ((EPS, "not a readable image"), (Image.open(path), "is a EPS image")):
        with pytest.raises(ValueError, match=message):
            handler({"inputs": inputs})
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "space"))
    import analysis

    with pytest.raises(ValueError, match="cannot be read as a picture"):
        analysis.read_picture(str(path), CorrMatchImageProcessor())
    for value in (str(path), {"bytes": EPS, "path": None}):
        with pytest.raises(InputError, match=r"photo\.jpg: its format is none of JPEG, "):
            open_picture(value, "photo.jpg")


def test_a_request_has_a_limited_number_of_images(handler, saved, monkeypatch):
    monkeypatch.setenv("CORRMATCH_MAX_IMAGES", "2")
    strict = EndpointHandler(saved)
    photo = Image.new("RGB", (32, 32), "red")
    assert len(strict({"inputs": [photo, photo]})) == 2
    monkeypatch.setattr(strict, "_read", None)  # nothing is read of a request that is refused
    with pytest.raises(
        ValueError, match='"inputs" contains 3 images: at most 2 are allowed; send more requests'
    ):
        strict({"inputs": [photo] * 3})
    assert handler.max_images == 16
    monkeypatch.setenv("CORRMATCH_MAX_IMAGES", "0")
    with pytest.raises(ValueError, match="CORRMATCH_MAX_IMAGES is '0'"):
        EndpointHandler(saved)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 1)])
def test_a_picture_may_be_one_pixel(handler, size):
    found = handler({"inputs": Image.new("RGB", size, "red")})
    masks = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each["mask"])))) for each in found]
    assert sum((mask == 255).sum() for mask in masks) == size[0] * size[1]


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_many_frames_the_first_is_read(handler, form):
    frames = [Image.new("RGB", (48, 32), (i, 255 - i, i)) for i in range(200)]
    options = {"lossless": True} if form == "WEBP" else {}
    moving = picture_bytes(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(moving)).n_frames == 200
    frame = Image.open(io.BytesIO(moving)).convert("RGB")
    start = time.perf_counter()
    assert handler({"inputs": moving}) == handler({"inputs": frame})
    assert time.perf_counter() - start < 10


def bombs() -> dict[str, bytes]:
    """Small files that claim 60000 x 60000 pixels."""
    side = 60_000
    png = bytearray(picture_bytes(Image.new("L", (8, 8)), "PNG"))
    png[16:24] = struct.pack(">II", side, side)
    png[29:33] = struct.pack(">I", zlib.crc32(bytes(png[12:29])))
    jpeg = bytearray(picture_bytes(Image.new("RGB", (8, 8)), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", side, side)
    gif = bytearray(picture_bytes(Image.new("L", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp = bytearray(picture_bytes(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    tiff = bytearray(picture_bytes(Image.new("L", (8, 8)), "TIFF"))
    (directory,) = struct.unpack("<I", tiff[4:8])
    for i in range(struct.unpack("<H", tiff[directory : directory + 2])[0]):
        entry = directory + 2 + 12 * i
        if struct.unpack("<H", tiff[entry : entry + 2])[0] in (256, 257):
            tiff[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, side)
    return {
        "PNG": bytes(png), "JPEG": bytes(jpeg), "GIF": bytes(gif), "BMP": bytes(bmp), "TIFF": bytes(tiff),
        "PPM": b"P6 60000 60000 255\n",
    }  # fmt: skip


def assert_too_large_for_the_space(content, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "space"))
    import analysis

    (tmp_path / "picture").write_bytes(content)
    with pytest.raises(ValueError, match="more than 64 million"):
        analysis.read_picture(str(tmp_path / "picture"), CorrMatchImageProcessor())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"])
def test_a_picture_that_claims_billions_of_pixels_is_refused_undecoded(handler, form, tmp_path, monkeypatch):
    content = bombs()[form]
    assert len(content) < 10_000
    before = peak_mib()
    with pytest.raises(
        ValueError, match=r"too many pixels: at most 16,000,000|60000 x 60000 pixels: at most 16,000,000"
    ):
        handler({"inputs": content})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # without PIL's own limit, as in the Space
    with pytest.raises(ValueError, match="60000 x 60000 pixels: at most 16,000,000"):
        handler({"inputs": content})
    assert_too_large_for_the_space(content, tmp_path, monkeypatch)
    assert peak_mib() - before < 200


def test_a_picture_of_one_endless_row_is_refused(handler):
    with pytest.raises(ValueError, match=r"70000 x 1 pixels: .* 65,535 a side"):
        handler({"inputs": Image.new("L", (70_000, 1))})


def test_a_small_picture_of_huge_tiles_is_refused_undecoded(handler, tmp_path, monkeypatch):
    """libtiff decodes a tile as a whole: 16 x 16 pixels could take gigabytes."""
    side, data = 12_000, b"x"
    tags = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, side),
        (323, side),
        (324, 0),
        (325, 1),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", t, 4, 1, start if t == 324 else value) for t, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data
    assert Image.open(io.BytesIO(content)).size == (16, 16)
    with pytest.raises(ValueError, match="TIFF image whose tiles are far larger than the image"):
        handler({"inputs": content})
    assert_too_large_for_the_space(content, tmp_path, monkeypatch)

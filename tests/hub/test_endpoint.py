"""The handler of an Inference Endpoint: in this process for its rules, over HTTP with the Hub's client for the rest."""

import base64
import contextlib
import importlib.util
import io
import json
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient
from PIL import Image

from benchmarks.endpoint_load import memory, requests, send, served, together
from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.hub.handler import EndpointHandler
from corrmatch_hf.hub.push import endpoint_files, write_endpoint

from ..conftest import ID2LABEL

ROOT = Path(__file__).resolve().parents[2]
SIZE = (40, 24)  # width, height


@pytest.fixture(scope="module")
def folder(saved_model, tmp_path_factory) -> Path:
    """A model that tells bright pixels from dark ones, with the files of an endpoint."""
    path = tmp_path_factory.mktemp("endpoint") / "model"
    shutil.copytree(saved_model, path)
    write_endpoint(path)
    return path


@pytest.fixture(scope="module")
def handler(folder):
    spec = importlib.util.spec_from_file_location("endpoint_handler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def server(folder):
    """Port and process of a server that runs the handler where this package does not exist."""
    with served(folder, threads=1) as port_and_process:
        yield port_and_process


def photo(mode="RGB", size=SIZE, seed=0) -> Image.Image:
    width, height = size
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    noise = np.random.default_rng(seed).normal(0, 20, (height, width, 3))
    return Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def file_of(image: Image.Image, form="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def mask_of(found: dict) -> np.ndarray:
    mask = Image.open(io.BytesIO(base64.b64decode(found["mask"])))
    assert (mask.format, mask.mode) == ("PNG", "L")
    return np.asarray(mask)


# The answer


def test_masks_and_scores_are_those_of_the_model(handler, folder):
    image = photo()
    model = CorrMatchForSegmentation.from_pretrained(folder)
    inputs = CorrMatchImageProcessor()(images=image, return_tensors="pt")
    with torch.no_grad():
        probability = model(**inputs).logits[0].softmax(0).numpy()
    ids = probability.argmax(0)
    expected = {ID2LABEL[i]: i for i in np.unique(ids).tolist()}
    assert len(expected) > 1

    found = handler({"inputs": image})
    assert [each["label"] for each in found] == list(expected)
    for each in found:
        i = expected[each["label"]]
        np.testing.assert_array_equal(mask_of(each), np.where(ids == i, 255, 0))
        assert each["score"] == pytest.approx(probability[i][ids == i].mean(), abs=1e-5)


def test_every_pixel_is_in_exactly_one_mask(handler):
    masks = [mask_of(each) for each in handler({"inputs": photo(size=(33, 57))})]
    assert (np.sum([mask == 255 for mask in masks], axis=0) == 1).all()
    assert masks[0].shape == (57, 33)


def test_an_answer_is_plain_json(handler):
    found = handler({"inputs": photo()})
    assert json.loads(json.dumps(found)) == found


# The forms of an image


@pytest.mark.parametrize(
    "form",
    [
        lambda content: content,
        bytearray,
        lambda content: Image.open(io.BytesIO(content)),
        text_of,
        lambda content: f"data:image/png;base64,{text_of(content)}",
        lambda content: re.sub("(.{76})", "\\1\r\n", text_of(content)),
        lambda content: {"image": text_of(content)},
        lambda content: {"image": Image.open(io.BytesIO(content))},
    ],
    ids=["bytes", "bytearray", "PIL", "base64", "data URL", "base64 in lines", "dict", "dict with PIL"],
)
def test_an_image_may_come_in_any_form(handler, form):
    assert handler({"inputs": form(file_of(photo()))}) == handler({"inputs": photo()})


def test_a_list_of_images_of_different_sizes_gives_a_list_of_answers(handler):
    images = [photo(), photo(size=(64, 48), seed=1)]
    inputs = [images[0], text_of(file_of(images[1]))]
    assert handler({"inputs": inputs}) == [handler({"inputs": image}) for image in images]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_modes_look_like_their_rgb_version(handler, mode):
    image = photo(mode)
    form = "TIFF" if mode == "CMYK" else "PNG"
    assert handler({"inputs": file_of(image, form)}) == handler({"inputs": image.convert("RGB")})


def test_sixteen_bits_are_scaled_not_clipped(handler):
    gray = np.asarray(photo("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert handler({"inputs": file_of(deep)}) == handler({"inputs": Image.fromarray(gray)})


@pytest.mark.parametrize("as_toolkit", [False, True], ids=["bytes", "PIL in RGB, as the endpoint makes it"])
def test_a_photo_is_turned_upright(handler, as_toolkit):
    image = photo("L", size=(32, 24))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    content = file_of(image, exif=exif)
    inputs = Image.open(io.BytesIO(content)).convert("RGB") if as_toolkit else content
    found = handler({"inputs": inputs})
    assert mask_of(found[0]).shape == (32, 24)
    assert found == handler({"inputs": image.transpose(Image.Transpose.ROTATE_270)})


# Parameters


def test_threshold_leaves_out_classes_with_a_lower_score(handler):
    found = handler({"inputs": photo()})
    scores = sorted(each["score"] for each in found)
    between = (scores[0] + scores[1]) / 2
    kept = handler({"inputs": photo(), "parameters": {"threshold": between, "subtask": "semantic"}})
    assert kept == [each for each in found if each["score"] >= between]
    assert len(kept) == len(found) - 1
    assert kept == handler({"inputs": photo(), "parameters": {"threshold": str(between)}})


def test_parameters_may_be_absent_or_null(handler):
    found = handler({"inputs": photo()})
    assert found == handler({"inputs": photo(), "parameters": None})
    assert found == handler({"inputs": photo(), "parameters": {"threshold": None, "subtask": None}})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"treshold": 0.5}, "Unknown parameter 'treshold'"),
        ({"threshold": 1.5}, "'threshold' is 1.5: give a number from 0 to 1"),
        ({"threshold": "high"}, "'threshold' is 'high'"),
        ({"threshold": float("nan")}, "'threshold' is nan"),
        ({"subtask": "panoptic"}, "subtask 'panoptic' is not supported"),
        ({"mask_threshold": 0.5}, "'mask_threshold' does not apply"),
        ({"overlap_mask_area_threshold": 0.5}, "'overlap_mask_area_threshold' does not apply"),
        ([0.5], '"parameters" is a list'),
    ],
)
def test_a_parameter_that_cannot_be_followed_is_refused(handler, parameters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        handler({"inputs": photo(), "parameters": parameters})


# Bad requests


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, 'no "inputs"'),
        (b"abc", 'no "inputs"'),
        ({"inputs": None}, '"inputs" is a NoneType'),
        ({"inputs": 5}, '"inputs" is a int'),
        ({"inputs": ""}, '"inputs" is empty'),
        ({"inputs": b""}, '"inputs" is empty'),
        ({"inputs": []}, "empty list"),
        ({"inputs": [photo(), "%"]}, '"inputs[1]" is not an image in base64'),
        ({"inputs": [[photo()]]}, '"inputs[0]" is a list'),
        ({"inputs": "https://example.org/photo.jpg"}, "URLs and paths are not fetched"),
        ({"inputs": "data:text/plain,hello"}, "data: URL without base64"),
        ({"inputs": "ä" * 8}, "not an image in base64"),
        ({"inputs": text_of(b"hello, world")}, '"inputs" is not a readable image'),
        ({"inputs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"}, "not a readable image"),
        ({"inputs": {"image": photo(), "mask": 1}}, "keys ['image', 'mask']"),
        ({"inputs": {}}, "has the keys []"),
        ({"inputs": file_of(photo(size=(200, 200)), "JPEG")[:2000]}, "corrupt or truncated"),
        ({"inputs": file_of(photo())[:-60]}, "corrupt or truncated"),
        ({"inputs": file_of(photo())[:20]}, "not a readable image"),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(handler, data, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        handler(data)
    assert "\n" not in str(error.value)


def test_an_image_with_too_many_pixels_is_refused_undecoded(handler, monkeypatch):
    monkeypatch.setattr(handler, "max_pixels", 1000)
    content = file_of(Image.new("1", (40, 26)))
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self))
    for inputs in (content, text_of(content), Image.new("L", (40, 26))):
        with pytest.raises(ValueError, match="40 x 26 pixels: at most 1,000 are allowed"):
            handler({"inputs": inputs})
    assert not decoded


def test_pils_own_limit_has_a_clear_error_too(handler, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too many pixels"):
        handler({"inputs": file_of(photo())})


def test_a_large_file_is_refused_undecoded(handler, monkeypatch):
    content = file_of(photo())
    monkeypatch.setattr(handler, "max_bytes", len(content) - 1)
    for inputs in (content, text_of(content + b"123")):
        with pytest.raises(ValueError, match=f"larger than {len(content) - 1:,} bytes"):
            handler({"inputs": inputs})
    monkeypatch.setattr(handler, "max_bytes", len(content))
    assert handler({"inputs": text_of(content)})


def test_the_limits_come_from_the_environment(handler, folder, monkeypatch):
    monkeypatch.setenv("CORRMATCH_MAX_IMAGE_BYTES", "123")
    monkeypatch.setenv("CORRMATCH_MAX_IMAGE_PIXELS", "456")
    other = type(handler)(folder)
    assert (other.max_bytes, other.max_pixels) == (123, 456)
    assert (handler.max_bytes, handler.max_pixels) == (32 * 2**20, 16_000_000)
    monkeypatch.setenv("CORRMATCH_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ValueError, match="CORRMATCH_MAX_IMAGE_PIXELS is 'many'"):
        type(handler)(folder)


# As an endpoint


@pytest.fixture
def client(server) -> InferenceClient:
    return InferenceClient(f"http://127.0.0.1:{server[0]}", token="hf_none")


def test_the_hubs_client_gets_masks_without_this_package(client, handler, tmp_path):
    image = photo()
    image.save(tmp_path / "photo.png")
    expected = handler({"inputs": image})
    for inputs, options in [(tmp_path / "photo.png", {}), (file_of(image), {"subtask": "semantic"})]:
        found = client.image_segmentation(inputs, **options)
        assert [each.label for each in found] == [each["label"] for each in expected]
        assert [each.score for each in found] == pytest.approx([each["score"] for each in expected])
        for ours, theirs in zip(expected, found, strict=True):
            assert (theirs.mask.mode, theirs.mask.size) == ("L", SIZE)
            np.testing.assert_array_equal(np.asarray(theirs.mask), mask_of(ours))


def test_the_hubs_client_gets_the_error_message(client):
    with pytest.raises(Exception, match="subtask 'instance' is not supported"):
        client.image_segmentation(file_of(photo()), subtask="instance")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the server's memory from /proc")
def test_forty_requests_side_by_side_get_what_each_gets_alone(server):
    port, process = server
    kinds = requests(((64, 48), (97, 65), (120, 90)))
    batch = [kinds[i % len(kinds)] for i in range(40)]
    assert sum(each.bad for each in batch) >= 6
    alone = {each.body: send(port, each) for each in kinds}
    for each in kinds:
        assert alone[each.body].status == (400 if each.bad else 200)
    together(port, batch)  # warms up
    held = [memory(process)]
    for _ in range(2):
        replies, _ = together(port, batch)
        held.append(memory(process))
        for each, reply in zip(batch, replies, strict=True):
            expected = alone[each.body]
            assert (reply.status, reply.body) == (expected.status, expected.body)
    assert max(held) - held[0] < 60, f"MiB after each round: {held}"


@pytest.mark.parametrize("allowed", [1, 3])
def test_no_more_images_are_worked_on_together_than_allowed(folder, monkeypatch, allowed):
    monkeypatch.setenv("CORRMATCH_MAX_CONCURRENT", str(allowed))
    handler = EndpointHandler(folder)
    working, most, pause = [], [], threading.Event()

    def read(value, place):
        working.append(value)
        most.append(len(working))
        pause.wait(0.02)
        if value is None:
            working.pop()
            raise ValueError("bad")
        return value

    def segment(image, place, threshold):
        pause.wait(0.02)
        working.pop()
        return []

    monkeypatch.setattr(handler, "_read", read)
    monkeypatch.setattr(handler, "_segment", segment)
    image = Image.new("RGB", (8, 8))

    def ask(i):
        with contextlib.suppress(ValueError):
            handler({"inputs": [image, None] if i % 3 == 0 else image})

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)  # a refused image gives its place back
    assert max(most) == allowed and len(most) == 16


# The files


def test_the_handler_finds_the_model_beside_it(folder, handler):
    assert type(handler)().model.config.id2label == ID2LABEL
    assert (folder / "handler.py").read_bytes() == endpoint_files()["handler.py"]


def test_the_requirements_are_those_of_the_package():
    stated = re.findall(r'^    "(.*?)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    required = endpoint_files()["requirements.txt"].decode().split()
    assert {re.split("[><=]", line)[0] for line in required} == {
        "torch", "torchvision", "timm", "transformers", "pillow"
    }  # fmt: skip
    assert set(required) <= set(stated)

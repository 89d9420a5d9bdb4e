"""What the Space computes, against slow and independent versions."""

import math
import struct
import zlib

import analysis
import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor

from .conftest import NAMES, SPACE, photo


@pytest.fixture(scope="module")
def network(model_with_head):
    return CorrMatchForSegmentation.from_pretrained(model_with_head), CorrMatchImageProcessor()


@pytest.fixture(scope="module")
def headless_network(model_without_head):
    return CorrMatchForSegmentation.from_pretrained(model_without_head), CorrMatchImageProcessor()


def slow_correlation_map(query, key, point, size, scale):
    """Loops over places and neighbours, in double precision."""
    query, key = query.double().numpy(), key.double().numpy()
    dim, h, w = query.shape
    height, width = size
    x = round(point[0] / (width - 1) * (w - 1))
    y = round(point[1] / (height - 1) * (h - 1))
    scores = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            scores[i, j] = sum(query[d, y, x] * key[d, i, j] for d in range(dim))
    if scale == "scores":
        scores /= math.sqrt(dim)
    row = np.exp(scores) / np.exp(scores).sum()
    if scale == "rows":
        row /= math.sqrt(dim)
    result = np.zeros(size)
    for i in range(height):
        for j in range(width):
            v, u = i * (h - 1) / (height - 1), j * (w - 1) / (width - 1)
            top, left = min(int(v), h - 2), min(int(u), w - 2)
            a, b = v - top, u - left
            upper = (1 - b) * row[top, left] + b * row[top, left + 1]
            lower = (1 - b) * row[top + 1, left] + b * row[top + 1, left + 1]
            result[i, j] = (1 - a) * upper + a * lower
    return result


@pytest.mark.parametrize("scale", ["scores", "rows"])
@pytest.mark.parametrize("point", [(0, 0), (70, 49), (95, 10)])
def test_the_correlation_map_equals_a_slow_computation(network, scale, point):
    prediction = analysis.segment(*network, photo(96, 64))
    found = analysis.correlation_map(prediction.query, prediction.key, point, (64, 96), scale)
    expected = slow_correlation_map(prediction.query, prediction.key, point, (64, 96), scale)
    assert found.shape == (64, 96) and np.ptp(expected) > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_prediction_is_what_the_model_puts_out(network):
    model, processor = network
    picture = photo(96, 64)
    prediction = analysis.segment(model, processor, picture)
    with torch.no_grad():
        pixel_values = processor(images=picture, return_tensors="pt")["pixel_values"]
        output = model(pixel_values, output_correlation=True)
    torch.testing.assert_close(prediction.query, output.query[0])
    torch.testing.assert_close(prediction.key, output.key[0])
    np.testing.assert_array_equal(prediction.labels, output.logits[0].argmax(0).numpy())
    np.testing.assert_array_equal(prediction.photo, np.asarray(picture))


def test_without_a_correlation_head_there_are_labels_but_no_query(headless_network):
    model, processor = headless_network
    prediction = analysis.segment(model, processor, photo(96, 64))
    assert prediction.query is None and prediction.key is None
    with torch.no_grad():
        logits = model(processor(images=photo(96, 64), return_tensors="pt")["pixel_values"]).logits
    np.testing.assert_array_equal(prediction.labels, logits[0].argmax(0).numpy())


def test_a_processor_that_resizes_still_gives_labels_of_the_size_of_the_photo(headless_network):
    processor = CorrMatchImageProcessor(do_resize=True, size={"height": 64, "width": 64})
    assert analysis.segment(headless_network[0], processor, photo(96, 50)).labels.shape == (50, 96)


def test_shares_sum_to_one_with_the_largest_first(network):
    labels = analysis.segment(*network, photo(96, 64)).labels
    share = analysis.shares(labels, NAMES)
    assert math.isclose(sum(share.values()), 1)
    assert list(share.values()) == sorted(share.values(), reverse=True) and len(share) > 1
    for i, name in enumerate(NAMES):
        assert math.isclose(share.get(name, 0), sum(label == i for label in labels.flat) / labels.size)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_picture_is_read_and_segmented(network, tmp_path, mode):
    gray = photo(50, 40).convert("L")
    if mode in ("I;16", "I"):
        picture = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
        picture = picture.convert(mode) if mode == "I" else picture
    elif mode == "1":
        picture = gray.point(lambda value: 255 * (value > 128)).convert("1")
    else:
        picture = photo(50, 40).convert(mode)
    file = tmp_path / ("picture.tif" if mode in ("CMYK", "I", "F") else "picture.png")
    picture.save(file)
    read, note = analysis.read_picture(str(file), CorrMatchImageProcessor())
    assert read.mode == "RGB" and read.size == (50, 40) and note == ""
    if mode in ("L", "LA", "I;16", "I", "F"):
        np.testing.assert_allclose(np.asarray(read)[..., 0], np.asarray(gray), atol=1)
    elif mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(np.asarray(read), np.asarray(photo(50, 40)))
    assert analysis.segment(*network, read).labels.shape == (40, 50)


def test_a_transparent_palette_is_looked_up(tmp_path):
    picture = photo(20, 10).convert("P")
    expected = np.asarray(picture.convert("RGB"))
    picture.save(tmp_path / "picture.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(
        np.asarray(analysis.read_picture(str(tmp_path / "picture.png"), CorrMatchImageProcessor())[0]),
        expected,
    )


def test_a_photo_taken_upright_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    photo(60, 40).save(tmp_path / "phone.png", exif=exif)
    read, _ = analysis.read_picture(str(tmp_path / "phone.png"), CorrMatchImageProcessor())
    np.testing.assert_array_equal(np.asarray(read), np.rot90(np.asarray(photo(60, 40)), -1))


@pytest.mark.parametrize("size", [(1, 1), (3, 200)])
def test_the_smallest_pictures_are_segmented_and_clicked(network, size):
    prediction = analysis.segment(*network, photo(*size))
    assert prediction.labels.shape == size[::-1]
    found = analysis.correlation_map(prediction.query, prediction.key, (0, 0), size[::-1])
    assert np.isfinite(found).all()
    assert analysis.heat_map(photo(*size), found, (0, 0)).size == size


def test_a_large_picture_is_scaled_down_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis, "MAX_SIDE", 100)
    photo(400, 200).save(tmp_path / "large.jpg")
    read, note = analysis.read_picture(str(tmp_path / "large.jpg"), CorrMatchImageProcessor())
    assert read.size == (100, 50)
    assert note == "Scaled from 400 x 200 down to 100 x 50 pixels."
    photo(100, 30).save(tmp_path / "fits.jpg")
    assert analysis.read_picture(str(tmp_path / "fits.jpg"), CorrMatchImageProcessor())[0].size == (100, 30)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(
        png + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    with pytest.raises(ValueError, match="more than 64 million"):
        analysis.read_picture(str(tmp_path / "bomb.png"), CorrMatchImageProcessor())


@pytest.mark.parametrize("kind", ["text", "empty", "cut off"])
def test_what_is_no_picture_gets_a_sentence(tmp_path, kind):
    photo(200, 200).save(tmp_path / "whole.jpg")
    content = {"text": b"no picture", "empty": b"", "cut off": (tmp_path / "whole.jpg").read_bytes()[:700]}
    (tmp_path / "broken.jpg").write_bytes(content[kind])
    with pytest.raises(ValueError, match="cannot be read as a picture: please try"):
        analysis.read_picture(str(tmp_path / "broken.jpg"), CorrMatchImageProcessor())


def test_the_heat_map_is_bright_where_the_correlation_is_high_and_rings_the_point():
    gray = Image.new("RGB", (300, 200), (128, 128, 128))
    correlation = np.zeros((200, 300), dtype=np.float32)
    correlation[:, 200:] = 0.25
    drawn = np.asarray(analysis.heat_map(gray, correlation, (50, 60))).astype(int)
    np.testing.assert_allclose(drawn[100, 10], (128 + np.array(analysis.HEAT[0])) / 2, atol=1)
    np.testing.assert_allclose(drawn[100, 250], (128 + np.array(analysis.HEAT[-1])) / 2, atol=1)
    ys, xs = np.nonzero((drawn == 255).all(-1))
    assert abs(ys.mean() - 60) < 1 and abs(xs.mean() - 50) < 1 and np.hypot(ys - 60, xs - 50).max() < 8


def test_a_constant_correlation_can_be_drawn():
    drawn = analysis.heat_map(photo(40, 30), np.full((30, 40), 0.01, dtype=np.float32), (20, 15))
    assert drawn.size == (40, 30)


def test_only_small_pictures_are_shown_larger():
    sizes = [(1, 1), (96, 64), (256, 300), (512, 100), (1024, 700)]
    assert [analysis.enlargement(np.asarray(photo(*size))) for size in sizes] == [512, 6, 2, 1, 1]


def test_the_analysis_lies_in_the_folder_of_the_space():
    assert SPACE.joinpath("analysis.py").samefile(analysis.__file__)

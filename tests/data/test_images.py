import io

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data.images import read_photo
from corrmatch_hf.errors import InputError


def rgb(size=(20, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_every_mode_becomes_rgb(tmp_path):
    gray = np.arange(200, dtype=np.uint8).reshape(10, 20)
    deep = np.arange(200, dtype=np.uint16).reshape(10, 20) * 256
    pictures = {
        "l.png": Image.fromarray(gray),
        "la.png": Image.fromarray(gray).convert("LA"),
        "one.png": Image.fromarray(gray > 100),
        "p.png": rgb().quantize(16),
        "rgba.png": rgb().convert("RGBA"),
        "cmyk.jpg": rgb().convert("CMYK"),
        "deep.png": Image.fromarray(deep),
        "i.tif": Image.fromarray(deep.astype(np.int32)),
        "f.tif": Image.fromarray(gray.astype(np.float32) / 255),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        found = read_photo(str(tmp_path / name), name)
        assert found.mode == "RGB" and found.size == (20, 10), name
        pixels = np.asarray(found)
        if name in ("l.png", "la.png", "deep.png", "i.tif", "f.tif"):
            assert abs(pixels.astype(int) - gray[..., None]).max() <= 1, name
        if name == "rgba.png":
            assert np.array_equal(pixels, np.asarray(rgb()))


def test_cells_of_every_kind():
    stream = io.BytesIO()
    rgb().save(stream, "PNG")
    cells = [rgb(), np.asarray(rgb()), np.asarray(rgb()).tolist(), {"bytes": stream.getvalue(), "path": None}]
    for cell in cells:
        assert np.array_equal(np.asarray(read_photo(cell, "x")), np.asarray(rgb()))


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    rgb().save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(str(tmp_path / "turned.jpg"), "turned.jpg").size == (10, 20)
    assert read_photo(Image.open(tmp_path / "turned.jpg"), "turned.jpg").size == (10, 20)


def test_what_cannot_be_read_is_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    rgb((200, 100)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.jpg", "text.png", "empty.png", "missing.png"):
        with pytest.raises(InputError, match=f"Cannot read the picture photos/{name}"):
            read_photo(str(tmp_path / name), f"photos/{name}")

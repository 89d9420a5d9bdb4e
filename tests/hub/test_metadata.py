"""Published photos do not tell where and by whom they were taken, and show the same pixels."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from corrmatch_hf.data.images import open_picture
from corrmatch_hf.hub.dataset_export import export_folder
from corrmatch_hf.hub.metadata import without_metadata

from ..data.pictures_on_disk import write_split

GPS, CAMERA, ORIENTATION, PLACE = 0x8825, 0x010F, 0x0112, b"Canon of Ada"


def exif(orientation=None) -> Image.Exif:
    tags = Image.Exif()
    tags[CAMERA] = PLACE.decode()
    tags.get_ifd(GPS).update({1: "N", 2: (48.0, 51.0, 29.0), 3: "E", 4: (2.0, 17.0, 40.0)})
    if orientation:
        tags[ORIENTATION] = orientation
    return tags


def picture(mode="RGB", size=(40, 24)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size).convert(mode)


def text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", PLACE.decode())
    info.add_itxt("XML:com.adobe.xmp", f"<x>{PLACE.decode()}</x>")
    info.add(b"caBX", PLACE)  # content credentials; Pillow writes private chunks alone
    info.add(b"prVt", PLACE)
    return info


def shown(content) -> np.ndarray:
    return np.asarray(open_picture({"path": None, "bytes": content}, "a photo"))


CASES = {
    "a.jpg": {"comment": PLACE, "icc_profile": b"a profile"},
    "progressive.jpg": {"progressive": True},
    "gray.jpg": {"mode": "L"},
    "cmyk.jpg": {"mode": "CMYK"},
    "restart.jpg": {"restart_marker_blocks": 1},
    "xmp.jpg": {"xmp": b"<x>" + PLACE + b"</x>"},
    "a.png": {"pnginfo": text()},
    "palette.png": {"mode": "P", "pnginfo": text()},
    "deep.png": {"mode": "I;16"},
    "lossy.webp": {"quality": 50, "xmp": b"<x>" + PLACE + b"</x>"},
    "lossless.webp": {"lossless": True},
    "alpha.webp": {"mode": "RGBA"},
    "a.tif": {},
    "float.tif": {"mode": "F"},
    "a.avif": {},
    "a.jp2": {"no_exif": True, "comment": PLACE},
}


@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize("name", CASES)
def test_the_metadata_are_gone_and_the_pixels_are_the_same(name, orientation, tmp_path):
    options = dict(CASES[name])
    image = picture(options.pop("mode", "RGB"))
    if not options.pop("no_exif", False):
        options["exif"] = exif(orientation)
    path = tmp_path / name
    try:
        image.save(path, **options)
    except (KeyError, ValueError, OSError) as error:
        pytest.skip(f"this Pillow cannot write {name}: {error}")
    content = path.read_bytes()
    if PLACE not in content:
        pytest.skip("nothing was written")
    stripped, suffix = without_metadata(path)
    assert PLACE not in stripped
    np.testing.assert_array_equal(shown(stripped), shown(content))
    reopened = Image.open(io.BytesIO(stripped))
    assert GPS not in reopened.getexif() and {"xmp", "comment", "Author"}.isdisjoint(reopened.info)
    if path.suffix in (".jpg", ".webp"):
        assert suffix == "" and reopened.size == image.size, "not encoded again"
    if name == "a.jpg":
        assert reopened.info["icc_profile"] == b"a profile"
    (tmp_path / f"again{suffix or path.suffix}").write_bytes(stripped)
    assert without_metadata(tmp_path / f"again{suffix or path.suffix}") is None


def test_a_second_picture_behind_the_first_is_left_out(tmp_path):
    inner = io.BytesIO()
    picture().save(inner, "JPEG", exif=exif())
    picture().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[picture()], exif=exif())
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(inner.getvalue() + b"trailer of a phone " + PLACE)
    stripped, _ = without_metadata(tmp_path / "a.jpg")
    assert PLACE not in stripped and Image.open(io.BytesIO(stripped)).format == "JPEG"
    np.testing.assert_array_equal(shown(stripped), shown((tmp_path / "a.jpg").read_bytes()))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp", "a.gif"])
def test_a_picture_without_metadata_stays_the_file_it_is(name, tmp_path):
    picture("P" if name == "a.gif" else "RGB").save(tmp_path / name)
    assert without_metadata(tmp_path / name) is None


def test_a_file_that_is_not_quite_its_format_is_written_again(tmp_path):
    """PIL reads more than the standards allow; what it shows is what is published."""
    picture().save(tmp_path / "a.png", pnginfo=text())
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-12])  # without its end
    stripped, _ = without_metadata(tmp_path / "a.png")
    assert PLACE not in stripped
    np.testing.assert_array_equal(shown(stripped), np.asarray(picture()))


def test_a_published_folder_has_none_unless_asked(tmp_path):
    root, aside = tmp_path / "photos", tmp_path / "aside"
    write_split(root / "train" / "images", root / "train" / "masks", 3)
    first, second, _ = sorted((root / "train" / "images").iterdir())
    Image.open(first).save(first, exif=exif(1))
    Image.open(second).save(second.with_suffix(".jpg"), exif=exif(1))
    second.unlink()
    mask = min((root / "train" / "masks").iterdir())
    Image.open(mask).save(mask, pnginfo=text())
    data = export_folder(root, aside)
    rows = data.splits["train"].data.to_pydict()
    files = [cell["path"] for column in ("image", "label") for cell in rows[column]]
    assert data.stripped == 2 and len(set(files)) == 6
    for file in files:
        with open(file, "rb") as stream:
            assert PLACE not in stream.read()
    kept = export_folder(root, tmp_path / "aside2", keep_metadata=True)
    assert kept.stripped == 0 and not (tmp_path / "aside2").exists()
    assert [row["path"] for row in kept.splits["train"].data.to_pydict()["image"]] == sorted(
        str(path) for path in (root / "train" / "images").iterdir()
    )

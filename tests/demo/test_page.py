"""The demo in a real browser: its results are those of Python, and nobody is left without words."""

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf import CorrMatchImageProcessor
from corrmatch_hf.model.picture_corrmatch import to_rgb, upright
from corrmatch_hf.pictures import class_palette

from .conftest import NAMES, PROCESSORS, photo, tiny_model

SAME = 0.995  # of the pixels have the same class as in Python


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def upload(page, file) -> None:
    """Choose a file and wait until its result is shown."""
    before = page.evaluate("document.querySelector('#result').dataset.number ?? '0'")
    page.set_input_files("#file", file)
    page.wait_for_function("b => (document.querySelector('#result').dataset.number ?? '0') !== b", arg=before)


def download(page, button) -> Image.Image:
    with page.expect_download() as waiting:
        page.click(button)
    return Image.open(waiting.value.path())


@torch.no_grad()
def segment(model, path, **options):
    """Class ids and probabilities (H, W) of a photo in Python."""
    processor = CorrMatchImageProcessor(**options)
    picture = to_rgb(upright(str(path)))
    outputs = model(**processor(images=picture, return_tensors="pt"))
    (found,) = processor.post_process_semantic_segmentation(
        outputs, [(picture.height, picture.width)], return_segmentation_scores=True
    )
    highest, classes = found.segmentation_scores.softmax(0).max(0)
    return classes.numpy(), highest.numpy()


def click_pixel(page, x, y, width, height) -> str:
    box = page.locator("#picture").bounding_box()
    page.locator("#picture").click(
        position={"x": (x + 0.5) * box["width"] / width, "y": (y + 0.5) * box["height"] / height}
    )
    return page.inner_text("#point")


def test_a_visitor_uploads_a_photo_asks_for_a_pixel_and_downloads(visit, addresses, model, tmp_path):
    file = tmp_path / "street.png"
    photo(180, 140).save(file)
    classes, confidence = segment(model, file)
    page = visit(addresses["as_is"])
    assert page.title() == page.inner_text("h1") == "Straßen & <Wege>"
    upload(page, file)

    shares = {NAMES[i]: (classes == i).mean() for i in np.unique(classes)}
    assert len(shares) > 1
    rows = page.locator("#legend tbody tr")
    assert rows.count() == len(shares)
    for name, share in shares.items():
        text = rows.filter(has_text=name).inner_text()
        assert f"{share:.1%}".replace("%", " %") in text
    largest = max(shares, key=shares.get)
    assert largest in rows.first.inner_text() and largest in page.inner_text("#status")

    x, y = 45, 110
    expected = f"{NAMES[classes[y, x]]}, confidence {100 * confidence[y, x]:.1f} %"
    assert click_pixel(page, x, y, 180, 140) == expected
    page.locator("#picture").press("Shift+ArrowRight")
    page.locator("#picture").press("ArrowUp")
    assert page.inner_text("#point").startswith(NAMES[classes[y - 4, x + 1]])  # a fortieth of the width is 4

    mask = download(page, "#save-mask")
    assert mask.mode == "P" and mask.size == (180, 140)
    assert (np.asarray(mask) == classes).mean() >= SAME
    palette = class_palette(dict(enumerate(NAMES)))
    assert np.array_equal(np.reshape(mask.getpalette(), (-1, 3))[: len(NAMES)], palette)
    page.fill("#opacity", "100")
    overlay = np.asarray(download(page, "#save-overlay").convert("RGB"))
    assert np.array_equal(overlay[:140, :180], palette[np.asarray(mask)])
    assert overlay.shape[0] > 140  # the legend

    page.click("#samples button")
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('1.jpg')")
    assert page.evaluate("document.querySelector('#picture').width") == 160


@pytest.mark.parametrize("processor", PROCESSORS)
def test_ten_photos_have_the_classes_that_python_finds(visit, addresses, model, processor, tmp_path):
    page = visit(addresses[processor])
    same = []
    for i in range(10):
        width, height = [(180, 140), (97, 211), (320, 240), (64, 64), (301, 133)][i % 5]
        picture, options = photo(width, height, seed=i), {}
        file = tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}"
        if i == 1:
            exif = Image.Exif()
            exif[0x0112] = 6  # turned by the camera
            options = {"exif": exif}
        if i in (2, 3):
            picture = picture.convert("L")
        if i == 4:
            picture = picture.quantize(64)
        picture.save(file, **options)
        upload(page, file)
        classes, _ = segment(model, file, **PROCESSORS[processor])
        mask = np.asarray(download(page, "#save-mask"))
        assert mask.shape == classes.shape
        same.append(float((mask == classes).mean()))
    assert min(same) >= SAME, same


def test_a_photo_of_twelve_megapixels_is_scaled_down_and_its_mask_is_full_size(visit, addresses, tmp_path):
    file = tmp_path / "large.jpg"
    photo(1000, 750, seed=2).resize((4000, 3000)).save(file)
    page = visit(addresses["as_is"])
    upload(page, file)
    assert "Scaled from 4000 × 3000 to 1024 × 768 pixels." in page.inner_text("#facts")
    mask = download(page, "#save-mask")
    assert mask.size == (4000, 3000) and np.asarray(mask).max() < len(NAMES)


def test_a_broken_file_is_told_in_words_and_the_next_photo_works(visit, addresses, tmp_path):
    page = visit(addresses["as_is"])
    whole = tmp_path / "whole.png"
    photo(80, 60).save(whole)
    contents = {"text.png": b"no picture", "empty.jpg": b"", "cut.png": whole.read_bytes()[:60]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file", tmp_path / name)
        words = "is empty" if not content else "cannot be read as a picture"
        page.wait_for_function("w => document.querySelector('#problem').textContent.includes(w)", arg=words)
        assert page.is_visible("#problem") and not page.is_visible("#result")
    upload(page, whole)
    assert page.is_visible("#result") and not page.is_visible("#problem")


def test_the_camera_takes_a_photo(visit, addresses):
    page = visit(addresses["as_is"], permissions=["camera"])
    page.click("#camera")
    page.wait_for_function("document.querySelector('video').videoWidth > 0")
    page.click("#shoot")
    page.wait_for_selector("#result:not([hidden])")
    assert page.inner_text("#status").startswith("camera.png")
    assert not page.is_visible("#viewfinder")


def test_the_page_is_usable_on_a_small_screen_and_by_keyboard(visit, addresses, tmp_path):
    file = tmp_path / "photo.jpg"
    photo(640, 480).save(file)
    page = visit(addresses["as_is"], 390, 844, color_scheme="dark")
    upload(page, file)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#picture").bounding_box()["width"] <= 390
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    for control in ("file", "camera", "picture", "opacity", "save-mask", "save-overlay"):
        assert control in reached
    names = page.locator("button, input, canvas").evaluate_all(
        "all => all.map(e => (e.ariaLabel ?? '') + e.textContent + [...(e.labels ?? [])].map(l => l.textContent)"
        " + [...e.querySelectorAll('img')].map(i => i.alt))"
    )
    assert all(name.strip() for name in names), names  # for a screen reader

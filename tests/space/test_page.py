"""The page of the Space in a real browser, and what it says when something is missing."""

import functools
import io
import os
import subprocess
import sys
import time
import urllib.request

import analysis
import numpy as np
import pytest
from PIL import Image

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor

from ..browser import CHROMIUM, visitors
from ..ports import free_port
from .conftest import NAMES, SPACE, photo

pytest.importorskip("gradio", reason="gradio is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

SHOWN = (
    "selector => { const i = document.querySelector(selector); return i && i.complete && i.naturalWidth > 0 }"
)


@pytest.fixture(scope="module")
def start_app(tmp_path_factory):
    """A function that runs app.py with a MODEL_ID, as a Space would, and gives its address."""
    processes = []

    @functools.cache
    def start(model_id) -> str:
        folder = tmp_path_factory.mktemp("app")
        port = free_port()
        environment = {
            **os.environ,
            "MODEL_ID": str(model_id),
            "TRUST_REMOTE_CODE": "true",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_TEMP_DIR": str(folder / "pictures"),
            "GRADIO_ANALYTICS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "home"),
            "MAX_SIDE": "200",
        }
        with (folder / "output.txt").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, str(SPACE / "app.py")],
                env=environment,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
        for _ in range(240):
            if process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                return f"http://127.0.0.1:{port}/"
            except OSError:
                time.sleep(0.5)
        pytest.fail(f"app.py does not answer:\n{(folder / 'output.txt').read_text()}")

    yield start
    for process in processes:
        process.terminate()
        process.wait()


@pytest.fixture
def visit(browser):
    with visitors(browser) as open_page:
        yield open_page


def upload(page, picture, file):
    picture.save(file)
    page.set_input_files("#picture input[type=file]", file)


def natural_size(page, selector):
    page.wait_for_function(SHOWN, arg=selector)
    return tuple(page.locator(selector).first.evaluate("i => [i.naturalWidth, i.naturalHeight]"))


def click_place(page, x, y):
    """Click a pixel of the picture to click, and wait for its correlation map."""
    picture = page.locator("#correlation img")
    box, (width, height) = picture.bounding_box(), natural_size(page, "#correlation img")
    scale = min(1, box["width"] / width, box["height"] / height)  # centred, and never enlarged
    left, top = (box["width"] - scale * width) / 2, (box["height"] - scale * height) / 2
    source = picture.get_attribute("src")
    picture.click(position={"x": left + scale * (x + 0.5), "y": top + scale * (y + 0.5)})
    page.wait_for_function("old => document.querySelector('#correlation img').src != old", arg=source)
    natural_size(page, "#correlation img")


def correlation_picture(page) -> Image.Image:
    content = page.request.get(page.locator("#correlation img").get_attribute("src")).body()
    return Image.open(io.BytesIO(content)).convert("RGB")


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


def test_a_visitor_uploads_a_picture_clicks_a_place_and_chooses_a_sample(
    start_app, visit, model_with_head, tmp_path
):
    picture = photo(180, 140)
    prediction = analysis.segment(
        CorrMatchForSegmentation.from_pretrained(model_with_head), CorrMatchImageProcessor(), picture
    )
    share = analysis.shares(prediction.labels, NAMES)
    assert len(share) > 1

    page = visit(start_app(model_with_head))
    upload(page, picture, tmp_path / "picture.png")
    assert natural_size(page, "#overlay img") == (180, 140)
    assert natural_size(page, "#correlation img") == (540, 420)  # small pictures are shown larger
    legend, table = page.inner_text("#overlay"), page.inner_text("#shares")
    for name, value in share.items():
        assert name in legend
        assert name in table
        assert (f"{value:.1%}" if value >= 0.0005 else "<0.1%") in table
    assert page.locator("#shares td:first-child").all_inner_texts() == list(share)
    assert "Click a place" in page.inner_text("#text")

    shown = picture.resize((540, 420), Image.Resampling.BICUBIC)
    maps = []
    for x, y in ((90, 330), (450, 60)):
        click_place(page, x, y)
        assert f"The ring is on {NAMES[prediction.labels[y // 3, x // 3]]}." in page.inner_text("#text")
        correlation = analysis.correlation_map(prediction.query, prediction.key, (x, y), (420, 540))
        maps.append(analysis.heat_map(shown, correlation, (x, y)))
        assert difference(correlation_picture(page), maps[-1]) < 3  # JPEG, and the click rounded
    assert difference(*maps) > 6
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert Image.open(tmp_path / "page.png").width == 1280

    page.locator("#samples button, #samples img").first.click()
    page.wait_for_function("() => document.querySelector('#correlation img').naturalWidth == 640")
    assert natural_size(page, "#overlay img") == (160, 120)
    assert "Click a place" in page.inner_text("#text")
    assert page.locator("#samples img").count() == 1  # the overlay beside it is no sample
    assert page.locator(".toast-body.error").count() == 0

    page.click("#picture button[aria-label*=lear], #picture button[aria-label*=emove]")
    page.wait_for_selector("#correlation img", state="detached")
    assert page.inner_text("#shares").strip() == ""

    # Two visitors do not see each other's pictures; what cannot be read or is large is said.
    other = visit(page.url)
    upload(other, photo(400, 100, seed=3), tmp_path / "large.jpg")
    assert natural_size(other, "#overlay img") == (200, 50)
    assert "Scaled from 400 x 100 down to 200 x 50 pixels." in other.inner_text("#note")
    assert page.locator("#correlation img").count() == 0
    upload(page, photo(100, 130, seed=4), tmp_path / "second.png")
    assert natural_size(page, "#correlation img") == (400, 520)
    click_place(other, 100, 50)
    assert natural_size(other, "#correlation img") == (600, 150)


def test_a_file_that_is_no_picture_gets_a_sentence_on_the_page(
    start_app, browser, model_without_head, tmp_path
):
    page = browser.new_page()
    page.goto(start_app(model_without_head))
    assert "saved without its correlation head" in page.inner_text("#text")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.set_input_files("#picture input[type=file]", tmp_path / "broken.png")
    page.wait_for_selector("text=This file cannot be read as a picture")
    assert page.locator("#overlay img").count() == 0
    page.close()


def test_without_a_correlation_head_the_page_says_so_and_shows_the_rest(
    start_app, visit, model_without_head, tmp_path
):
    page = visit(start_app(model_without_head))
    upload(page, photo(120, 90), tmp_path / "picture.png")
    assert natural_size(page, "#overlay img") == (120, 90)
    assert "%" in page.inner_text("#shares")
    assert "saved without its correlation head" in page.inner_text("#text")
    assert not page.locator("#correlation").is_visible()
    assert page.locator("#samples").count() == 0


@pytest.mark.parametrize(
    ("model_id", "sentence"),
    [
        ("", "No model is named: set the variable MODEL_ID"),
        ("no/such_model", "The model 'no/such_model' named by MODEL_ID cannot be loaded"),
    ],
)
def test_a_missing_or_wrong_model_is_one_sentence_on_the_page(start_app, visit, model_id, sentence):
    page = visit(start_app(model_id))
    page.wait_for_selector("#problem")
    assert sentence in page.inner_text("#problem")
    assert page.locator("#picture").count() == 0

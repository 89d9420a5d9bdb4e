"""What the page is made of, without a browser."""

import itertools
from html.parser import HTMLParser

import pytest

from corrmatch_hf import CorrMatchImageProcessor

from .conftest import NAMES

pytest.importorskip("gradio", reason="gradio is not installed")

import app


def test_a_model_is_loaded_with_its_processor(model_with_head):
    model, processor = app.load_model(str(model_with_head))
    assert not model.training and list(model.config.id2label.values()) == NAMES
    assert processor.model_input_names == ["pixel_values"]


def test_an_unreadable_model_is_one_line_with_its_name(tmp_path, model_with_head):
    for model_id in ("", "no/such_model", str(tmp_path)):
        with pytest.raises(ValueError, match="MODEL_ID") as caught:
            app.load_model(model_id)
        assert model_id in str(caught.value) and "\n" not in str(caught.value)


def test_samples_are_the_photos_of_the_folder_samples(model_with_head, model_without_head):
    assert app.find_samples(str(model_with_head)) == [str(model_with_head / "samples" / "1.jpg")]
    assert app.find_samples(str(model_without_head)) == []
    assert app.find_samples("no/such_model") == []


def test_two_classes_of_the_same_name_are_told_apart():
    assert app.class_names({0: "void", 1: "road", 2: "void"}) == ["void (0)", "road", "void (2)"]


def test_every_class_has_a_colour_of_its_own():
    def class_colors(names):
        return app.class_colors(names, CorrMatchImageProcessor.class_palette(dict(enumerate(names))))

    colors = class_colors(["background", *(f"class {i}" for i in range(1, 40))])
    assert colors["background"] == "#000000"
    rgb = [tuple(bytes.fromhex(color[1:])) for color in colors.values()]
    distances = [
        sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in itertools.combinations(rgb, 2)
    ]
    assert len(rgb) == 40 and min(distances) > 20
    assert class_colors(["a", "b"])["b"] == class_colors(["a", "b", "c"])["b"]


def test_the_table_of_shares_shows_names_as_they_are_and_small_shares_too():
    names = ["Bäume & <b>Sträucher</b>", "road", "car_2"]
    table = app.share_table(
        dict(zip(names, [0.9, 0.0999, 0.0001], strict=True)), dict.fromkeys(names, "#112233")
    )
    texts = []
    parser = HTMLParser()
    parser.handle_data = texts.append
    parser.feed(table)
    assert texts == ["Bäume & <b>Sträucher</b>", "90.0%", "road", "10.0%", "car_2", "<0.1%"]

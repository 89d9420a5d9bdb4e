"""The card of a dataset: valid front matter, true numbers, commands that fit the data."""

import pytest

from corrmatch_hf.hub.dataset_card import dataset_card

PIXELS = {"train": [50, 25, 0, 25], "validation": [0, 0, 10, 0]}
NAMES = {0: "sky", 1: "road", 2: "a|b"}


def card_of(images=None, masks=None, **options):
    images = images or {"train": 300, "validation": 20}
    masks = masks or images
    return dataset_card("user/streets", images=images, masks=masks, pixels=PIXELS, id2label=NAMES, **options)


def test_front_matter_has_what_the_hub_needs():
    assert card_of(license="cc-by-4.0").data.to_dict() == {
        "pretty_name": "streets",
        "license": "cc-by-4.0",
        "task_categories": ["image-segmentation"],
        "tags": ["semantic-segmentation", "semi-supervised"],
        "size_categories": ["n<1K"],
    }


@pytest.mark.parametrize(
    ("count", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**8, "n>10M")]
)
def test_size_is_that_of_all_splits(count, size):
    images = {"train": count - 5, "unlabeled": 5}
    assert card_of(images, {"train": 1, "unlabeled": 0}).data["size_categories"] == [size]


def test_a_licence_is_named_only_if_given():
    assert "licen" not in str(card_of()).lower()
    assert "## Licence\n\n`mit`" in card_of(license="mit").text


def test_tables_hold_the_counts_and_the_shares_of_pixels():
    text = card_of({"train": 3000, "validation": 20}, {"train": 10, "validation": 20}).text
    assert "| train | 3,000 | 10 |" in text
    assert "| validation | 20 | 20 |" in text
    assert "| Id | Class | train | validation |" in text
    assert "| 0 | sky | 50.00 | 0.00 |" in text
    assert "| 2 | a\\|b | 0.00 | 100.00 |" in text
    assert "| 255 | *ignored* | 25.00 | 0.00 |" in text
    assert "2,990 of them without a mask" in text


def test_a_name_of_a_class_cannot_change_the_card():
    names = {0: "<img src=x>", 1: "a\n# [b](c) **d**", 2: "\x1b[2J\u202e`e`"}
    card = dataset_card(
        "user/x", images={"train": 9}, masks={"train": 9}, pixels={"train": [1, 1, 1, 1]}, id2label=names
    )
    assert r"| 0 | \<img src=x> | 25.00 |" in card.text
    assert r"| 1 | a # \[b\](c) \*\*d\*\* | 25.00 |" in card.text
    assert r"| 2 | \\x1b\[2J\\u202e\`e\` | 25.00 |" in card.text


@pytest.mark.parametrize(
    ("images", "masks", "fraction"),
    [
        ({"train": 8}, {"train": 8}, True),
        ({"train": 8}, {"train": 2}, False),
        ({"train": 8, "unlabeled": 4}, {"train": 8, "unlabeled": 0}, False),
    ],
    ids=["all labelled", "some unlabelled", "split of unlabelled ones"],
)
def test_the_command_draws_labels_only_where_all_images_have_them(images, masks, fraction):
    text = card_of(images, masks).text
    assert "--dataset_name user/streets" in text
    assert ("--labeled_fraction" in text) == fraction

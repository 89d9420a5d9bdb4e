"""Broken and odd pictures through every entry: loading, checking, training with and without workers, evaluation."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from corrmatch_hf.data import Augmentation, load_semi_dataset, synthetic_semi_dataset, training_batches
from corrmatch_hf.data.check import check_dataset
from corrmatch_hf.data.images import read_photo
from corrmatch_hf.data.semi_dataset import EvaluationSet
from corrmatch_hf.data.sources.folders import match
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import evaluate_segmentation

from ..data.pictures_on_disk import write_mask, write_photo
from ..data.test_training_set import assert_equal, break_rows, streamed
from ..training.conftest import make_trainer, tiny_data  # noqa: F401
from .bad_pictures import (
    bomb,
    cut_jpeg,
    foreign_palette,
    load,
    mask_of,
    put,
    turned_photo,
    write_dataset,
)

SMALL = Augmentation(crop_size=17)


def batches(semi, count=3, **options):
    options = {"labeled_batch": 2, "unlabeled_batch": 2, "seed": 7, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than cores
        return list(islice(training_batches(semi, SMALL, **options), count))


class Zeros(torch.nn.Module):
    """Predicts class 0 everywhere."""

    def forward(self, pixel_values):
        one = torch.eye(4)[0].view(1, 4, 1, 1)
        return SimpleNamespace(logits=one.expand(len(pixel_values), 4, *pixel_values.shape[-2:]))


def evaluate(semi, num_workers=0):
    samples = EvaluationSet(semi.validation, semi)
    return evaluate_segmentation(
        Zeros(), samples, num_labels=4, image_mean=[0.5] * 3, image_std=[0.5] * 3, num_workers=num_workers
    )


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "my set")


# ------------------------------------------------------------------------------------- what cannot be used

CANNOT_BE_READ = {
    "cut": (cut_jpeg, ".*truncated"),
    "empty": (lambda path: put(path, b""), "is none of JPEG, "),
    "text": (lambda path: put(path.with_suffix(".jpg"), b"no picture"), "is none of JPEG, "),
    "large bomb": (lambda path: bomb(path, 60000), ".*decompression bomb"),
    "small bomb": (lambda path: bomb(path, 12000), r"12000 x 12000 pixels, more than .*MAX_IMAGE_PIXELS"),
}
DO_NOT_FIT = {
    "size": (lambda path: write_mask(mask_of(path), [0, 1], size=(47, 36)), "48 x 36 pixels, but its mask"),
    "id": (lambda path: write_mask(mask_of(path), [0, 9]), "holds the class id 9"),
    "colours": (lambda path: foreign_palette(mask_of(path)), "has the colour .*--label_colors"),
    "CMYK": (
        lambda path: Image.new("CMYK", (48, 36)).save(put(mask_of(path).with_suffix(".jpg"), b"")),
        "is a picture in CMYK",
    ),
    "cut mask": (lambda path: cut_jpeg(mask_of(path)), ".*truncated"),
    "turned": (lambda path: turned_photo(path, mask_upright=False), ".*EXIF orientation"),
}


def sentence(error) -> str:
    """The message, which is one line without a trace of a traceback."""
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and "0x7f" not in text, text
    return text


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", [*CANNOT_BE_READ, *DO_NOT_FIT])
def test_a_bad_labelled_image_is_named_everywhere(root, kind):
    spoil, reason = {**CANNOT_BE_READ, **DO_NOT_FIT}[kind]
    spoil(root / "train/images/002.png")
    semi = load(root)
    named = re.compile(rf"{root}/train/\w+/002\.\w+.* {reason}")
    with pytest.raises(InputError, match=named) as error:
        check_dataset(semi)
    sentence(error)
    for workers in (0, 2):
        with pytest.raises(InputError, match=named) as error:
            batches(semi, num_workers=workers)
        sentence(error)
    (warning,) = check_dataset(semi, on_bad_sample="skip")
    assert named.search(warning)
    skipping = batches(semi, on_bad_sample="skip")
    assert {named.search(r) is not None for b in skipping for r in b.skipped} == {True}
    assert all("002." not in file for batch in skipping for file in batch.labeled_files)
    for found, batch in zip(batches(semi, on_bad_sample="skip", num_workers=2), skipping, strict=True):
        assert_equal(found, batch)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", CANNOT_BE_READ)
def test_a_bad_unlabelled_image_is_named_everywhere(root, kind):
    spoil, reason = CANNOT_BE_READ[kind]
    bad = spoil(root / "unlabeled/202.png")
    for semi in (load(root), streamed(load(root))):
        with pytest.raises(InputError, match=f"{bad}.* {reason}") as error:
            check_dataset(semi)
        sentence(error)
        for workers in (0, 2):
            with pytest.raises(InputError, match=f"{bad}.* {reason}") as error:
                batches(semi, num_workers=workers)
            sentence(error)
        skipping = batches(semi, on_bad_sample="skip")
        (told,) = {r for batch in skipping for r in batch.skipped}
        assert re.search(f"{bad}.* {reason}", told)
        assert all("202." not in file for batch in skipping for file in batch.unlabeled_files)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", [*CANNOT_BE_READ, *DO_NOT_FIT])
def test_a_bad_validation_image_is_named_before_training_and_in_evaluation(root, kind):
    spoil, reason = {**CANNOT_BE_READ, **DO_NOT_FIT}[kind]
    spoil(root / "validation/images/101.png")
    semi = load(root)
    with pytest.raises(InputError, match=f"101.* {reason}"):
        check_dataset(semi, on_bad_sample="skip")
    for workers in (0, 2):
        with pytest.raises(InputError, match=f"101.* {reason}") as error:
            evaluate(semi, workers)
        sentence(error)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12000, 60000])
@pytest.mark.parametrize("held", ["path", "bytes", "picture"])
def test_of_a_bomb_not_one_pixel_is_decoded(tmp_path, monkeypatch, side, held):
    path = bomb(tmp_path / "bomb.png", side)
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.size))
    cell = {"path": str(path), "bytes": path.read_bytes() if held == "bytes" else None}
    if held == "picture":
        if side == 60000:
            return  # PIL does not even open it
        cell = Image.open(path)
    with pytest.raises(InputError, match=r"photos/bomb\.png"):
        read_photo(cell, "photos/bomb.png")
    assert decoded == []


def test_ids_beyond_32_bits_are_refused_and_do_not_come_out_as_classes():
    from corrmatch_hf.data.masks import MaskFormat

    for wrong in (2**32 + 1, 2**31, -(2**32)):
        with pytest.raises(InputError, match="holds the class id"):
            MaskFormat(4).read(np.array([[0, wrong]]), "mask.png")


# ------------------------------------------------------------------------------------ what is odd, but good


def assert_usable(root) -> tuple[np.ndarray, np.ndarray]:
    """The dataset passes every entry; the pixels and ids of the odd pair, in train and validation alike."""
    semi = load(root)
    assert check_dataset(semi) == []
    first = batches(semi)
    for found, batch in zip(batches(semi, num_workers=2), first, strict=True):
        assert_equal(found, batch)
    assert evaluate(semi)["num_images"] == evaluate(semi, 2)["num_images"] == 2
    (row,) = (row for row in semi.labeled if "000." in row["file"])
    image, mask = semi.read_labeled(row)
    sample = EvaluationSet(semi.validation, semi)[0]
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), np.asarray(image))
    assert np.array_equal(sample["label"].numpy(), mask)
    return np.asarray(image), mask


def put_picture(root, picture: Image.Image, suffix: str, **options) -> None:
    """In the place of a labelled, an unlabelled and a validation photo."""
    for name in ("train/images/000.png", "validation/images/100.png", "unlabeled/201.png"):
        picture.save(put((root / name).with_suffix(suffix), b""), **options)


def put_mask(root, picture: Image.Image, suffix: str = ".png") -> None:
    for name in ("train/masks/000.png", "validation/masks/100.png"):
        picture.save(put((root / name).with_suffix(suffix), b""))


RAMP = np.tile(np.arange(48, dtype=np.uint8) * 5, (36, 1))
EVERY_CLASS = np.tile(np.arange(48, dtype=np.uint8) // 12, (36, 1))


@pytest.mark.parametrize("kind", ["CMYK", "16 bit", "1 bit", "animation"])
def test_odd_photos(root, kind):
    put_mask(root, Image.fromarray(EVERY_CLASS))
    if kind == "CMYK":
        cmyk = np.zeros((36, 48, 4), np.uint8)
        cmyk[..., 3] = 255 - RAMP  # black ink alone
        put_picture(root, Image.fromarray(cmyk, "CMYK"), ".jpg", quality=95)
        truth, tolerance = RAMP, 6
    elif kind == "16 bit":
        put_picture(root, Image.fromarray(RAMP.astype(np.uint16) * 257), ".png")
        truth, tolerance = RAMP, 0
    elif kind == "1 bit":
        put_picture(root, Image.fromarray(RAMP > 100), ".png")
        truth, tolerance = np.where(RAMP > 100, 255, 0), 0
    else:
        frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP), Image.new("L", (48, 36), 99)]
        put_picture(root, frames[0], ".gif", save_all=True, append_images=frames[1:])
        truth, tolerance = RAMP, 0
    image, mask = assert_usable(root)
    assert abs(image.astype(int) - truth[..., None]).max() <= tolerance
    assert np.array_equal(mask, EVERY_CLASS)


@pytest.mark.parametrize("kind", ["16 bit", "1 bit", "palette"])
def test_odd_masks(root, kind):
    truth = EVERY_CLASS > 1 if kind == "1 bit" else EVERY_CLASS
    picture = Image.fromarray(truth.astype(np.uint16) if kind == "16 bit" else truth)
    if kind == "palette":
        picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    put_picture(root, Image.open(write_photo(root / "photo.png")), ".png")
    put_mask(root, picture)
    assert np.array_equal(assert_usable(root)[1], truth)


def test_a_turned_photo_is_trained_on_upright(root):
    for split, stem in (("train", "000"), ("validation", "100")):
        path = turned_photo(root / split / "images" / f"{stem}.png", mask_upright=True)
    with Image.open(path) as file:
        stored = np.asarray(file)
    assert stored.shape == (48, 36, 3)
    image, mask = assert_usable(root)
    assert np.array_equal(image, np.rot90(stored, -1)) and mask.shape == (36, 48)


@pytest.mark.parametrize("size", [(1, 1), (10000, 60), (60, 10000), (2, 500)])
def test_extreme_sizes(root, size):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    ids = np.zeros(size[::-1], np.uint8)
    pixels[-1, -1], ids[-1, -1] = 255, 1
    put_picture(root, Image.fromarray(pixels), ".png")
    put_mask(root, Image.fromarray(ids))
    image, mask = assert_usable(root)
    assert image.shape == pixels.shape and mask[-1, -1] == 1


def test_extreme_sizes_pass_through_a_real_network(root, make_trainer):  # noqa: F811
    for name, size in (("100", (1, 1)), ("101", (700, 3))):
        write_photo(root / f"validation/images/{name}.png", size=size)
        write_mask(root / f"validation/masks/{name}.png", [1], size=size)
    write_photo(root / "unlabeled/200.png", size=(1, 1))
    trainer = make_trainer(data=load(root), max_steps=2)
    metrics = trainer.train()["final"]
    assert metrics["num_images"] == 2


def test_names_of_all_kinds(root):
    for i, name in enumerate(
        ["ä ö/ß 日本語.png", "with  two spaces.png", "dots.in.it.png", "quote'\"%20#.png"]
    ):
        write_photo(root / "train/images" / name, i)
        write_mask(root / "train/masks" / name, [0, 1, 2, 3])
    lines = sorted(str(p.relative_to(root / "train/images")) for p in (root / "train/images").rglob("*.png"))
    listed = root / "labeled.txt"
    listed.write_text("".join(f"train/images/{n}\ttrain/masks/{n}\n" for n in lines), encoding="utf-8")
    for semi in (load(root), load(root, labeled_list=str(listed))):
        assert len(semi.labeled) == 8
        assert check_dataset(semi) == []
        assert any("日本語" in file for batch in batches(semi, 4) for file in batch.labeled_files)


# ------------------------------------------------------------------------------------------------- folders


def photos(root: Path) -> set[str]:
    """The photos of the folder "unlabeled", relative to it and without suffix."""
    found = match(root / "unlabeled", None, "--data_dir").pairs
    return {os.path.splitext(os.path.relpath(pair.image, root / "unlabeled"))[0] for pair in found}


def test_links_that_go_round_in_circles_end(root):
    os.symlink("..", root / "unlabeled" / "up")  # to the folder that holds it
    os.symlink("loop.png", root / "unlabeled" / "loop.png")  # to itself
    for name in "abc":  # each to each: six ways through three folders, and so on
        write_photo(root / "unlabeled" / name / "photo.png")
        for other in "abc":
            os.symlink(f"../{other}", root / "unlabeled" / name / f"to_{other}")
    found = photos(root)
    assert {n for n in found if not n.startswith("up/")} == {
        "200", "201", "202", "203", "loop", "a/photo", "b/photo", "c/photo"
    }  # fmt: skip
    with pytest.raises(InputError, match=r"Cannot read the picture .*loop.png"):
        check_dataset(load(root))


def test_a_linked_folder_is_entered(root, tmp_path):
    write_photo(tmp_path / "elsewhere/inside/photo.png")
    os.symlink(tmp_path / "elsewhere", root / "unlabeled/linked")
    assert "linked/inside/photo" in photos(root)


def test_a_folder_that_may_not_be_read_is_named(root, monkeypatch):
    scan = os.scandir

    def guarded(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    (root / "unlabeled/closed").mkdir()
    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(InputError, match=r"closed \(--data_dir\) cannot be read: Permission denied"):
        load(root)


def test_a_name_that_is_no_text(root):
    try:
        Path(os.fsdecode(bytes(root / "unlabeled") + b"/caf\xe9.png")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    with pytest.raises(InputError, match=r"caf\\udce9.png' \(--data_dir\) is not UTF-8 text: rename it"):
        load(root)


def test_no_file_of_a_large_folder_is_looked_at_more_than_once(root, monkeypatch):
    for i in range(5000):
        (root / f"unlabeled/x{i}.jpg").touch()
    listed = root / "unlabeled.txt"
    listed.write_text("".join(f"unlabeled/x{i}.jpg\n" for i in range(5000)))
    (root / "labeled.txt").write_text("train/images/000.png\n")
    looks = {}

    def counting(function):
        def wrapped(path, *args, **kwargs):
            looks[str(path)] = looks.get(str(path), 0) + 1
            return function(path, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(os, "stat", counting(os.stat))
    monkeypatch.setattr(os, "lstat", counting(os.lstat))

    def of_photos() -> list[int]:
        counts = [count for path, count in looks.items() if "/x" in path]
        looks.clear()
        return counts

    assert len(load(root).unlabeled) == 5004
    assert sum(of_photos()) == 0
    options = {"data_dir": str(root), "id2label": [*"abcd"], "labeled_list": str(root / "labeled.txt")}
    assert len(load_semi_dataset(**options, unlabeled_list=str(listed)).unlabeled) == 5000
    assert set(of_photos()) == {1}
    (root / "labeled.txt").write_text("train/images/000.png train/masks/000.png\n")
    assert len(load_semi_dataset(**options, train_images=str(root / "unlabeled")).unlabeled) == 5004 + 5004
    assert set(of_photos()) == {1}


# ------------------------------------------------------------------------------------------------ skipping


@pytest.mark.parametrize("part", ["train/images/002.png", "unlabeled/202.png"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_disappears_during_training(root, part, workers):
    for skip in ("error", "skip"):
        content = (root / part).read_bytes()
        stream = training_batches(
            load(root), SMALL, labeled_batch=1, unlabeled_batch=1, seed=0, num_workers=workers,
            on_bad_sample=skip,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            next(stream)
        (root / part).unlink()
        if skip == "error":
            with pytest.raises(
                InputError, match=f"Cannot read the picture {root / part}: .*No such file"
            ) as e:
                list(islice(stream, 12))
            sentence(e)
        else:
            drawn = list(islice(stream, 12))
            (reason,) = {reason for batch in drawn for reason in batch.skipped}
            assert str(root / part) in reason
        stream.close()
        (root / part).write_bytes(content)


@pytest.fixture(scope="module")
def broken():
    """Bad samples among the labelled and the unlabelled ones."""
    whole = synthetic_semi_dataset(labeled=5, unlabeled=11, validation=1, image_size=32)
    return dataclasses.replace(
        whole, labeled=break_rows(whole.labeled, [1, 2]), unlabeled=break_rows(whole.unlabeled, [4, 7, 8])
    )


@pytest.mark.parametrize("partner", ["same_image", "batch"])
@pytest.mark.parametrize("kind", ["list", "stream"])
def test_replacements_do_not_depend_on_processes_or_on_resuming(broken, partner, kind):
    semi = broken if kind == "list" else streamed(broken)
    augmentation = dataclasses.replace(SMALL, cutmix_partner=partner, cutmix_probability=1.0)

    def run(count, labeled, unlabeled, **options):
        options |= {
            "labeled_batch": labeled,
            "unlabeled_batch": unlabeled,
            "seed": 3,
            "on_bad_sample": "skip",
        }
        return list(islice(training_batches(semi, augmentation, **options), count))

    whole = run(6, 4, 6)
    assert any(batch.skipped for batch in whole)
    halves = [run(6, 2, 3, world_size=2, rank=rank) for rank in range(2)]
    for total, *parts in zip(whole, *halves, strict=True):
        for name in ("image", "label", "weak", "strong", "valid", "box", "partner_weak", "partner_valid"):
            assert torch.equal(getattr(total, name), torch.cat([getattr(p, name) for p in parts])), name
        assert total.unlabeled_files == [f for p in parts for f in p.unlabeled_files]
        assert set(total.skipped) == {reason for p in parts for reason in p.skipped}
    for found, batch in zip(run(2, 4, 6, start_step=4), whole[4:], strict=True):
        assert_equal(found, batch)


def test_a_partner_that_cannot_be_read_is_replaced_too(broken):
    """With a box in every view and another image of the batch as partner, nothing of a bad image is pasted."""
    augmentation = dataclasses.replace(SMALL, cutmix_partner="batch", cutmix_probability=1.0)
    options = {"labeled_batch": 1, "unlabeled_batch": 1, "seed": 3, "world_size": 4}
    bad_partner = False
    for rank in range(4):
        for batch in islice(
            training_batches(broken, augmentation, rank=rank, on_bad_sample="skip", **options), 8
        ):
            own = batch.unlabeled_files[0]
            assert batch.box.any() and batch.partner_rows == [0]
            unlabeled = [reason for reason in batch.skipped if "unlabeled" in reason]
            bad_partner |= bool(unlabeled) and not any(own in reason for reason in unlabeled)
    assert bad_partner, "no partner was bad, so this showed nothing"


def test_a_run_says_at_its_end_what_it_skipped_and_why(root, make_trainer, capsys):  # noqa: F811
    bad = [cut_jpeg(root / "train/images/002.png"), put(root / "unlabeled/203.png", b"")]
    trainer = make_trainer(data=load(root), max_steps=6, on_bad_sample="skip")
    with pytest.warns(UserWarning, match="Cannot read the picture"):
        result = trainer.train()
    assert len(result["skipped"]) == 2, "each once, however often it was met"
    shown = capsys.readouterr().out
    assert "skipped 2 unreadable images:" in shown
    summary = shown.split("skipped 2 unreadable images:")[1]
    for path in bad:
        assert re.search(f"Cannot read the picture {path}: .*(truncated|none of JPEG)", summary)
    stored = json.loads((Path(trainer.output_dir) / "metrics.json").read_text(encoding="utf-8"))
    assert sorted(stored["skipped"]) == sorted(result["skipped"])


# ------------------------------------------------------------------------------------------------- loading


def test_one_broken_mask_does_not_keep_a_dataset_from_loading(root):
    """Nobody says how many classes there are, or which images are labelled: masks are looked at."""
    cut_jpeg(root / "train/masks/001.png")
    assert load_semi_dataset(data_dir=str(root)).num_labels == 4
    semi = load_semi_dataset(data_dir=str(root), labeled_count=3)
    assert len(semi.labeled) == 3
    for path in (root / "train/masks").iterdir():
        path.write_bytes(b"")
    for path in (root / "validation/masks").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"Cannot read the picture .*masks/000"):
        load_semi_dataset(data_dir=str(root))

"""Lists and datasets name files: only such as are theirs, in text that can be read, and mistakes by line."""

from __future__ import annotations

import json
import os
import re
import shutil
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image

from corrmatch_hf.data import Augmentation, load_semi_dataset, training_batches
from corrmatch_hf.data.sources.hub import DatasetFiles
from corrmatch_hf.errors import InputError

from ..data.conftest import _own_cache  # noqa: F401
from ..data.pictures_on_disk import write_mask, write_photo, write_split
from ..hub.conftest import hub, hub_server, online, online_datasets  # noqa: F401
from .bad_pictures import NAMES, load, write_dataset

# ----------------------------------------------------------------------------------------------- partition lists


@pytest.fixture
def root(tmp_path):
    """The data, and beside them a pair that does not belong to them."""
    write_photo(tmp_path / "private/photo.png")
    write_mask(tmp_path / "private/mask.png", [0, 1])
    return write_dataset(tmp_path / "set")


def write_list(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("option", ["labeled_list", "unlabeled_list", "validation_list", "extra_unlabeled"])
@pytest.mark.parametrize(
    "line",
    [
        "../private/photo.png ../private/mask.png",
        "../private/photo.png\t../private/mask.png",
        "train/../../private/photo.png train/../../private/mask.png",
        "train/images/000.png/../../../../private/photo.png ../private/mask.png",
    ],
)
def test_an_entry_that_leads_out_is_refused(root, tmp_path, option, line):
    lists = {"labeled_list": write_list(tmp_path / "good.txt", "train/images/000.png train/masks/000.png")}
    lists[option] = write_list(root / "bad.txt", "train/images/001.png train/masks/001.png", line)
    with pytest.raises(
        InputError, match=rf"bad.txt, line 2 \(--{option}\): .* leads out of {root}: .*--data_dir"
    ):
        load(root, **lists)


def test_a_mask_that_leads_out_is_refused(root):
    listed = write_list(root / "labeled.txt", "train/images/000.png ../private/mask.png")
    with pytest.raises(InputError, match=r"line 1 .*\.\./private/mask.png leads out of"):
        load(root, labeled_list=listed)


def test_a_file_that_is_not_there_leads_out_as_well(root):
    listed = write_list(root / "labeled.txt", "../../etc/passwd.png")
    with pytest.raises(InputError, match=r"\.\./\.\./etc/passwd.png leads out of"):
        load(root, labeled_list=listed)


def test_nor_does_a_name_that_leads_out_stand_for_an_image_of_that_name(root):
    listed = write_list(root / "labeled.txt", "../../000.png")
    good = write_list(root / "good.txt", *pairs(1))
    for options in ({"labeled_list": listed}, {"labeled_list": good, "unlabeled_list": listed}):
        with pytest.raises(InputError, match="leads out of"):
            load(root, **options)


def test_absolute_paths_are_the_users_own_wish(root, tmp_path):
    private = tmp_path / "private"
    (private / "deep").mkdir()
    os.symlink(private / "deep", tmp_path / "short")
    for folder in (private, tmp_path / "short/.."):  # which the system, too, takes for `private`
        listed = write_list(root / "labeled.txt", f"{folder}/photo.png {folder}/mask.png")
        semi = load(root, labeled_list=listed)
        assert semi.labeled["file"][:] == [f"{folder}/photo.png"]
        semi.read_labeled(semi.labeled[0])


def test_published_lists_may_be_relative_to_their_own_folder(root, tmp_path, monkeypatch):
    """`..` from the folder of the list, as long as it stays in the data, however the folders are written."""
    listed = write_list(
        root / "splits/1_4/labeled.txt", "../../train/images/001.png ../../train/masks/001.png"
    )
    os.symlink(root, tmp_path / "link")
    monkeypatch.chdir(root / "splits")
    for data_dir in (str(root), str(tmp_path / "link"), ".."):
        for name in (listed, "1_4/labeled.txt", str(tmp_path / "link/splits/1_4/labeled.txt")):
            semi = load(Path(data_dir), labeled_list=name)
            assert [os.path.realpath(f) for f in semi.labeled["file"]] == [str(root / "train/images/001.png")]
            semi.read_labeled(semi.labeled[0])
    outside = shutil.copy(listed, write_list(tmp_path / "a/b/labeled.txt", ""))
    with pytest.raises(InputError, match="leads out of"):
        load(root, labeled_list=outside)
    inside = write_list(root / "labeled.txt", "splits/../train/images/001.png splits/../train/masks/001.png")
    assert len(load(root, labeled_list=inside).labeled) == 1


def test_without_a_folder_of_the_data_a_list_stays_in_its_own(root):
    listed = write_list(root / "splits/labeled.txt", "../train/images/001.png ../train/masks/001.png")
    with pytest.raises(InputError, match=r"leads out of .*splits: give the folder .* as --data_dir"):
        load_semi_dataset(labeled_list=listed, id2label=NAMES)
    assert len(load(root, labeled_list=listed).labeled) == 1


def test_links_may_lead_anywhere(root, tmp_path):
    """Data that are linked into a folder are usual: it is the written path that counts."""
    os.symlink(tmp_path / "private", root / "linked")
    listed = write_list(root / "labeled.txt", "linked/photo.png linked/mask.png")
    assert len(load(root, labeled_list=listed).labeled) == 1
    (tmp_path / "names.json").write_text(json.dumps(["w", "x", "y", "z"]))
    os.symlink(tmp_path / "names.json", root / "id2label.json")
    assert load_semi_dataset(data_dir=str(root)).id2label[3] == "z"
    # `..` behind a link is what is written, too: not the folder above the target.
    listed = write_list(root / "labeled.txt", "linked/../private/photo.png linked/../private/mask.png")
    with pytest.raises(InputError, match=f"{root}/private/photo.png does not exist"):
        load(root, labeled_list=listed)


def pairs(*numbers: int) -> list[str]:
    return [f"train/images/{i:03d}.png train/masks/{i:03d}.png" for i in numbers]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + "\n".join(pairs(0, 1)).encode(),
        "\r\n".join(pairs(0, 1)).encode() + b"\r\n",
        "\r".join(pairs(0, 1)).encode(),
        ("\n\n  \t\n" + "\n \r\n".join(pairs(0, 1)) + "  \n\n").encode(),
        b"\xef\xbb\xbf" + "\r\n\r\n".join(pairs(0, 1)).encode(),
    ],
)
def test_lists_from_any_system(root, content, monkeypatch):
    (root / "labeled.txt").write_bytes(content)
    assert len(load(root, labeled_list=str(root / "labeled.txt")).labeled) == 2


@pytest.mark.parametrize(
    "content, message",
    [
        ("\n".join(pairs(0)).encode() + "\ncafé.png".encode("latin-1"), "line 2 holds the byte 0xE9. Save"),
        ("\n".join(pairs(0)).encode("utf-16"), "line 1 holds the byte 0xFF. Save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0", "is not a text file; give one"),
        (b"", "is empty"),
        (b" \r\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (("\n".join(pairs(0)) + "\n# the rest").encode(), "line 2 .*'# the rest' names no file: .* comments"),
        (("\n" + "x" * 5000 + ".png").encode(), "line 2 .*does not exist"),
        (b"train/images/\0.png", "line 1 .*does not exist"),
    ],
)  # fmt: skip
def test_lists_that_are_no_lists(root, content, message):
    (root / "list.txt").write_bytes(content)
    listed = str(root / "list.txt")
    good = write_list(root / "good.txt", *pairs(1))
    for options in (
        {"labeled_list": listed},
        {"labeled_list": good, "unlabeled_list": listed},
        {"labeled_list": good, "validation_list": listed},
        {"labeled_list": good, "extra_unlabeled": listed},
    ):
        with pytest.raises(
            InputError, match=rf"list.txt.*--{list(options)[-1]}.*{message}|{message}"
        ) as error:
            load(root, **options)
        assert "list.txt" in str(error.value) and "\n" not in str(error.value)


def test_a_list_that_is_a_folder_or_not_there(root):
    with pytest.raises(
        InputError, match=r"The list .*train \(--labeled_list\) cannot be read: Is a directory"
    ):
        load(root, labeled_list=str(root / "train"))
    with pytest.raises(InputError, match=r"The list .*nowhere.txt \(--labeled_list\) does not exist"):
        load(root, labeled_list=str(root / "nowhere.txt"))


def test_names_of_any_language_do_not_depend_on_the_locale(root, monkeypatch):
    """A reader that leaves the encoding to the system reads these as another one on Windows."""
    import io

    write_photo(root / "train/images/写真.png")
    write_mask(root / "train/masks/写真.png", [0, 1])
    write_list(root / "labeled.txt", "train/images/写真.png train/masks/写真.png")
    (root / "id2label.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(["été", "b", "c", "d"]).encode())
    real = io.text_encoding
    monkeypatch.setattr(io, "text_encoding", lambda e, level=2: "latin-1" if e is None else real(e, level))
    semi = load_semi_dataset(data_dir=str(root), labeled_list=str(root / "labeled.txt"))
    assert semi.labeled["file"][:] == [str(root / "train/images/写真.png")]
    assert semi.id2label[0] == "été"


def test_pascal_lists_are_read_alike(tmp_path):
    write_split(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", 3)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(b"\xef\xbb\xbf000\r\n\r\n001\r\n")
    assert len(load_semi_dataset(data_dir=str(tmp_path)).labeled) == 2
    (lists / "train.txt").write_bytes(b"000\n\n../../001\n")
    with pytest.raises(InputError, match=r"train.txt, line 3: there is no image named '../../001'"):
        load_semi_dataset(data_dir=str(tmp_path))
    (lists / "train.txt").write_bytes(b"000\n\xff\n")
    with pytest.raises(InputError, match=r"train.txt .*line 2 holds the byte 0xFF"):
        load_semi_dataset(data_dir=str(tmp_path))


@pytest.mark.parametrize(
    "content", ["5", '"abc"', "null", "[]", "{}", '{"a": "b"}', "[" * 100000, "{", "\xff"]
)
def test_names_of_classes_that_are_none(root, content):
    (root / "id2label.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"id2label.json") as error:
        load_semi_dataset(data_dir=str(root))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="--label_colors"):
        load(root, label_colors=str(root / "id2label.json"))


# ------------------------------------------------------------------------------------- what `datasets` reads


def secret(tmp_path: Path) -> tuple[str, str]:
    """A private photo and a private mask, of the size of the others."""
    return str(write_photo(tmp_path / "private/photo.png")), str(
        write_mask(tmp_path / "private/m.png", [0, 1])
    )


def image_folder(root: Path, image: str, mask: str, kind: str = "jsonl") -> str:
    write_split(root / "train/photos", root / "train/ids", 3)
    rows = [(f"photos/{i:03d}.png", f"ids/{i:03d}.png") for i in range(3)] + [(image, mask)]
    if kind == "jsonl":
        lines = [json.dumps({"file_name": a, "label_file_name": b}) for a, b in rows]
    else:
        lines = ["file_name,label_file_name", *(f"{a},{b}" for a, b in rows)]
    (root / f"train/metadata.{kind}").write_text("\n".join(lines))
    return str(root)


def parquet(path: Path, image: str, mask: str, held: tuple[bytes | None, bytes | None] = (None, None)) -> str:
    """Pictures that are paths alone, unless the file holds them. `datasets` takes the features from the metadata."""
    path.parent.mkdir(parents=True)
    cells = [[{"bytes": b, "path": p}] * 3 for p, b in zip((image, mask), held, strict=True)]
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "Image"}}}}
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({n: pa.array(c, struct) for n, c in zip(("image", "label"), cells, strict=True)})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    return str(path.parent)


def both_ways(where: str, **options):
    """Loads at once, and as a stream that is read through."""
    yield lambda: load_semi_dataset(where, id2label=NAMES, **options)

    def stream():
        semi = load_semi_dataset(where, id2label=NAMES, streaming=True, labeled_count=1, **options)
        augmentation = Augmentation(crop_size=9)
        list(islice(training_batches(semi, augmentation, labeled_batch=1, unlabeled_batch=2, seed=0), 2))
        return semi

    yield stream


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("way", ["up", "absolute", "url", "mask"])
def test_metadata_cannot_lead_out_of_a_dataset(tmp_path, kind, way):
    photo, mask = secret(tmp_path)
    image, label = {
        "up": ("../../private/photo.png", "ids/000.png"),
        "absolute": (photo, "ids/000.png"),
        "url": (f"file://{photo}", "ids/000.png"),
        "mask": ("photos/000.png", f"../../private/{Path(mask).name}"),
    }[way]
    where = image_folder(tmp_path / "set", image, label, kind)
    for attempt in both_ways(where):
        with pytest.raises(InputError, match=r"private/(photo|m).png") as error:
            attempt()
        assert "\n" not in str(error.value)


def test_nor_where_datasets_itself_does_not_mind(tmp_path, monkeypatch):
    """Before version 5 it joins whatever metadata say to the folder; then it is this package that refuses."""
    secret(tmp_path)
    where = image_folder(tmp_path / "set", "photos/000.png", "ids/000.png")
    real = datasets.load_dataset

    def joining(*args, streaming=False, **options):
        rows = real(*args, **options)["train"]
        for column in ("image", "label"):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        values = rows.to_list()
        values[3]["image"]["path"] = f"{where}/train/../../private/photo.png"
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
        joined = datasets.Dataset.from_list(values, features=features)
        return {"train": joined.to_iterable_dataset() if streaming else joined}

    monkeypatch.setattr(datasets, "load_dataset", joining)
    for attempt in both_ways(where):
        with pytest.raises(InputError, match=r"names '.*private/photo.png' as a picture of train\[3\]"):
            attempt()


@pytest.mark.parametrize("way", ["absolute", "relative", "url", "chain"])
@pytest.mark.parametrize("column", ["image", "label"])
def test_parquet_cannot_name_files_of_this_machine(tmp_path, monkeypatch, way, column):
    photo, mask = secret(tmp_path)
    monkeypatch.chdir(tmp_path)
    paths = {"image": photo, "label": mask}
    own = write_split(tmp_path / "set/photos", None, 1)[0]
    rewrite = {
        "absolute": lambda path: path,
        "relative": lambda path: os.path.relpath(path),
        "url": lambda path: f"file://{path}",
        "chain": lambda path: f"simplecache::file://{path}",
    }[way]
    cells = {name: str(tmp_path / f"set/photos/{own}.png") for name in paths}
    cells[column] = rewrite(paths[column])
    where = parquet(tmp_path / "set/data/train.parquet", cells["image"], cells["label"])
    for attempt in both_ways(str(Path(where).parent)):
        with pytest.raises(
            InputError, match=r"names '.*private/.*' as a picture of .*train\[0\], which is not one"
        ):
            attempt()


def test_strings_cannot_name_files_of_this_machine_either(tmp_path):
    photo, mask = secret(tmp_path)
    (tmp_path / "set").mkdir()
    row = json.dumps({"image": photo, "label": mask})
    (tmp_path / "set/train.jsonl").write_text("\n".join([row] * 3))
    for attempt in both_ways("json", data_dir=str(tmp_path / "set")):
        with pytest.raises(InputError, match=r"names '.*private/.*' as a picture"):
            attempt()


def test_a_datasets_own_files_are_read(tmp_path):
    where = image_folder(tmp_path / "set", "photos/../photos/000.png", "ids/000.png")
    contents = tuple(Path(p).read_bytes() for p in secret(tmp_path))
    held = parquet(tmp_path / "held/train.parquet", "/nowhere/photo.png", "../m.png", contents)
    os.symlink(where, tmp_path / "link")
    for folder, count in ((where, 4), (str(tmp_path / "link"), 4), (held, 3)):
        whole, stream = both_ways(folder)
        semi = whole()
        assert len(semi.labeled) == count and semi.labeled[0]["image"].size == (48, 36)
        stream()


def test_what_belongs_to_a_dataset_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    os.symlink(
        tmp_path / "disk", tmp_path / "cache"
    )  # a cache on another disk, as it is written and as it is
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    own = DatasetFiles("user/streets", None)
    for folder in ("cache", "disk"):
        own.check(str(tmp_path / folder / "datasets--user--streets/1.png"), "train[0]")
    cache = datasets.config.HF_DATASETS_CACHE
    for path in (
        "hf://datasets/user/streets@abc/train/1.png",
        "zip://1.png::hf://datasets/user/streets@abc/train.zip",
        f"{cache}/downloads/extracted/1.png",
        f"zip://1.png::{cache}/downloads/train.zip",
    ):
        own.check({"path": path, "bytes": None}, "train[0]")
        own.check(path, "train[0]")
    for path in (
        "hf://datasets/user/secret@abc/train/1.png",
        "hf://datasets/user/streets@abc/../../secret@main/1.png",
        "hf://datasets/user/streets-too/1.png",
        "https://localhost/1.png",
        "http://169.254.169.254/1.png",
        "file:///etc/1.png::hf://datasets/user/streets@abc/train.zip",
        f"{cache}/../1.png",
        f"{cache}-other/1.png",
        "1.png",
    ):
        with pytest.raises(InputError, match="not one of its own files"):
            own.check({"path": path, "bytes": None}, "train[0]")
        own.check({"path": path, "bytes": b"held"}, "train[0]")
    own.check(np.zeros(3), "train[0]")
    own.check(None, "train[0]")


@pytest.mark.usefixtures("online_datasets")
def test_a_downloaded_dataset_reads_its_own_files_alone(tmp_path, hub):  # noqa: F811
    """With the real clients: an imagefolder and a Parquet file from a Hub."""
    photo, mask = secret(tmp_path)
    good = Path(image_folder(tmp_path / "good", "photos/001.png", "ids/001.png"))
    bad = Path(image_folder(tmp_path / "bad", "../../../../../../private/photo.png", "ids/001.png"))
    parquet(tmp_path / "parquet/train.parquet", photo, mask)
    for folder in (good, bad, tmp_path / "parquet"):
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        hub.add(f"user/{folder.name}", files, "dataset")
    for options in ({}, {"streaming": True, "labeled_count": 2}):
        semi = load_semi_dataset("user/good", num_labels=4, **options)
        semi.read_labeled(semi.labeled[0])
        assert len(semi.labeled) + len(list(semi.unlabeled or ())) == 4
        with pytest.raises(InputError, match=r"private/photo\.png"):
            read_all("user/bad", options)
        outside = re.escape(f"names '{photo}' as a picture of train[0], which is not one of its own files")
        with pytest.raises(InputError, match=outside):
            read_all("user/parquet", options)


def read_all(name, options):
    semi = load_semi_dataset(name, num_labels=4, **options)
    list(semi.unlabeled or ())
    semi.read_labeled(semi.labeled[0])


# ------------------------------------------------------------------------------------------ what is not whole


def test_what_keeps_datasets_from_loading_is_one_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/train.parquet").write_text("no parquet")
    (tmp_path / "b/train").mkdir(parents=True)
    (tmp_path / "b/train/metadata.jsonl").write_text('{"file_name": \n')
    pair = {"image": [np.zeros((2, 2, 3), np.uint8)], "label": [np.zeros((2, 2), np.uint8)]}
    whole = datasets.Dataset.from_dict(pair)
    whole.save_to_disk(str(tmp_path / "c"))
    for path in (tmp_path / "c").glob("*.arrow"):
        path.write_bytes(b"cut")
    for name in "abc":
        with pytest.raises(InputError, match=rf"The dataset '{tmp_path}/{name}' cannot be loaded: ") as error:
            load_semi_dataset(str(tmp_path / name))
        assert "An error occurred" not in str(error.value)


def test_a_stream_that_breaks_off_is_one_sentence(tmp_path):
    photo = Image.open(write_photo(tmp_path / "x.png"))

    def rows():
        for i in range(6):
            yield {"image": photo, "file": str(i)}
        raise ConnectionError("the Hub went away")

    features = datasets.Features({"image": datasets.Image(), "file": datasets.Value("string")})
    semi = load(write_dataset(tmp_path / "set"))
    object.__setattr__(semi, "unlabeled", datasets.IterableDataset.from_generator(rows, features=features))
    for skip in ("error", "skip"):
        stream = training_batches(
            semi, Augmentation(crop_size=9), labeled_batch=1, unlabeled_batch=3, seed=0, on_bad_sample=skip
        )
        with pytest.raises(InputError, match="The stream of images cannot be read on: the Hub went away"):
            list(islice(stream, 5))

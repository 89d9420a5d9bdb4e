"""The command in this process, with a tiny model of random weights."""

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.commands import predict, run
from corrmatch_hf.data.annotations.save import PolygonFolder
from corrmatch_hf.errors import InputError


def write_photo(path, size=(50, 40), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_mask_and_overlay_are_those_of_the_model(saved_model, tmp_path):
    photo = write_photo(tmp_path / "photo.png")
    predict.main([str(photo), "--model", str(saved_model), "--output_dir", str(tmp_path / "out")])

    model = CorrMatchForSegmentation.from_pretrained(saved_model)
    processor = CorrMatchImageProcessor.from_pretrained(saved_model)
    with torch.no_grad():
        logits = model(**processor(images=Image.open(photo), return_tensors="pt")).logits
    mask = Image.open(tmp_path / "out" / "photo_mask.png")
    assert mask.mode == "P"
    np.testing.assert_array_equal(np.array(mask), logits[0].argmax(0).numpy())
    overlay = Image.open(tmp_path / "out" / "photo_overlay.png")
    assert overlay.width > 50 and overlay.height >= 40


def test_masks_have_the_colours_of_the_dataset(saved_model, tmp_path):
    colors = [[1, 2, 3], [40, 50, 60], [255, 0, 9]]
    model = CorrMatchForSegmentation.from_pretrained(saved_model, label_colors=colors)
    model.save_pretrained(tmp_path / "model")
    CorrMatchImageProcessor().save_pretrained(tmp_path / "model")
    photo = write_photo(tmp_path / "photo.png")
    predict.main([str(photo), "--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")])
    assert Image.open(tmp_path / "out" / "photo_mask.png").getpalette()[:9] == np.ravel(colors).tolist()


def test_low_precision_gives_nearly_the_same_mask(saved_model, tmp_path):
    photo, masks = write_photo(tmp_path / "photo.png"), []
    for precision in ("float32", "bf16"):
        output = tmp_path / precision
        predict.main(
            [str(photo), "--model", str(saved_model), "--output_dir", str(output), "--precision", precision]
        )
        masks.append(np.array(Image.open(output / "photo_mask.png")))
    assert (masks[0] == masks[1]).mean() > 0.95


def test_files_and_folders_of_any_mode_and_size_with_names_kept_apart(saved_model, tmp_path):
    write_photo(tmp_path / "in" / "a.jpg", (33, 47))
    write_photo(tmp_path / "in" / "b.png", mode="L")
    write_photo(tmp_path / "in" / "c.png", mode="RGBA")
    (tmp_path / "in" / "notes.txt").write_text("no photo")
    other = write_photo(tmp_path / "other" / "a.png", (20, 64), seed=1)
    third = write_photo(tmp_path / "third" / "a_2.png", (30, 30), seed=2)
    options = ["--window", "32", "--alpha", "0.3", "--output_dir", str(tmp_path / "out")]
    predict.main([str(tmp_path / "in"), str(other), str(third), "--model", str(saved_model), *options])
    sizes = {p.name: Image.open(p).size for p in (tmp_path / "out").glob("*_mask.png")}
    assert sizes == {
        "a_mask.png": (33, 47),
        "b_mask.png": (50, 40),
        "c_mask.png": (50, 40),
        "a_2_mask.png": (20, 64),
        "a_2_2_mask.png": (30, 30),
    }
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 5


@pytest.mark.parametrize("tool", ["coco", "labelme"])
def test_polygons_for_annotation_tools_can_be_imported_again(tool, saved_model, tmp_path, capsys):
    write_photo(tmp_path / "in" / "ü 1.png", (70, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.open(write_photo(tmp_path / "2.png", (50, 40))).save(tmp_path / "in" / "2.jpg", exif=exif)
    options = ["--model", str(saved_model), "--output_dir", str(tmp_path / "out"), "--save_as", tool]
    predict.main([str(tmp_path / "in"), *options])
    folder = tmp_path / "out" / tool
    _, _, command = capsys.readouterr().out.rstrip().rpartition("corrmatch import ")
    source, new, *rest = shlex.split(command)
    assert (source, new) == (str(folder), "NEW")
    same = tmp_path / "same"
    assert run("import", [source, str(same), *rest]) == 0  # with the model's numbers
    assert "where nothing is annotated is ignored (255)" in capsys.readouterr().out
    for name in ("ü 1", "2"):
        predicted, again = (
            np.array(Image.open(path))
            for path in (tmp_path / "out" / f"{name}_mask.png", same / "train" / "masks" / f"{name}.png")
        )
        assert (again == predicted).mean() > 0.999
    assert run("import", [str(folder), str(tmp_path / "again")]) == 0
    names = ["background", "sky", "road", "car"]  # what no polygon covers has a class of its own
    assert "not used" not in (printed := capsys.readouterr().out) or "classes without annotation" in printed
    given = json.loads((tmp_path / "again" / "id2label.json").read_text())
    for name in ("ü 1", "2"):
        predicted = np.array(Image.open(tmp_path / "out" / f"{name}_mask.png"))
        again = np.array(Image.open(tmp_path / "again" / "train" / "masks" / f"{name}.png"))
        as_named = np.array([names.index(given[key]) for key in sorted(given)])[again]
        assert (as_named == predicted + 1).mean() > 0.999
        photo = next((tmp_path / "in").glob(f"{name}.*"))
        assert (tmp_path / "again" / "train" / "images" / photo.name).read_bytes() == photo.read_bytes()
    with pytest.raises(InputError, match="may hold corrections"):
        predict.main([str(tmp_path / "in"), *options])


def test_polygons_never_lose_the_names_or_numbers_of_the_classes(tmp_path):
    photo = write_photo(tmp_path / "a.png")
    strange = {0: "ro\u202ead", 1: "<b>"}
    polygons = PolygonFolder(tmp_path / "out" / "labelme", "labelme", strange)
    polygons.add(photo, "a", np.zeros((40, 50), dtype=np.uint8))
    command = shlex.split(
        polygons.close().rpartition("corrmatch import ")[2].replace("NEW", str(tmp_path / "new"))
    )
    assert run("import", command) == 0  # both files have the escaped name
    assert np.array(Image.open(tmp_path / "new" / "train" / "masks" / "a.png")).max() == 0

    PolygonFolder(tmp_path / "out" / "coco", "coco", strange)  # the same model again
    with pytest.raises(InputError, match="holds other class numbers"):
        PolygonFolder(tmp_path / "out" / "coco", "coco", {0: "<b>", 1: "road"})
    with pytest.raises(InputError, match="calls 2 classes 'road'"):
        PolygonFolder(tmp_path / "other" / "coco", "coco", {0: "road", 1: "road"})


def test_a_failure_at_the_first_photo_leaves_no_folder_that_refuses_the_next_try(
    saved_model, tmp_path, monkeypatch
):
    photo = write_photo(tmp_path / "good.png")
    command = [
        str(photo),
        "--model",
        str(saved_model),
        "--output_dir",
        str(tmp_path / "out"),
        "--save_as",
        "coco",
    ]
    with monkeypatch.context() as broken:
        nan = torch.full((1, 3, 48, 64), torch.nan)
        broken.setattr("corrmatch_hf.evaluation.inference.predict_probabilities", lambda *a, **k: nan)
        with pytest.raises(InputError, match="not finite"):
            predict.main(command)
    predict.main(command)
    assert (tmp_path / "out" / "coco" / "annotations.json").is_file()


def test_an_unreadable_photo_is_told_after_the_others_are_done(saved_model, tmp_path):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"not a photo")
    good = write_photo(tmp_path / "good.png")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        predict.main(
            [str(bad), str(good), "--model", str(saved_model), "--output_dir", str(tmp_path / "out")]
        )
    assert (tmp_path / "out" / "good_mask.png").exists()
    assert not (tmp_path / "out" / "broken_mask.png").exists()


def test_what_is_not_there_is_told(saved_model, tmp_path, capsys):
    with pytest.raises(InputError, match=r"no image .*gone\.jpg"):
        predict.main([str(tmp_path / "gone.jpg"), "--model", str(saved_model)])
    with pytest.raises(InputError, match="contains no picture"):
        predict.main([str(tmp_path), "--model", str(saved_model)])
    write_photo(tmp_path / "day 1" / "photo.png")
    with pytest.raises(InputError, match=r"name them instead, such as .*day 1"):
        predict.main([str(tmp_path), "--model", str(saved_model)])
    photo = write_photo(tmp_path / "photo.png")
    predict.main([str(tmp_path), "--model", str(saved_model), "--output_dir", str(tmp_path / "out")])
    assert "not segmented; name these folders, too" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"No segmentation model .*nowhere"):
        predict.main([str(photo), "--model", str(tmp_path / "nowhere")])

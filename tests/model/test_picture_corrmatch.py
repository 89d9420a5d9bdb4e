"""Training, image processor, pipeline and endpoint see the same pixels, whatever the mode of a photo."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.data.images import read_photo
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.handler import EndpointHandler
from corrmatch_hf.model.picture_corrmatch import sixteen_to_eight, to_rgb

RAMP = np.arange(40 * 50).reshape(40, 50) % 256


def pictures() -> dict[str, Image.Image]:
    gray = Image.fromarray(RAMP.astype(np.uint8))
    color = Image.merge(
        "RGB", [gray, gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT), gray.point(lambda v: 255 - v)]
    )
    transparent = color.convert("RGBA")
    transparent.putalpha(gray)
    return {
        "1": gray.convert("1"), "L": gray, "LA": gray.convert("LA"), "P": color.convert("P"), "RGB": color,
        "RGBA": transparent, "CMYK": color.convert("CMYK"),
        "I;16": Image.fromarray((RAMP * 257).astype(np.uint16)), "I": Image.fromarray((RAMP * 257).astype(np.int32)),
        "F 0..1": Image.fromarray((RAMP / 255).astype(np.float32)),
        "F 0..255": Image.fromarray(RAMP.astype(np.float32)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a model."""
    torch.manual_seed(0)
    small = dict.fromkeys(
        ("aspp_channels", "decoder_channels", "low_level_channels", "correlation_channels"), 8
    )
    config = CorrMatchConfig(encoder_name="test_resnet", num_labels=3, **small)
    folder = tmp_path_factory.mktemp("model")
    CorrMatchForSegmentation(config).save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(saved):
    return pipeline("image-segmentation", model=str(saved)), EndpointHandler(str(saved))


@pytest.mark.parametrize("mode", pictures())
def test_every_reader_sees_the_same(mode, served, tmp_path):
    picture, (pipe, handler) = pictures()[mode], served
    file = str(tmp_path / ("photo.tif" if mode[0] in "IFC" else "photo.png"))
    picture.save(file)
    trained = np.asarray(read_photo(file, file))
    if mode in ("L", "LA", "I;16", "I", "F 0..1", "F 0..255"):
        np.testing.assert_array_equal(trained, np.repeat(RAMP[..., None], 3, 2))
    want = CorrMatchImageProcessor()(images=Image.fromarray(trained), return_tensors="pt")["pixel_values"]
    with Image.open(file) as opened:
        assert torch.equal(
            CorrMatchImageProcessor()(images=opened, return_tensors="pt")["pixel_values"], want
        )
    assert torch.equal(CorrMatchImageProcessor()(images=file, return_tensors="pt")["pixel_values"], want)
    assert torch.equal(pipe.preprocess(file)["pixel_values"], want)
    assert torch.equal(pipe.preprocess(picture)["pixel_values"], want)
    seen = []
    hook = handler.model.register_forward_pre_hook(lambda model, args: seen.append(args[0]))
    with open(file, "rb") as stream:
        handler({"inputs": stream.read()})
    hook.remove()
    assert torch.equal(seen[0], want)


def test_sixteen_bits_are_rounded():
    values = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(sixteen_to_eight(values), np.floor(values / 257 + 0.5))
    processed = CorrMatchImageProcessor(do_rescale=False, do_normalize=False)(images=values.reshape(256, 256))
    np.testing.assert_array_equal(processed["pixel_values"][0][0], sixteen_to_eight(values).reshape(256, 256))


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 256.0], [0.0, np.nan]])
def test_floats_of_no_known_range_are_refused(values, tmp_path):
    picture = Image.fromarray(np.array([values], np.float32))
    with pytest.raises(ValueError, match="must lie between 0 and 255"):
        to_rgb(picture)
    with pytest.raises(InputError, match=r"Cannot read the picture here\.tif: its values go from"):
        read_photo(picture, "here.tif")


def test_a_photo_of_few_bits_is_told(monkeypatch):
    monkeypatch.setattr("corrmatch_hf.data.images._told", set())
    with pytest.warns(UserWarning, match=r"dark.tif has no value above 4080 of 65535"):
        read_photo(Image.fromarray((RAMP * 16).astype(np.uint16)), "dark.tif")


def test_a_stack_of_pages_is_told(monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr("corrmatch_hf.data.images._told", set())
    page, path = Image.new("L", (8, 6), 7), tmp_path / "stack.tif"
    page.save(path, save_all=True, append_images=[Image.new("L", (4, 3))])  # a preview
    assert read_photo(str(path), "preview.tif").getpixel((0, 0)) == (7, 7, 7)
    whole = path.read_bytes()
    start = int.from_bytes(whole[4:8], "little")  # the first directory; it ends with the place of the second
    entries = int.from_bytes(whole[start : start + 2], "little")
    end = start + 2 + 12 * entries
    damaged = whole[:end] + (len(whole) - 3).to_bytes(4, "little") + whole[end + 4 :]
    assert read_photo(damaged, "damaged.tif").getpixel((0, 0)) == (7, 7, 7)
    assert not [each for each in recwarn if "pages" in str(each.message)]
    page.save(path, save_all=True, append_images=[Image.new("L", (8, 6)), Image.new("L", (8, 6))])
    with pytest.warns(UserWarning, match=r"stack\.tif has 3 pages, of which only the first is read"):
        assert read_photo(str(path), str(path)).getpixel((0, 0)) == (7, 7, 7)


def test_a_tiny_tiff_with_a_huge_tile_is_refused(tmp_path, served):
    path = tmp_path / "tile.tif"
    entries = [
        (256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, 40_000), (323, 40_000), (324, 200), (325, 9),
    ]  # fmt: skip
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    path.write_bytes((head + tags + bytes(4)).ljust(200, b"\0") + bytes(9))
    with pytest.raises(InputError, match=r"tiles of 1600000000 pixels"):
        read_photo(str(path), str(path))
    processor = CorrMatchImageProcessor()
    for read in (processor, served[0]):
        for value in (str(path), Image.open(path)):
            with pytest.raises(ValueError, match=r"tiles of 1600000000 pixels"):
                read(value)


def test_a_pipeline_takes_photos_of_different_sizes_in_one_batch(served):
    pipe, _ = served
    photos = [pictures()["RGB"].resize(size) for size in ((50, 40), (64, 33), (50, 40), (40, 70), (64, 33))]
    one_by_one = [pipe(photo) for photo in photos]
    for given in (photos, (photo for photo in photos)):
        for got, want in zip(pipe(given, batch_size=4), one_by_one, strict=True):
            assert [g["label"] for g in got] == [w["label"] for w in want]
            for g, w in zip(got, want, strict=True):
                assert g["mask"].size == w["mask"].size
                assert (np.asarray(g["mask"]) != np.asarray(w["mask"])).mean() < 0.01  # rounding at a tie


def test_a_loaded_model_gives_the_bits_of_the_saved_one(saved):
    """Weights of a mapped file start anywhere in memory, and kernels then add in another order."""
    model = CorrMatchForSegmentation.from_pretrained(saved)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in (*model.parameters(), *model.buffers()))


def test_the_trainer_of_transformers_gets_logits_alone(saved, tmp_path):
    from transformers import Trainer, TrainingArguments

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {
                "pixel_values": torch.full((3, 32, 32), float(i)),
                "labels": torch.zeros(32, 32, dtype=torch.long),
            }

    shapes = []

    def metrics(prediction):
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {}

    arguments = TrainingArguments(
        str(tmp_path),
        per_device_eval_batch_size=2,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    model = CorrMatchForSegmentation.from_pretrained(saved)
    Trainer(model, arguments, eval_dataset=Rows(), compute_metrics=metrics).evaluate()
    assert shapes == [((3, 3, 32, 32), (3, 32, 32))]


@pytest.mark.parametrize("prefix", ["timm/", "hf_hub:timm/", "hf-hub:timm/"])
def test_an_encoder_may_be_named_by_its_hub_id(prefix):
    assert (
        CorrMatchConfig(encoder_name=f"{prefix}test_resnet.r160_in1k").encoder_name == "test_resnet.r160_in1k"
    )


def test_labels_are_reduced_like_in_transformers():
    maps = np.arange(4, dtype=np.uint8).reshape(2, 2)
    processor = CorrMatchImageProcessor(do_reduce_labels=True)
    labels = processor(images=Image.new("RGB", (2, 2)), segmentation_maps=maps, return_tensors="pt")["labels"]
    assert labels.tolist() == [[[255, 0], [1, 2]]]

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor

from corrmatch_hf.model import CorrMatchImageProcessor, CorrMatchOutput

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def expected(rgb):
    return (torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).float() / 255 - MEAN) / STD


def palette_image():
    image = Image.fromarray(RGB[..., 0] % 7, mode="P")
    image.putpalette([31 * i % 256 for i in range(3 * 256)])
    return image


GRAY = RGB[..., 0]
GRAY_16 = GRAY.astype(np.uint16) * 257
THREE_GRAY = np.repeat(GRAY[..., None], 3, axis=-1)
RGBA = np.concatenate([RGB, 255 - RGB[..., :1]], axis=-1)


@pytest.mark.parametrize(
    "image, rgb",
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GRAY), THREE_GRAY),
        (palette_image(), np.array(palette_image().convert("RGB"))),
        (Image.fromarray(RGBA), RGB),
        (Image.fromarray(RGBA[..., [0, 3]], mode="LA"), THREE_GRAY),
        (Image.fromarray(GRAY > 127), np.where(THREE_GRAY > 127, 255, 0).astype(np.uint8)),
        (Image.fromarray(GRAY_16), THREE_GRAY),
        (Image.fromarray(GRAY_16.astype(np.int32)), THREE_GRAY),
        (GRAY_16, THREE_GRAY),
        (GRAY_16.astype(">u2"), THREE_GRAY),
        (torch.from_numpy(GRAY_16), THREE_GRAY),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB, RGB),
        (RGB[:, ::-1], RGB[:, ::-1]),
        (RGB.transpose(2, 0, 1), RGB),
        (RGBA, RGB),
        (GRAY, THREE_GRAY),
        (torch.from_numpy(RGB), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1).float(), RGB),
        (torch.from_numpy(GRAY), THREE_GRAY),
    ],
)
def test_kinds_of_images(image, rgb):
    pixel_values = CorrMatchImageProcessor()(image, return_tensors="pt").pixel_values
    assert pixel_values.dtype == torch.float32
    torch.testing.assert_close(pixel_values, expected(rgb)[None], rtol=1e-5, atol=1e-5)


def test_sixteen_bit_file(tmp_path):
    Image.fromarray(GRAY_16).save(tmp_path / "gray.png")
    with Image.open(tmp_path / "gray.png") as image:
        pixel_values = CorrMatchImageProcessor()(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, expected(THREE_GRAY)[None], rtol=1e-5, atol=1e-5)


def test_floats_that_are_0_to_1_already():
    image = torch.from_numpy(RGB).permute(2, 0, 1) / 255
    pixel_values = CorrMatchImageProcessor()(image, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, expected(RGB)[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "segmentation_map",
    [
        palette_image(),
        Image.fromarray(GRAY % 7),
        GRAY % 7,
        (GRAY % 7).astype(np.int64)[None],
        torch.from_numpy(GRAY % 7),
        torch.from_numpy(GRAY % 7).long()[None],
    ],
)
def test_kinds_of_segmentation_maps(segmentation_map):
    labels = CorrMatchImageProcessor()(RGB, segmentation_map, return_tensors="pt").labels
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.from_numpy(GRAY % 7).long()[None])


def test_ids_above_255():
    ids = (GRAY.astype(np.uint16) * 200)[:, ::-1]
    for each in (Image.fromarray(np.ascontiguousarray(ids)), ids, ids.astype(np.int32)):
        labels = CorrMatchImageProcessor()(RGB, each, return_tensors="pt").labels
        assert torch.equal(labels[0], torch.from_numpy(ids.astype(np.int64)))


def test_resizing():
    processor = CorrMatchImageProcessor(do_resize=True, size={"height": 12, "width": 18})
    ids = np.where(GRAY > 127, 60000, 3)
    batch = processor([RGB, Image.fromarray(RGB[:4])], [ids, ids[:4]], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 12, 18) and batch.labels.shape == (2, 12, 18)
    assert torch.equal(batch.labels[0], torch.from_numpy(ids).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_sizes_may_differ():
    processor = CorrMatchImageProcessor()
    ids = GRAY % 7
    images = [Image.fromarray(RGB), Image.fromarray(RGB[:4, :5])]
    batch = processor(images, [ids, ids[:4, :5]], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 6, 9)
    torch.testing.assert_close(batch.pixel_values[1, :, :4, :5], expected(RGB[:4, :5]), rtol=1e-5, atol=1e-5)
    assert (batch.pixel_values[1, :, 4:] == 0).all() and (batch.pixel_values[1, :, :, 5:] == 0).all()
    assert (batch.labels[1, 4:] == 255).all() and (batch.labels[1, :, 5:] == 255).all()
    assert torch.equal(batch.labels[1, :4, :5], torch.from_numpy(ids[:4, :5]).long())
    batch = processor(images, [ids, ids[:4, :5]], ignore_index=-1, return_tensors="pt")
    assert (batch.labels[1, 4:] == -1).all()
    lists = processor(images, [ids, ids[:4, :5]])
    assert [tuple(each.shape) for each in lists.pixel_values] == [(3, 6, 9), (3, 4, 5)]
    assert [tuple(each.shape) for each in lists.labels] == [(6, 9), (4, 5)]


def test_bad_segmentation_maps_are_explained():
    processor = CorrMatchImageProcessor()
    with pytest.raises(ValueError, match="convert colours to class ids first"):
        processor(RGB, Image.fromarray(RGB))
    with pytest.raises(ValueError, match="integers"):
        processor(RGB, GRAY / 255)
    with pytest.raises(ValueError, match=r"as large as their images \[\(6, 9\)\], not \[\(4, 9\)\]"):
        processor(RGB, GRAY[:4])


def test_saved_and_loaded(tmp_path):
    processor = CorrMatchImageProcessor(image_mean=[0.5, 0.5, 0.5], ignore_index=7)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is CorrMatchImageProcessor and loaded.to_dict() == processor.to_dict()
    assert loaded.ignore_index == 7
    assert torch.equal(
        loaded(RGB, return_tensors="pt").pixel_values, processor(RGB, return_tensors="pt").pixel_values
    )


def test_post_processing():
    processor = CorrMatchImageProcessor()
    logits = torch.randn(2, 4, 6, 9)
    output = CorrMatchOutput(logits=logits)
    plain = processor.post_process_semantic_segmentation(output)
    assert len(plain) == 2 and torch.equal(torch.stack(plain), logits.argmax(1))
    sized = processor.post_process_semantic_segmentation(output, [(4, 5), (11, 17)])
    assert torch.equal(sized[0], plain[0][:4, :5])  # the image was padded
    assert sized[1].shape == (11, 17) and sized[1].dtype == torch.int64
    assert torch.equal(sized[1][::2, ::2], plain[1])  # corners aligned
    processor = CorrMatchImageProcessor(do_resize=True, size={"height": 6, "width": 9})
    resized = processor.post_process_semantic_segmentation(output, torch.tensor([[3, 5], [3, 5]]))
    assert resized[0].shape == (3, 5)
    with pytest.raises(ValueError, match="one size for each of 2 images, not 1"):
        processor.post_process_semantic_segmentation(output, [(4, 5)])


def test_a_resize_in_the_call_is_undone_and_not_cut():
    processor = CorrMatchImageProcessor()
    inputs = processor(RGB, return_tensors="pt", do_resize=True, size={"height": 32, "width": 32})
    assert inputs.pixel_values.shape[-2:] == (32, 32)
    assert processor(RGB, return_tensors="pt", do_resize=True).pixel_values.shape[-2:] == (512, 512)
    processor(RGB, return_tensors="pt", do_resize=True, size={"height": 32, "width": 32})
    logits = torch.randn(1, 4, 32, 32)
    small = processor.post_process_semantic_segmentation(CorrMatchOutput(logits=logits), [(6, 9)])[0]
    wanted = torch.nn.functional.interpolate(logits, (6, 9), mode="bilinear", align_corners=True)
    assert torch.equal(small, wanted[0].argmax(0))
    scored = processor.post_process_semantic_segmentation(
        CorrMatchOutput(logits=logits), [(6, 9)], return_segmentation_scores=True
    )[0]
    assert torch.equal(scored.segmentation, small) and torch.equal(scored.segmentation_scores, wanted[0])
    processor(RGB, return_tensors="pt", do_resize=None)  # padded again, if at all
    cut = processor.post_process_semantic_segmentation(CorrMatchOutput(logits=logits), [(6, 9)])[0]
    assert torch.equal(cut, logits[0].argmax(0)[:6, :9])
    assert "_last_resize" not in processor.to_dict()


def test_the_padding_between_resized_photos_of_several_shapes_is_cut_off():
    photos = [Image.new("RGB", (40, 30)), Image.new("RGB", (30, 50))]
    processor = CorrMatchImageProcessor()
    inputs = processor(photos, return_tensors="pt", do_resize=True, size={"shortest_edge": 15})
    assert inputs.pixel_values.shape[-2:] == (25, 20)  # 15 x 20 and 25 x 15
    logits = torch.zeros(2, 3, 25, 20)
    logits[0, 1, :15, :20] = logits[1, 1, :25, :15] = 1  # class 1 in the photos, 0 in the padding
    output = CorrMatchOutput(logits=logits)
    for maps in (
        processor.post_process_semantic_segmentation(output, [(30, 40), (50, 30)]),
        CorrMatchImageProcessor(
            do_resize=True, size={"shortest_edge": 15}
        ).post_process_semantic_segmentation(output, [(30, 40), (50, 30)]),
    ):
        assert [tuple(each.shape) for each in maps] == [(30, 40), (50, 30)]
        assert all((each == 1).all() for each in maps)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"do_resize": True, "size": 0}, "size must be sides from 1"),
        ({"do_resize": True, "size": 10**6}, "size must be sides from 1"),
        ({"do_resize": True, "resample": 9}, "resample must be one of"),
        ({"image_std": 0.0}, "image_std must be three positive numbers"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be three numbers"),
    ],
)
def test_options_of_a_call_have_the_bounds_of_the_configuration(options, told):
    with pytest.raises(ValueError, match=told):
        CorrMatchImageProcessor()(RGB, return_tensors="pt", **options)


def test_options_that_it_does_not_have_are_refused_or_named(tmp_path, caplog):
    for options in ({"do_reduce_label": True}, {"do_center_crop": True, "crop_size": 8}, {"do_pad": True}):
        with pytest.raises(ValueError, match=next(iter(options))):
            CorrMatchImageProcessor(**options)
    with pytest.raises(ValueError, match="do_pad"):
        CorrMatchImageProcessor()(RGB, do_pad=True)
    with pytest.raises(TypeError, match="do_reduce_label"):
        CorrMatchImageProcessor()(RGB, do_reduce_label=True)
    assert CorrMatchImageProcessor(do_center_crop=False).to_dict() == CorrMatchImageProcessor().to_dict()
    CorrMatchImageProcessor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"of_the_future": 1}))
    transformers.utils.logging.enable_propagation()
    loaded = CorrMatchImageProcessor.from_pretrained(tmp_path)
    assert "left out: 'of_the_future'" in caplog.text and not hasattr(loaded, "of_the_future")


@pytest.mark.parametrize("name", ["do_reduce_labels", "reduce_labels"])
def test_labels_are_reduced_wherever_it_is_asked_for(name, tmp_path):
    CorrMatchImageProcessor().save_pretrained(tmp_path)
    ids = np.tile(np.array([0, 1, 2, 255], np.uint8), (5, 1))
    photo = np.zeros((5, 4, 3), np.uint8)
    for processor, call in (
        (CorrMatchImageProcessor(**{name: True}), {}),
        (AutoImageProcessor.from_pretrained(tmp_path, **{name: True}), {}),
        (CorrMatchImageProcessor(), {name: True}),
    ):
        assert processor(photo, ids, return_tensors="pt", **call).labels[0, 0].tolist() == [255, 0, 1, 255]

import dataclasses
import warnings
from itertools import islice

import datasets
import numpy as np
import pytest
import torch

from corrmatch_hf.data import Augmentation, SemiBatch, SemiDataset, training_batches
from corrmatch_hf.data.endless import Stream, generator
from corrmatch_hf.data.images import read_photo
from corrmatch_hf.data.training_set import StreamProgress
from corrmatch_hf.errors import InputError

SMALL = Augmentation(crop_size=33)


def batches(semi, count=3, augmentation=SMALL, **kwargs):
    options = {"labeled_batch": 2, "unlabeled_batch": 3, "seed": 7, **kwargs}
    return list(islice(training_batches(semi, augmentation, **options), count))


def assert_equal(a, b):
    """The two batches hold the same bits."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        assert same, field.name


def streamed(semi: SemiDataset) -> SemiDataset:
    return dataclasses.replace(semi, unlabeled=semi.unlabeled.to_iterable_dataset(num_shards=2))


def test_shapes_and_types(synthetic):
    augmentation = dataclasses.replace(SMALL, strong_views=2)
    for batch in batches(synthetic, 4, augmentation):
        assert batch.image.shape == (2, 3, 33, 33) and batch.image.dtype == torch.float32
        assert batch.label.shape == (2, 33, 33) and batch.label.dtype == torch.int64
        assert set(batch.label.unique().tolist()) <= {0, 1, 2, 3, 4, 255}
        assert batch.weak.shape == (3, 3, 33, 33) and batch.strong.shape == (3, 2, 3, 33, 33)
        assert batch.valid.shape == (3, 33, 33) and batch.valid.dtype == torch.bool
        assert batch.box.shape == (3, 2, 33, 33) and batch.box.dtype == torch.bool
        rows = [row for row in range(3) if batch.box[row].any()]
        assert batch.partner_rows == rows
        assert batch.partner_weak.shape == (len(rows), 3, 33, 33)
        assert batch.partner_valid.shape == (len(rows), 33, 33)
        assert len(batch.labeled_files) == 2 and len(batch.unlabeled_files) == 3
        assert batch.skipped == []
    assert [batch.step for batch in batches(synthetic, 4)] == [0, 1, 2, 3]


def test_without_unlabeled_images_and_without_strong_views(synthetic):
    (batch,) = batches(dataclasses.replace(synthetic, unlabeled=None), 1, unlabeled_batch=0)
    assert batch.weak is None and batch.strong is None and batch.partner_rows == []
    assert batch.unlabeled_files == []
    (batch,) = batches(synthetic, 1, dataclasses.replace(SMALL, strong_views=0))
    assert batch.weak is not None and batch.strong is None and batch.box is None


@pytest.mark.parametrize("partner", ["same_image", "batch", "reversed"])
@pytest.mark.parametrize("kind", ["list", "stream"])
def test_the_total_batch_does_not_depend_on_the_number_of_processes(synthetic, partner, kind):
    semi = synthetic if kind == "list" else streamed(synthetic)
    augmentation = dataclasses.replace(SMALL, cutmix_partner=partner, strong_views=2)
    whole = batches(semi, 5, augmentation, labeled_batch=4, unlabeled_batch=6)
    halves = [
        batches(semi, 5, augmentation, labeled_batch=2, unlabeled_batch=3, world_size=2, rank=rank)
        for rank in range(2)
    ]
    for total, *parts in zip(whole, *halves, strict=True):
        for name in ("image", "label", "weak", "strong", "valid", "box", "partner_weak", "partner_valid"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(getattr(total, name), joined), name
        assert total.labeled_files == [f for part in parts for f in part.labeled_files]
        assert total.unlabeled_files == [f for part in parts for f in part.unlabeled_files]
        assert total.partner_rows == parts[0].partner_rows + [3 + row for row in parts[1].partner_rows]


@pytest.mark.parametrize("kind", ["list", "stream"])
def test_workers_and_resuming_change_nothing(synthetic, kind):
    semi = synthetic if kind == "list" else streamed(synthetic)
    expected = batches(semi, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than cores
        for found, batch in zip(batches(semi, 9, num_workers=2), expected, strict=True):
            assert_equal(found, batch)
        for found, batch in zip(batches(semi, 3, start_step=6, num_workers=2), expected[6:], strict=True):
            assert_equal(found, batch)
    for found, batch in zip(batches(semi, 2, start_step=7), expected[7:], strict=True):
        assert_equal(found, batch)


def test_shards_of_a_stream_resume_where_a_checkpoint_left_them(synthetic):
    semi = streamed(synthetic)
    files = []
    for rank in range(2):
        options = {"stream_order": "shards", "world_size": 2, "rank": rank}
        progress = StreamProgress()
        expected = batches(semi, 9, stream_progress=progress, **options)
        resumed = StreamProgress()
        resumed.resumed = progress.state(6)
        for found, batch in zip(
            batches(semi, 3, start_step=6, stream_progress=resumed, **options), expected[6:], strict=True
        ):
            assert_equal(found, batch)
        files.append({file for batch in expected[:1] for file in batch.unlabeled_files})
    assert not files[0] & files[1]


def test_too_few_shards_are_read_whole(synthetic):
    options = {"world_size": 3, "rank": 1}
    for found, batch in zip(
        batches(streamed(synthetic), 2, stream_order="shards", **options),
        batches(streamed(synthetic), 2, **options),
        strict=True,
    ):
        assert_equal(found, batch)


def test_the_seed_changes_everything(synthetic):
    a, b = batches(synthetic, 1)[0], batches(synthetic, 1, seed=8)[0]
    assert not torch.equal(a.image, b.image) and not torch.equal(a.weak, b.weak)


def test_the_global_random_state_is_neither_used_nor_changed(synthetic):
    first = batches(synthetic, 2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    second = batches(synthetic, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    np.random.seed(2)
    torch.manual_seed(2)
    for a, b, c in zip(first, second, batches(synthetic, 2), strict=True):
        assert_equal(a, b)
        assert_equal(a, c)


def test_every_image_comes_once_per_pass_in_a_new_view(synthetic):
    drawn = batches(synthetic, 11, unlabeled_batch=2)  # 22 positions = 2 passes over 11 images
    files = [file for batch in drawn for file in batch.unlabeled_files]
    assert len(set(files[:11])) == len(set(files[11:])) == 11 and files[:11] != files[11:]
    views = {}
    for batch in drawn:
        for file, view in zip(batch.unlabeled_files, batch.weak, strict=True):
            views.setdefault(file, []).append(view)
    assert all(not torch.equal(*pair) for pair in views.values())


def test_sets_smaller_than_the_batch(synthetic):
    one = synthetic.labeled.select([0])
    semi = dataclasses.replace(synthetic, labeled=one, unlabeled=synthetic.unlabeled.select([0, 1]))
    for pool in (semi, streamed(semi)):
        (batch,) = batches(pool, 1, dataclasses.replace(SMALL, cutmix_partner="batch"), unlabeled_batch=5)
        assert len(set(batch.labeled_files)) == 1 and len(set(batch.unlabeled_files)) == 2
        assert not torch.equal(batch.image[0], batch.image[1])
        same = [i for i, f in enumerate(batch.unlabeled_files) if f == batch.unlabeled_files[0]]
        assert not torch.equal(batch.weak[same[0]], batch.weak[same[1]])


def step_by_hand(semi, augmentation, seed, pass_number, index, stream):
    """Weak and strong views of one image, written out."""
    row = semi.unlabeled[index]
    image = read_photo(row["image"], row["file"])
    g = augmentation.draw_geometry(*image.size, generator(seed, stream, pass_number, index, 0))
    crop = g.crop_image(image)
    strong = [
        augmentation.normalize(
            augmentation.strong(crop, generator(seed, stream, pass_number, index, 1 + view))
        )
        for view in range(augmentation.strong_views)
    ]
    return augmentation.normalize(crop), g.valid(), strong


@pytest.mark.parametrize("partner", ["same_image", "batch", "reversed"])
def test_cutmix_pastes_the_partners_strong_view(synthetic, partner):
    augmentation = dataclasses.replace(SMALL, cutmix_partner=partner, strong_views=2, cutmix_probability=0.6)
    for batch in batches(synthetic, 3, augmentation):
        index = [int(file.split("-")[3][:5]) for file in batch.unlabeled_files]
        number = batch.step * 3 // 11
        for row in range(3):
            weak, valid, strong = step_by_hand(
                synthetic, augmentation, 7, number, index[row], Stream.UNLABELED
            )
            assert torch.equal(batch.weak[row], weak) and torch.equal(batch.valid[row], valid)
            place = {"same_image": row, "batch": (row + 1) % 3, "reversed": 2 - row}[partner]
            # The middle of a reversed batch of three is its own partner.
            other = (index[place], Stream.PARTNER if place == row else Stream.UNLABELED)
            mix_weak, mix_valid, mix_strong = step_by_hand(synthetic, augmentation, 7, number, *other)
            for view in range(2):
                expected = torch.where(batch.box[row, view], mix_strong[view], strong[view])
                assert torch.equal(batch.strong[row, view], expected)
            if row in batch.partner_rows:
                place = batch.partner_rows.index(row)
                assert torch.equal(batch.partner_weak[place], mix_weak)
                assert torch.equal(batch.partner_valid[place], mix_valid)


@pytest.mark.parametrize("partner", ["same_image", "batch", "reversed"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_partners_that_are_in_the_batch_are_known(synthetic, partner, world_size):
    augmentation = dataclasses.replace(SMALL, cutmix_partner=partner, cutmix_probability=1.0)
    known = []
    for rank in range(world_size):
        for batch in batches(synthetic, 3, augmentation, rank=rank, world_size=world_size):
            assert len(batch.partner_places) == len(batch.partner_rows) == 3
            for place, view in zip(batch.partner_places, batch.partner_weak, strict=True):
                assert [torch.equal(view, weak) for weak in batch.weak] == [row == place for row in range(3)]
                known.append(place >= 0)
    # Three images: the middle one of a reversed batch is its own partner; with two processes a reversed batch has all
    # partners on the other one, and the next image of the last one is there.
    share = {"same_image": (0, 0), "batch": (1, 2 / 3), "reversed": (2 / 3, 0)}[partner][world_size - 1]
    assert sum(known) / len(known) == pytest.approx(share)


@pytest.mark.parametrize("partner", ["batch", "reversed"])
def test_a_lone_image_is_mixed_with_another_view_of_itself(synthetic, partner):
    augmentation = dataclasses.replace(SMALL, cutmix_partner=partner, cutmix_probability=1.0)
    (alone,) = batches(synthetic, 1, augmentation, unlabeled_batch=1)
    (same,) = batches(
        synthetic, 1, dataclasses.replace(augmentation, cutmix_partner="same_image"), unlabeled_batch=1
    )
    assert_equal(alone, same)
    assert not torch.equal(alone.partner_weak[0], alone.weak[0])


def test_padding_is_ignored_black_and_not_valid(synthetic):
    augmentation = Augmentation(crop_size=120, cutmix_probability=0.0)  # images have 20 to 80 pixels
    for batch in batches(synthetic, 2, augmentation):
        black = torch.tensor(
            [-m / s for m, s in zip(augmentation.image_mean, augmentation.image_std, strict=True)]
        )
        for row in range(3):
            outside = ~batch.valid[row]
            assert outside.any() and batch.valid[row].any()
            torch.testing.assert_close(
                batch.weak[row][:, outside], black[:, None].expand(-1, int(outside.sum())), atol=1e-5, rtol=0
            )
        assert (batch.label == 255).any()


def test_labels_follow_their_images(synthetic):
    """A crop of the mask drawn as a picture of its ids is the crop of the ids."""

    def row(i):
        mask = np.array(synthetic.labeled[i]["label"])
        return {"image": np.repeat(mask[..., None] * 50, 3, 2), "label": mask, "file": str(i)}

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "file": datasets.Value("string")}
    )
    rows = datasets.Dataset.from_list([row(i) for i in range(5)], features=features)
    augmentation = Augmentation(crop_size=33, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    for batch in batches(dataclasses.replace(synthetic, labeled=rows), 4, augmentation, labeled_batch=4):
        drawn = batch.image[:, 0] * 255 / 50
        sure = batch.label != 255
        assert (drawn[~sure] == 0).all()
        off = (drawn - batch.label).abs() > 0.5
        assert (off & sure).float().mean() < 0.1  # bilinear and nearest differ along outlines only


def break_rows(dataset, rows):
    """The same dataset with some pictures cut off."""
    values = dataset.cast_column("image", datasets.Image(decode=False)).to_list()
    for i in rows:
        values[i]["image"]["bytes"] = values[i]["image"]["bytes"][:200]
    return datasets.Dataset.from_list(values, features=dataset.features)


def test_a_bad_sample_stops_the_run_with_its_name(synthetic):
    semi = dataclasses.replace(synthetic, unlabeled=break_rows(synthetic.unlabeled, [4]))
    for workers in (0, 1):
        with pytest.raises(InputError) as error:
            batches(semi, 4, num_workers=workers)
        assert str(error.value).startswith("Cannot read the picture synthetic-unlabeled-0-00004.png")
        assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("kind", ["list", "stream"])
def test_a_bad_sample_is_replaced_and_reported(synthetic, kind):
    semi = dataclasses.replace(
        synthetic,
        unlabeled=break_rows(synthetic.unlabeled, [4, 7]),
        labeled=break_rows(synthetic.labeled, [1]),
    )
    semi = semi if kind == "list" else streamed(semi)
    drawn = batches(semi, 4, on_bad_sample="skip")  # 12 positions, a pass and one
    bad = {
        "synthetic-unlabeled-0-00004.png",
        "synthetic-unlabeled-0-00007.png",
        "synthetic-labeled-0-00001.png",
    }
    skipped = {reason for batch in drawn for reason in batch.skipped}
    assert {
        file for file in bad for reason in skipped if f"Cannot read the picture {file}: " in reason
    } == bad
    assert len(skipped) == len(bad)
    assert not bad & {file for batch in drawn for file in batch.unlabeled_files + batch.labeled_files}
    for found, batch in zip(batches(semi, 4, on_bad_sample="skip", num_workers=2), drawn, strict=True):
        assert_equal(found, batch)
    # Rows that are good are as they were.
    clean = batches(synthetic if kind == "list" else streamed(synthetic), 4)
    for found, batch in zip(drawn, clean, strict=True):
        for row, file in enumerate(batch.unlabeled_files):
            if file not in bad:
                assert torch.equal(found.weak[row], batch.weak[row])


def test_when_nothing_can_be_read_skipping_ends(synthetic):
    semi = dataclasses.replace(synthetic, unlabeled=break_rows(synthetic.unlabeled, range(11)))
    with pytest.raises(InputError, match=r"samples in a row cannot be used"):
        batches(semi, 1, on_bad_sample="skip")


@pytest.mark.parametrize(
    "options, named",
    [
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"labeled_batch": 0}, "labeled_batch 0"),
        ({"seed": -1}, "seed -1"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample is 'ignore'"),
    ],
)
def test_impossible_arguments_are_named(synthetic, options, named):
    with pytest.raises(InputError, match=named):
        batches(synthetic, 1, **options)


def test_missing_images_are_named_with_the_remedy(synthetic):
    with pytest.raises(InputError, match=r"no unlabelled images.*--labeled_fraction"):
        batches(dataclasses.replace(synthetic, unlabeled=None), 1)
    with pytest.raises(InputError, match=r"no labelled images"):
        batches(dataclasses.replace(synthetic, labeled=synthetic.labeled.select([])), 1)


def test_camvid(shared_dir):
    from corrmatch_hf.data import load_semi_dataset

    root = shared_dir / "data" / "camvid"
    lists = root / "splits" / "1_16"
    semi = load_semi_dataset(
        data_dir=str(root),
        labeled_list=str(lists / "labeled.txt"),
        unlabeled_list=str(lists / "unlabeled.txt"),
    )
    assert (len(semi.labeled), len(semi.unlabeled), len(semi.validation)) == (23, 344, 101)
    assert semi.num_labels == 11 and semi.id2label[8] == "car"
    (batch,) = batches(semi, 1, Augmentation(crop_size=161))
    assert set(batch.label.unique().tolist()) <= {*range(11), 255}


def test_to_moves_tensors_and_converts_pictures_alone():
    batch = SemiBatch(
        3, torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64), labeled_files=["a", "b"]
    )
    moved = batch.to("cpu", non_blocking=True, dtype=torch.float64)
    assert moved.image.dtype == torch.float64 and moved.label.dtype == torch.int64
    assert moved.step == 3 and moved.labeled_files == ["a", "b"] and moved.weak is None
    assert batch.image.dtype == torch.float32
    assert batch.to("meta").label.is_meta

"""The study's protocol on photos made here: halves, resuming, diagnostics; pieces against their slow versions."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import promise
from benchmarks.depthwise import fast_depthwise
from corrmatch_hf.methods import METHODS
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation


@pytest.mark.parametrize("kernel, dilation", [(5, 1), (3, 2), (5, 2), (5, 3)])
def test_fast_depthwise_convolutions_are_equal(kernel, dilation):
    conv = nn.Conv2d(6, 6, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=6, bias=False)
    fast = fast_depthwise(copy.deepcopy(nn.Sequential(conv)))
    assert "forward" in vars(fast[0])
    fast = copy.deepcopy(fast)  # as a teacher is made
    x, grad = torch.randn(2, 6, 9, 7), torch.randn(2, 6, 9, 7)
    found = []
    for module in (conv, fast):
        own = x.clone().requires_grad_()
        y = module(own)
        y.backward(grad)
        found.append((y, own.grad, next(module.parameters()).grad))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "encoder, stages, first_trained",
    [("mobilenetv2_050", 5, "blocks.5."), ("resnet18", 2, "layer3."), ("resnet18", 0, "conv1.")],
)
def test_first_stages_are_frozen(encoder, stages, first_trained):
    config = CorrMatchConfig(
        encoder_name=encoder, aspp_channels=8, decoder_channels=8, low_level_channels=8, num_labels=2
    )
    method = METHODS["supervised"](CorrMatchForSegmentation(config))
    promise.freeze(method, promise.Setting("few", "splits/2", frozen_stages=stages))
    trained = [name for name, p in method.model.encoder.body.named_parameters() if p.requires_grad]
    assert trained[0].startswith(first_trained)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A data set of ten photos in the layout of shared, a tiny network, and an empty folder of results."""
    rng = np.random.default_rng(0)
    shared, folder = tmp_path / "shared", tmp_path / "shared/data/few"
    for split, count in (("train", 6), ("validation", 4)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((40, 60), np.uint8)
            mask[10:30, 10 + i : 40] = 1
            photo = np.uint8(rng.integers(0, 60, (40, 60, 3)) + 150 * mask[..., None])
            Image.fromarray(photo).save(folder / split / f"images/{i}.jpg")
            Image.fromarray(mask).save(folder / split / f"masks/{i}.png")
    lines = [f"train/images/{i}.jpg train/masks/{i}.png" for i in range(6)]
    (folder / "splits/2").mkdir(parents=True)
    (folder / "splits/2/labeled.txt").write_text("\n".join(lines[:2]))
    (folder / "splits/2/unlabeled.txt").write_text("\n".join(lines[2:]))
    (folder / "id2label.json").write_text(json.dumps({"0": "background", "1": "thing"}))
    setting = promise.Setting(
        "few", "splits/2", side=48, eval_side=32, encoder="mobilenetv2_100", channels=8, crop=33, labeled_batch=2,
        unlabeled_batch=2, evaluations=2,
    )  # fmt: skip
    monkeypatch.setitem(promise.SETTINGS, "few", setting)
    monkeypatch.setattr(promise, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        CorrMatchForSegmentation,
        "from_encoder_pretrained",
        classmethod(lambda cls, config, weights: cls(config)),
    )
    monkeypatch.setattr(
        promise, "CorrMatchConfig", lambda **k: CorrMatchConfig(**k | {"encoder_name": "test_resnet"})
    )
    monkeypatch.setattr(promise, "freeze", lambda method, setting: None)
    return shared, tmp_path / "work"


def test_photos_are_reduced_once_and_masks_keep_their_ids(study):
    shared, work = study
    data, truth = promise.load(promise.SETTINGS["few"], shared, work)
    everything, _ = promise.load(promise.SETTINGS["few"], shared, work, all_masks=True)
    assert [len(d) for d in (data.labeled, data.unlabeled, truth.labeled, everything.labeled)] == [2, 4, 4, 6]
    image, mask = data.read_labeled(data.labeled[0])
    assert image.size == (48, 32) and set(np.unique(mask)) == {0, 1}
    assert data.read_labeled(data.validation[0])[0].size == (32, 21)


def test_the_halves_are_fixed_and_apart(study):
    data, _ = promise.load(promise.SETTINGS["few"], *study)
    setting = dataclasses.replace(promise.SETTINGS["few"], groups=("0", "1"))
    validation = promise.Validation(data, setting)
    parts = sorted(parts for batch in validation.batches for *_, parts in batch)
    assert parts == [["A"], ["A", "A/0"], ["B"], ["B", "B/1"]]
    network = CorrMatchForSegmentation(CorrMatchConfig(encoder_name="test_resnet", num_labels=2)).eval()
    assert set(validation.measure(network)) == {"A", "A/0", "B", "B/1"}


def test_a_run_is_done_once_and_an_interrupted_one_ends_equal(study, monkeypatch):
    run = promise.parse_run(
        ["few", "--candidate", "fixmatch_ema", "--steps", "6", "--option", "confidence_threshold=0.5"]
    )
    assert promise.perform(run, *study) and not promise.perform(run, *study)
    whole = json.loads(run.result.read_text())
    assert whole["steps"] == {"labelled": 2, "unlabelled": 4}
    assert [row["step"] for row in whole["curve"]] == [3, 6]
    assert set(whole["average"]) == set(whole["curve"][0]["average"]) == {"A", "B"}

    run.result.unlink()
    step = promise.Steps.step

    def failing(self, batches, number):
        if number == 4:
            raise KeyboardInterrupt
        return step(self, batches, number)

    monkeypatch.setattr(promise.Steps, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        promise.perform(run, *study)
    monkeypatch.setattr(promise.Steps, "step", step)
    assert promise.perform(run, *study)
    resumed = json.loads(run.result.read_text())
    assert resumed["average"] == whole["average"] and resumed["last"] == whole["last"]


def test_runs_that_share_a_burn_in_do_it_once(study):
    run = promise.Run("few", "fixmatch_ema", 5)
    promise.perform(run, *study)
    path = promise.burn_in_file(run, study[1])
    assert torch.load(path, weights_only=False)["step"] == 2
    other = promise.Run("few", "fixmatch_ema", 5, options={"confidence_threshold": 0.5})
    assert promise.burn_in_file(other, study[1]) == path
    promise.perform(other, *study)
    alone = json.loads(other.result.read_text())
    path.unlink()
    other.result.unlink()
    promise.perform(other, *study)
    assert json.loads(other.result.read_text())["last"] == alone["last"]
    for options in ({"class_weight_power": 0.5}, {"burn_in": 0.2}):
        assert promise.burn_in_file(promise.Run("few", "fixmatch_ema", 5, options=options), study[1]) != path


def test_a_picture_of_two_runs(study, tmp_path):
    """Drawn with the weights that are kept, which give what the run measured."""
    first, second = promise.Run("few", "supervised", 2), promise.Run("few", "soft_labels", 2)
    assert promise.perform(first, *study) and promise.perform(second, *study)
    path = tmp_path / "two.png"
    promise.picture("few", ["supervised", "soft_labels"], 2, 0, *study, path, count=2)
    with Image.open(path) as grid:
        assert grid.width > 4 * 360 and grid.height > 2 * 200  # photo, truth and two predictions; two photos
    data, _ = promise.load(promise.SETTINGS["few"], *study)
    method = promise.build(promise.SETTINGS["few"], promise.CANDIDATES["supervised"], data, study[0], 0, 2)
    method.model.load_state_dict(torch.load(promise.weights_file(first, study[1])))
    measured = promise.Validation(data, promise.SETTINGS["few"]).measure(method.model)
    assert measured == json.loads(first.result.read_text())["average"]


def test_one_schedule_or_several():
    rates = {}
    for restart, cycles in ((0.0, 1), (0.5, 1), (1.0, 2)):
        setting = dataclasses.replace(promise.SETTINGS["voc31"], restart=restart, cycles=cycles)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = promise.schedule_of(optimizer, setting, 10)
        rates[restart] = []
        for _ in range(10):
            rates[restart].append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
    assert rates[0.0] == pytest.approx([(1 - i / 10) ** 0.9 for i in range(10)])
    expected = [(1 - i / 4) ** 0.9 for i in range(4)] + [0.5 * (1 - i / 6) ** 0.9 for i in range(6)]
    assert rates[0.5] == pytest.approx(expected)
    again = [(1 - i / 3) ** 0.9 for i in range(3)]
    assert rates[1.0] == pytest.approx([(1 - i / 4) ** 0.9 for i in range(4)] + 2 * again)


def test_the_burn_in_reads_no_unlabelled_photo(study):
    steps = promise.Steps(promise.Run("few", "fixmatch_ema", 5), *study)
    batches = steps.batches(0)
    seen = [next(batches) for _ in range(4)]
    assert [batch.weak is None for batch in seen] == [True, True, False, False]
    assert [batch.step for batch in seen] == [0, 1, 2, 3]


def test_diagnostics_count_pixel_by_pixel():
    diagnostics = promise.Diagnostics.__new__(promise.Diagnostics)
    diagnostics.labels, diagnostics.classes, diagnostics.ignored = torch.tensor([[[0, 0, 1, 1, 255]]]), 2, 255
    found = diagnostics.shares(torch.tensor([[[0, 1, 1, 0, 1]]]), torch.tensor([[[1.0, 1, 1, 0, 1]]]))
    assert found["kept"] == 0.75 and found["right"] == 0.5 and found["of_all"] == 0.5
    assert found["class_kept"] == [1.0, 0.5] and found["class_right"] == [0.5, 0.5]
    assert found["class_precision"] == [1.0, 0.5] and found["precision"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["corrmatch", "unimatch", "fixmatch"])
def test_published_methods_run_and_are_diagnosed(study, name):
    run = promise.Run("few", name, 1, setting={"evaluations": 1})
    promise.perform(run, *study)
    result = json.loads(run.result.read_text())
    assert result["steps"] == {"labelled": 0, "unlabelled": 1}
    assert ("after" in result["curve"][0]["pseudo_labels"]) == (name == "corrmatch")


def test_table_and_queue(study, tmp_path):
    queue = tmp_path / "queue.txt"
    queue.write_text("# few --candidate ceiling\nfew --steps 2\nfew --steps 2 --seed 1\n")
    promise.work_through(queue, *study)
    (promise.RESULTS / "few/costs.json").write_text(json.dumps({"supervised": {"labelled": 0.5}}))
    row = promise.table_of("few").splitlines()[2]
    assert row.startswith("| supervised | 2 | 2 | 1 |") and row.count("±") == 6 and "| 0.0 ± 0.0 |" in row
    assert "| supervised | 2 |" in promise.page_of("few").split("each class")[1]
    promise.curves("few", ["supervised"], tmp_path / "few.png")
    assert (tmp_path / "few.png").stat().st_size > 1000


def test_a_recipe_is_read_back_from_its_name():
    words = "voc31 --candidate fixmatch_ema --steps 9 --option teacher_flip=true threshold=soft --set scales=[0.5,1]"
    run = promise.parse_run(words.split())
    assert run.recipe == "fixmatch_ema scales=[0.5,1] teacher_flip=true threshold=soft"
    assert promise.named_run("voc31", run.recipe, 9) == run
    read = promise.Run(**json.loads(json.dumps(dataclasses.asdict(run))))  # from a result's file
    assert read.recipe == run.recipe


def test_costs_are_those_of_each_phase(study):
    found = promise.costs(
        "few", ["supervised", "fixmatch_ema confidence_threshold=0.5", "fixmatch"], *study, rounds=1
    )
    assert {name: set(phases) for name, phases in found.items()} == {
        "supervised": {"labelled"},
        "fixmatch_ema confidence_threshold=0.5": {"labelled", "unlabelled"},
        "fixmatch": {"unlabelled"},
    }
    run = promise.named_run("few", "fixmatch_ema confidence_threshold=0.5", 10)
    result = {"run": dataclasses.asdict(run), "steps": {"labelled": 4, "unlabelled": 6}}
    cost = {run.recipe: {"labelled": 0.5, "unlabelled": 2.0}}
    assert promise.price(result, cost) == 14 and promise.price(result, {}) is None

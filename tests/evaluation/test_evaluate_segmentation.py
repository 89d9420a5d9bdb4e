import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import ConfusionMatrix, evaluate_segmentation, predict_probabilities

from ..two_processes import in_two_processes

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
OPTIONS = {"num_labels": 4, "id2label": dict(enumerate("abcd")), "image_mean": MEAN, "image_std": STD}


class TinyModel(nn.Module):
    def __init__(self, num_labels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(8, num_labels, 1)
        self.batch_sizes = []

    def forward(self, pixel_values):
        self.batch_sizes.append(len(pixel_values))
        features = self.dropout(self.norm(self.conv(pixel_values)))
        return SimpleNamespace(logits=self.classifier(features))


def tiny_model(num_labels=4):
    torch.manual_seed(1)
    return TinyModel(num_labels)


def make_samples(sizes=((8, 11), (9, 9), (9, 9), (6, 12), (6, 12)), ignore_index=255):
    generator = torch.Generator().manual_seed(2)
    samples = []
    for i, size in enumerate(sizes):
        label = torch.randint(0, 4, size, generator=generator)
        label[torch.rand(size, generator=generator) < 0.2] = ignore_index
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        samples.append({"image": image, "label": label, "file": f"photo_{i}.jpg"})
    return samples


def evaluate_as_one_of_two(rank):
    """One sample over two processes, then five samples."""
    model = DistributedDataParallel(tiny_model())
    # as it comes out of training: statistics of each process's own images
    model.module.norm.running_mean += rank
    return [
        evaluate_segmentation(model, samples, rank=rank, world_size=2, **OPTIONS)
        for samples in (make_samples()[:1], make_samples())
    ]


def test_figures_are_those_of_counting_by_hand():
    model, samples = tiny_model().eval(), make_samples()
    confusion = ConfusionMatrix(4)
    for sample in samples:
        pixels = (sample["image"] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        confusion.update(predict_probabilities(model, pixels[None]).argmax(1)[0], sample["label"])
    expected = {**confusion.compute(OPTIONS["id2label"]), "num_images": 5}
    assert evaluate_segmentation(model, samples, **OPTIONS) == expected
    assert evaluate_segmentation(model, samples, num_workers=1, batch_size=2, **OPTIONS) == expected


def test_two_processes_with_uneven_shards_give_the_figures_of_one(tmp_path):
    expected = [
        evaluate_segmentation(tiny_model(), s, **OPTIONS) for s in (make_samples()[:1], make_samples())
    ]
    assert in_two_processes(evaluate_as_one_of_two, tmp_path) == [expected, expected]


def test_shards_together_hold_every_sample_once():
    class Recorder(list):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i)

    seen = []
    for rank in range(3):  # without a process group: only the sharding
        evaluate_segmentation(tiny_model(), Recorder(make_samples()), rank=rank, world_size=3, **OPTIONS)
    assert sorted(seen) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_equal_sizes_go_together_wherever_they_stand(num_workers):
    small, large = (6, 7), (9, 9)
    samples = make_samples((small, large, small, small, large, small, small))
    model = tiny_model()
    metrics = evaluate_segmentation(model, samples, batch_size=2, num_workers=num_workers, **OPTIONS)
    assert model.batch_sizes == [2, 2, 2, 1]
    assert metrics == evaluate_segmentation(tiny_model(), samples, **OPTIONS)


def test_few_images_wait_for_others_of_their_size():
    sizes = [(5 + i, 7) for i in range(40)]
    reading, predicted = [], []

    class Recorder(list):
        def __getitem__(self, i):
            reading.append(len(reading) - len(predicted))
            return super().__getitem__(i)

    model = tiny_model()
    model.register_forward_hook(lambda *_: predicted.append(1))
    evaluate_segmentation(model, Recorder(make_samples(sizes)), batch_size=2, **OPTIONS)
    assert len(predicted) == 40 and max(reading) <= 2 * 4 * 2 + 1  # those waiting, and those read ahead


def test_the_next_images_are_read_while_the_model_works():
    """The model waits for the second image before it gives back the first: one after the other would never end."""
    second = threading.Event()

    class Recorder(list):
        def __getitem__(self, i):
            if i == 1:
                second.set()
            return super().__getitem__(i)

    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: met.append(second.wait(20)))
    met = []
    evaluate_segmentation(model, Recorder(make_samples()), **OPTIONS)
    assert all(met)


def test_the_image_with_the_wrong_id_is_named_in_a_batch_too():
    samples = make_samples(((6, 6),) * 4)
    samples[2]["label"][0, 0] = 9
    with pytest.raises(InputError, match=r"photo_2\.jpg: The label holds the id 9"):
        evaluate_segmentation(tiny_model(), samples, batch_size=4, **OPTIONS)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_ends_the_evaluation(workers):
    class Broken(list):
        def __getitem__(self, i):
            if i == 3:
                raise InputError("Cannot read photo_3.jpg.")
            return super().__getitem__(i)

    with pytest.raises(InputError, match=r"^Cannot read photo_3\.jpg\.$"):
        evaluate_segmentation(tiny_model(), Broken(make_samples()), num_workers=workers, **OPTIONS)


def test_inference_options_arrive():
    model, samples = tiny_model(), make_samples(sizes=((8, 11),))
    evaluate_segmentation(model, samples, window=8, stride=3, scales=(1.0, 2.0), flip=True, **OPTIONS)
    assert len(model.batch_sizes) == 2 * (
        2 + 4 * 6
    )  # both mirrors of 1 x 2 windows, and of 4 x 6 at double size


def test_training_flags_statistics_and_random_state_survive():
    model = tiny_model().train()
    model.norm.eval()  # a frozen norm stays frozen
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate_segmentation(model, make_samples(), **OPTIONS)
    assert model.training and model.dropout.training and not model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_flags_survive_an_error_too():
    model, samples = tiny_model().train(), make_samples()
    samples[3]["label"][0, 0] = 9
    with pytest.raises(InputError, match=r"photo_3\.jpg: The label holds the id 9"):
        evaluate_segmentation(model, samples, **OPTIONS)
    assert all(module.training for module in model.modules())


def test_samples_that_cannot_be_evaluated_are_named():
    samples = make_samples()
    samples[1]["label"] = None
    with pytest.raises(InputError, match=r"photo_1\.jpg has no label"):
        evaluate_segmentation(tiny_model(), samples, **OPTIONS)
    samples[1]["label"] = torch.zeros(3, 3, dtype=torch.int64)
    with pytest.raises(InputError, match=r"photo_1\.jpg: .*shape"):
        evaluate_segmentation(tiny_model(), samples, **OPTIONS)


def test_another_number_of_classes_is_refused():
    with pytest.raises(InputError, match="predicts 7 classes but the dataset has 4"):
        evaluate_segmentation(tiny_model(7), make_samples(), **OPTIONS)


def test_autocast_runs_the_model_in_low_precision():
    class Spy(TinyModel):
        def forward(self, pixel_values):
            output = super().forward(pixel_values)
            self.dtype = output.logits.dtype
            return output

    model = Spy()
    evaluate_segmentation(model, make_samples(), autocast_dtype=torch.bfloat16, **OPTIONS)
    assert model.dtype == torch.bfloat16
    evaluate_segmentation(model, make_samples(), **OPTIONS)
    assert model.dtype == torch.float32

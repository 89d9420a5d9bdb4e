import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.official.convert import from_official, save_official, to_official

COUNTER = ".num_batches_tracked"
SMALL = {"aspp_channels": 16, "low_level_channels": 8, "decoder_channels": 12, "correlation_channels": 20}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = CorrMatchConfig(
        encoder_name="resnet50s", output_stride=8, num_labels=5, correlation_dim=3, encoder_kwargs={}, **SMALL
    )
    return CorrMatchForSegmentation(config).eval()


@pytest.fixture(scope="module")
def state(model):
    """Its weights under the authors' names, of one number each: as files they are small."""
    torch.manual_seed(0)
    return one_number_each({name: value.shape for name, value in to_official(model).items()})


def one_number_each(shapes):
    return {
        name: torch.tensor(7) if name.endswith(COUNTER) else torch.randn(()).expand(tuple(shape))
        for name, shape in shapes.items()
    }


@pytest.fixture
def saved(tmp_path):
    """Saves something as a checkpoint file."""

    def save(contents, **options):
        torch.save(contents, tmp_path / "checkpoint.pth", **options)
        return tmp_path / "checkpoint.pth"

    return save


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def reference_shapes(shared_dir):
    shapes = json.loads((shared_dir / "reference" / "official_resnet50_state_dict_shapes.json").read_text())
    return {name.removeprefix("module."): tuple(shape) for name, shape in shapes.items()}


def test_names_and_shapes_are_the_authors(shared_dir):
    with torch.device("meta"):
        model = CorrMatchForSegmentation(
            CorrMatchConfig(encoder_name="resnet50s", output_stride=8, num_labels=21)
        )
    ours = {name: tuple(value.shape) for name, value in to_official(model).items()}
    assert ours == reference_shapes(shared_dir)


def test_resnet101_is_recognised(shared_dir, saved):
    shapes = reference_shapes(shared_dir)
    block = {name: shape for name, shape in shapes.items() if name.startswith("backbone.layer3.5.")}
    for i in range(6, 23):  # the one difference between the two
        shapes |= {name.replace("layer3.5.", f"layer3.{i}."): shape for name, shape in block.items()}
    state = one_number_each(shapes)
    model = from_official(saved({"model": state}))
    config = model.config
    assert (config.encoder_name, config.num_labels, config.output_stride) == ("resnet101s", 21, 8)
    assert config.correlation_head and config.aspp_rates == [12, 24, 36] and config.encoder_origin is None
    assert same(to_official(model), state)


def test_ours_to_theirs_to_ours_is_the_same(model, tmp_path):
    save_official(model, tmp_path / "theirs.pth", data_parallel=True)
    written = torch.load(tmp_path / "theirs.pth", weights_only=True, mmap=True)
    assert all(name.startswith("module.") for name in written)  # CorrMatch's scripts load the bare weights

    again = from_official(tmp_path / "theirs.pth")
    assert same(again.state_dict(), model.state_dict())
    for field in ("encoder_name", "output_stride", "num_labels", "correlation_dim", *SMALL):
        assert getattr(again.config, field) == getattr(model.config, field), field
    assert not again.training and all(parameter.requires_grad for parameter in again.parameters())


def test_no_correlation_head_means_unimatch(state, saved, tmp_path):
    state = {name: value for name, value in state.items() if not name.startswith(("corr.", "proj."))}
    model = from_official(saved(state))
    assert not model.config.correlation_head and model.correlation is None
    assert model.config.output_stride == 16 and model.config.aspp_rates == [6, 12, 18]
    assert same(to_official(model), state)
    save_official(model, tmp_path / "theirs.pth")
    assert torch.load(tmp_path / "theirs.pth", weights_only=True).keys() == {"model"}
    assert from_official(saved(state), output_stride=8).config.aspp_rates == [12, 24, 36]


@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers_and_what_lies_beside_the_weights(state, saved, legacy):
    beside = {
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "epoch": 79,
        "previous_best": np.float64(81.8),  # as NumPy pickles it
        "threshold": torch.tensor(0.9),
    }
    parallel = {f"module.{name}": value for name, value in state.items()}
    for contents in (
        {"model": parallel, **beside},
        {"state_dict": state},
        {"model_ema": parallel},
        parallel,
        state,
    ):
        path = saved(contents, _use_new_zipfile_serialization=not legacy)
        assert same(to_official(from_official(path)), state)


def test_numbers_pickled_by_numpy_1(state, saved):
    path = saved({"model": state, "previous_best": np.float64(81.8)}, _use_new_zipfile_serialization=False)
    contents = path.read_bytes()
    assert contents.count(b"numpy._core.multiarray") == 1
    path.write_bytes(contents.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same(to_official(from_official(path)), state)


def test_several_sets_of_weights_need_a_choice(state, saved):
    other = one_number_each({name: value.shape for name, value in state.items()})
    path = saved({"model": state, "model_ema": other})
    with pytest.raises(
        InputError, match="several sets of weights: choose one of model, model_ema with --key"
    ):
        from_official(path)
    with pytest.raises(InputError, match="no weights named 'ema': choose one of model, model_ema"):
        from_official(path, key="ema")
    assert same(to_official(from_official(path, key="model_ema")), other)


def test_counters_of_batches_may_be_absent(state, saved):
    old = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    assert len(old) < len(state)
    again = to_official(from_official(saved(old)))
    assert again.keys() == state.keys() and same({name: again[name] for name in old}, old)
    assert all(value == 0 for name, value in again.items() if name.endswith(COUNTER))


def test_mixed_precisions_become_the_widest(state, saved):
    mixed = {name: value.half() if ".bn" in name and value.ndim else value for name, value in state.items()}
    again = to_official(from_official(saved(mixed)))
    assert {value.dtype for value in again.values() if value.is_floating_point()} == {torch.float32}
    assert all(torch.equal(again[name], value.to(again[name].dtype)) for name, value in mixed.items())

    half = {name: value if name.endswith(COUNTER) else value.half() for name, value in state.items()}
    assert to_official(from_official(saved(half)))["classifier.bias"].dtype == torch.float16


def test_every_weight_that_does_not_fit_is_in_one_error(state, saved):
    wrong = {
        **{
            name: value
            for name, value in state.items()
            if name not in ("classifier.bias", "corr.conv1.weight")
        },
        "fuse.3.weight": torch.zeros(12, 12, 1, 1),
        "extra.weight": torch.zeros(1),
    }
    with pytest.raises(InputError) as caught:
        from_official(saved({"model": wrong}))
    message = str(caught.value)
    assert "missing: classifier.bias, corr.conv1.weight" in message
    assert "unexpected: extra.weight" in message
    assert "of a wrong shape: fuse.3.weight (12, 12, 1, 1) instead of (12, 12, 3, 3)" in message
    assert "resnet50s" in message and "checkpoint.pth" in message


def test_weights_that_are_not_finite_are_named(state, saved):
    wrong = {**state, "classifier.bias": torch.tensor([0.0, 1.0, torch.nan, 0.0, 0.0])}
    with pytest.raises(
        InputError, match=r"NaN or infinite weights: classifier.bias. Use an earlier checkpoint"
    ):
        from_official(saved({"model": wrong}))


def test_integers_in_place_of_weights_are_named(state, saved):
    wrong = {**state, "classifier.bias": torch.zeros(5).long()}
    with pytest.raises(InputError, match=r"non-float or sparse weights: classifier.bias"):
        from_official(saved(wrong))


def test_another_encoder_is_refused(state, saved):
    without = {name: value for name, value in state.items() if not name.startswith("backbone.layer2.3.")}
    with pytest.raises(
        InputError, match=r"\(3, 3, 6, 3\) blocks instead of resnet50s \(3, 4, 6, 3\) or resnet101s"
    ):
        from_official(saved(without))
    with pytest.raises(
        InputError, match=r"not a checkpoint of CorrMatch or UniMatch.*its weights are conv.weight"
    ):
        from_official(saved({"conv.weight": torch.zeros(1)}))


def test_class_names(state, saved):
    names = {0: "sky", 1: "road", 2: "car", 3: "tree", 4: "person"}
    path = saved(state)
    config = from_official(path, id2label=names).config
    assert config.id2label == names and config.label2id["car"] == 2 and config.num_labels == 5
    assert from_official(path).config.id2label[4] == "LABEL_4"
    for wrong in ({0: "sky"}, {i + 1: name for i, name in names.items()}):
        with pytest.raises(InputError, match="has 5 classes, so 5 names are needed, for the ids 0 to 4"):
            from_official(path, id2label=wrong)


def test_the_configuration_says_which_file_it_was(state, saved):
    path = saved(state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert from_official(path).config.converted_from == {"file": "checkpoint.pth", "sha256": digest}


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_with_code_is_refused_and_runs_nothing(saved, tmp_path, legacy):
    target = tmp_path / "made by the payload"
    contents = {"model": {"classifier.weight": torch.zeros(1)}, "note": Payload(target)}
    path = saved(contents, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"would run posix.mkdir|would run nt.mkdir") as caught:
        from_official(path)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.is_dir()  # the payload is a real one


@pytest.mark.parametrize(
    "contents",
    [b"", b"not a checkpoint", b"\x80\x02.", pickle.dumps([1], protocol=2), b"PK\x03\x04 cut off"],
    ids=range(5),
)
def test_damaged_files(tmp_path, contents):
    path = tmp_path / "broken.pth"
    path.write_bytes(contents)
    with pytest.raises(InputError, match=r"broken.pth cannot be read"):
        from_official(path)


def test_an_incomplete_download(state, saved):
    path = saved(state)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"cannot be read as a PyTorch checkpoint.*incomplete"):
        from_official(path)


def test_files_without_weights(saved, tmp_path):
    with pytest.raises(InputError, match="There is no checkpoint file"):
        from_official(tmp_path / "none.pth")
    for contents in ({}, {"epoch": 3}, torch.zeros(2), {"model": {}}):
        with pytest.raises(InputError, match="contains no weights"):
            from_official(saved(contents))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"encoder_name": "resnet50"}, "encoder resnet50 instead of resnet50s or resnet101s"),
        ({"encoder_kwargs": {"in_chans": 1}}, r"an encoder built with \{'in_chans': 1\}"),
        ({"atrous_rates": [6, 12]}, "2 dilation rates instead of 3"),
        ({"correlation_position": "aspp"}, "a correlation head on the aspp instead of the encoder"),
        ({"correlation_scale": "rows"}, "correlation_scale rows instead of scores"),
    ],
)
def test_networks_that_are_not_the_authors_are_not_written(tmp_path, options, reason):
    with torch.device("meta"):
        model = CorrMatchForSegmentation(CorrMatchConfig(**{"encoder_name": "resnet50s", **options}))
    with pytest.raises(InputError, match=reason):
        save_official(model, tmp_path / "out.pth")
    assert not any(tmp_path.iterdir())


def test_a_pretrained_tag_and_stochastic_depth_change_nothing():
    with torch.device("meta"):
        model = CorrMatchForSegmentation(
            CorrMatchConfig(encoder_name="resnet50s.gluon_in1k", encoder_kwargs={"drop_path_rate": 0.1})
        )
    assert "backbone.conv1.0.weight" in to_official(model)

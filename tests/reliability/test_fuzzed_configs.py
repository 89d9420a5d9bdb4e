"""config.json and preprocessor_config.json with anything in them: a clear error, or a model that works.

"Clear" is a ValueError or OSError with a sentence; "works" is finite logits of the right shape. Neither takes
long, nor much memory.
"""

import json
import resource
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.load import load_saved

NARROW = {"aspp_channels": 16, "low_level_channels": 8, "decoder_channels": 16, "correlation_channels": 16}
SIZE = (40, 33)  # width, height
CLASSES = 3
MOST_SECONDS, MOST_MIB = 20, 1500
PROFILE = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = CorrMatchConfig(encoder_name="test_resnet", num_labels=CLASSES, **NARROW)
    CorrMatchForSegmentation(config).save_pretrained(path)
    CorrMatchImageProcessor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def spoilt(folder, tmp_path_factory):
    """A function that writes one of the two files of a copy of the model and gives the copy."""
    copy = tmp_path_factory.mktemp("spoilt") / "model"
    shutil.copytree(folder, copy)

    def spoil(name: str, content: bytes) -> Path:
        for each in ("config.json", "preprocessor_config.json"):
            shutil.copy(folder / each, copy / each)
        (copy / name).write_bytes(content)
        return copy

    return spoil


@pytest.fixture(autouse=True)
def _quiet():
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # transformers tells of mismatched weights before we do
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(level)


# What files can hold

numbers = st.one_of(
    st.sampled_from(
        [
            -1,
            0,
            1,
            2,
            8,
            2**31,
            2**63,
            10**8,
            10**9,
            10**30,
            -(10**30),
            0.5,
            1e308,
            float("nan"),
            float("inf"),
        ]
    ),
    st.integers(-100, 10_000),
    st.floats(),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.text(max_size=8)
    | st.sampled_from(["float64", "resnet18", "load", "1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from("012"), inner, max_size=4)
    ),
    max_leaves=8,
)
nesting = st.integers(1, 100_000).map(lambda depth: "[" * depth + "]" * depth)
roots = (
    st.sampled_from(["", "null", "[]", "{}", "5", '"x"', "NaN", "{", "[1, 2]", "true", "\x00", "{'a': 1}"])
    | nesting
)


def fuzzed(original: bytes, more_keys: list[str]):
    """Files near to `original`: bits turned, cut off, keys missing or of other values, or something else altogether."""
    whole = json.loads(original)

    def turn_bits(places):
        content = bytearray(original)
        for place in places:
            content[place // 8] ^= 1 << place % 8
        return bytes(content)

    def change(changed: dict, missing: set) -> bytes:
        return json.dumps({k: v for k, v in {**whole, **changed}.items() if k not in missing}).encode()

    keys = st.sampled_from([*whole, *more_keys])
    return st.one_of(
        st.lists(st.integers(0, 8 * len(original) - 1), min_size=1, max_size=3).map(turn_bits),
        st.integers(0, len(original)).map(lambda end: original[:end]),
        st.builds(change, st.dictionaries(keys, values, min_size=1, max_size=2), st.just(set())),
        st.builds(change, st.just({}), st.sets(keys, min_size=1, max_size=3)),
        roots.map(str.encode),
        nesting.map(lambda deep: f'{{"id2label": {deep}}}'.encode()),
        st.binary(max_size=20),
    )


MORE_CONFIG_KEYS = [
    "num_labels",
    "torch_dtype",
    "quantization_config",
    "attn_implementation",
    "tie_word_embeddings",
    "to_dict",
    "__class__",
    "unknown",
    "per_layer_config",
    "transformers_weights",
    "problem_type",
    "return_dict",
    "use_return_dict",
]
MORE_PROCESSOR_KEYS = [
    "size",
    "device",
    "return_tensors",
    "do_center_crop",
    "crop_size",
    "do_pad",
    "pad_size",
    "size_divisor",
    "data_format",
    "unknown",
    "input_data_format",
    "disable_grouping",
    "preprocess",
    "__class__",
    "_valid_kwargs_names",
]


# What may come of them


def clearly(load):
    """What `load` gives, or None where it said clearly why it gives nothing. Fails where it was slow or greedy."""
    start, before = time.perf_counter(), _peak_mib()
    try:
        return load()
    except (ValueError, OSError) as error:
        assert len(str(error).split()) >= 4, repr(error)
        return None
    finally:
        assert time.perf_counter() - start < MOST_SECONDS and _peak_mib() - before < MOST_MIB


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def assert_works(model) -> None:
    pixels = torch.randn(1, 3, SIZE[1], SIZE[0]).to(model.dtype)
    with torch.inference_mode():
        logits = model.eval()(pixels, return_dict=True).logits
    assert logits.shape == (1, CLASSES, SIZE[1], SIZE[0]) and logits.isfinite().all()
    assert sorted(model.config.id2label) == list(range(CLASSES))


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def process(path):
    processor = CorrMatchImageProcessor.from_pretrained(path)
    return processor, processor(images=PHOTO, return_tensors="pt")["pixel_values"]


def test_any_config_json_gives_a_clear_error_or_a_working_model(folder, spoilt):
    original = (folder / "config.json").read_bytes()
    loaded = []

    @PROFILE
    @given(fuzzed(original, MORE_CONFIG_KEYS))
    def check(content):
        path = spoilt("config.json", content)
        model = clearly(lambda: CorrMatchForSegmentation.from_pretrained(path))
        loaded.append(model is not None)
        if model is not None:
            assert_works(model)

    check()
    assert 5 < sum(loaded) < len(loaded) - 5  # both happen


def test_any_preprocessor_config_json_gives_a_clear_error_or_a_working_processor(folder, spoilt):
    original = (folder / "preprocessor_config.json").read_bytes()
    loaded = []

    @settings(PROFILE, max_examples=100)
    @given(fuzzed(original, MORE_PROCESSOR_KEYS))
    def check(content):
        path = spoilt("preprocessor_config.json", content)
        made = clearly(lambda: process(path))
        loaded.append(made is not None)
        if made is None:
            return
        processor, pixels = made
        size = pixels.shape[-2:] if processor.do_resize else (SIZE[1], SIZE[0])
        assert pixels.shape == (1, 3, *size) and pixels.is_floating_point() and pixels.isfinite().all()

    check()
    assert 5 < sum(loaded) < len(loaded) - 5


def test_the_pipeline_and_our_commands_tell_as_clearly(folder, spoilt):
    """Where the file is an object at all: what is none fails in the pipeline's own reading."""
    originals = {name: (folder / name).read_bytes() for name in ("config.json", "preprocessor_config.json")}
    either = st.one_of(
        fuzzed(originals["config.json"], MORE_CONFIG_KEYS).map(lambda content: ("config.json", content)),
        fuzzed(originals["preprocessor_config.json"], MORE_PROCESSOR_KEYS).map(
            lambda content: ("preprocessor_config.json", content)
        ),
    )

    @settings(PROFILE, max_examples=15)
    @given(either)
    def check(named):
        path = str(spoilt(*named))
        try:
            model, _ = load_saved(path)
        except InputError as error:
            assert path in str(error) and "\n" not in str(error)
            model = None
        try:
            is_corrmatch = json.loads(named[1]).get("model_type", "corrmatch") == "corrmatch"
        except (ValueError, AttributeError, RecursionError):
            return
        if is_corrmatch and named[0] == "config.json":
            segment = clearly(lambda: pipeline("image-segmentation", model=path, trust_remote_code=False))
            assert (segment is None) == (model is None)
            if segment is not None:
                found = segment(PHOTO)
                total = sum(np.asarray(each["mask"], dtype=np.int64) // 255 for each in found)
                assert total.shape == (SIZE[1], SIZE[0]) and (total == 1).all()

    check()


# Single values, by name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"aspp_channels": 10**9}, "aspp_channels must be at least 1 and at most 8192, not 1000000000"),
        ({"decoder_channels": -4}, "decoder_channels must be at least 1"),
        ({"correlation_dim": 10**30}, "correlation_dim must be at least 1"),
        ({"id2label": None, "num_labels": 10**8}, "num_labels must be an integer from 1 to 32767, not 100000000"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name the classes 0, 1, 2"),
        ({"id2label": {"0": "a", "1": 5}}, "id2label must map each class id to a name, but 5 is not a string"),
        ({"id2label": {}}, "id2label must name the classes"),
        ({"atrous_rates": [10**9]}, "atrous_rates must be positive integers"),
        ({"atrous_rates": [1] * 10**4}, "atrous_rates must be positive integers"),
        ({"ignore_index": 2**40}, "ignore_index must be a 32-bit integer"),
        ({"encoder_name": "x" * 10**6}, "encoder_name must be a name of at most 256 characters, not 'xxx"),
        ({"encoder_kwargs": {"stem_width": 10**9}}, "encoder_kwargs must be numbers up to 16384"),
        ({"encoder_kwargs": {"a": [[[[[[1]]]]]]}}, "encoder_kwargs must be numbers up to 16384"),
        ({"encoder_kwargs": {"drop_rate": float("nan")}}, "encoder_kwargs must be numbers up to 16384"),
        ({"encoder_name": "resnet18", "encoder_kwargs": {"layers": [9000] * 4}}, "more than 10000 layers"),
        ({"dtype": "load"}, "dtype must be one of float16, bfloat16, float32, float64, not 'load'"),
        ({"to_dict": 1}, "'to_dict' cannot be set"),
        ({"return_dict": None}, "return_dict must be true or false"),
        ({"aspp_channels": "16"}, "'aspp_channels' expected int, got str"),
        ({"encoder_name": "resnet50"}, "lacks weights of encoder 'resnet50'"),
        ({"encoder_name": "regnety_2560"}, "needs 1,.* numbers that the weights file does not contain"),
        ({"aspp_channels": 32}, r"do not fit its configuration: .* \(16, 96, 3, 3\) instead of \(32, 96, 3, 3\)"),
        ({"aspp_channels": 8192, "decoder_channels": 8192}, "numbers that the weights file does not contain"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(folder, spoilt, changed, message):
    config = json.loads((folder / "config.json").read_text()) | changed
    path = spoilt("config.json", json.dumps(config).encode())
    start, before = time.perf_counter(), _peak_mib()
    with pytest.raises(ValueError, match=message) as caught:
        CorrMatchForSegmentation.from_pretrained(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    assert time.perf_counter() - start < MOST_SECONDS and _peak_mib() - before < 500


def test_all_values_that_cannot_be_are_in_one_message():
    with pytest.raises(ValueError) as caught:
        CorrMatchConfig(aspp_channels=0, output_stride=7, correlation_position="head", ignore_index=1)
    for name in ("aspp_channels", "output_stride", "correlation_position", "ignore_index"):
        assert name in str(caught.value)
    with pytest.raises(ValueError) as caught:
        CorrMatchImageProcessor(image_std=[0, 0, 0], resample=77, rescale_factor=0, do_resize=2)
    for name in ("image_std", "resample", "rescale_factor", "do_resize"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_std": [0.2, 0.2]}, "image_std must be three positive numbers"),
        ({"image_mean": [float("nan")] * 3}, "image_mean must be three numbers"),
        (
            {"do_resize": True, "size": {"height": 10**6, "width": 10**6}},
            "size must be sides from 1 to 16384",
        ),
        ({"do_resize": True, "size": {"height": 0, "width": 8}}, "size must be sides from 1 to 16384"),
        ({"do_resize": True, "size": {"shortest_edge": -3}}, "size must be sides from 1 to 16384"),
        ({"do_normalize": "yes"}, "do_normalize must be true or false"),
        ({"rescale_factor": float("inf")}, "rescale_factor must be a number above 0"),
        ({"device": "cuda:7"}, "device is an argument of a call"),
        ({"return_tensors": "tf"}, "return_tensors is an argument of a call"),
        ({"preprocess": 1}, "'preprocess' cannot be set"),
    ],
)
def test_an_option_of_the_processor_that_cannot_be_is_named(folder, spoilt, changed, message):
    options = json.loads((folder / "preprocessor_config.json").read_text()) | changed
    path = spoilt("preprocessor_config.json", json.dumps(options).encode())
    with pytest.raises(ValueError, match=message):
        CorrMatchImageProcessor.from_pretrained(path)

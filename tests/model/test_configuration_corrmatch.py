import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from corrmatch_hf.model import CorrMatchConfig


@pytest.mark.parametrize("stride, rates", [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_rates_follow_the_output_stride(stride, rates):
    assert CorrMatchConfig(output_stride=stride).aspp_rates == rates
    assert CorrMatchConfig(output_stride=stride, atrous_rates=(2, 4)).aspp_rates == [2, 4]


def test_saved_and_loaded_unchanged(tmp_path):
    config = CorrMatchConfig(
        encoder_name="convnext_atto",
        encoder_kwargs={"drop_path_rate": 0.1},
        output_stride=8,
        atrous_rates=[1, 2, 3],
        correlation_position="fusion",
        id2label={0: "road", 1: "sky", 2: "tree"},
        ignore_index=-100,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is CorrMatchConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert loaded.num_labels == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, or None, not 4"),
        ({"atrous_rates": []}, "atrous_rates must be positive"),
        ({"atrous_rates": [0, 1]}, "atrous_rates must be positive"),
        ({"aspp_channels": 0}, "aspp_channels must be at least 1"),
        ({"correlation_dim": 0}, "correlation_dim must be at least 1"),
        ({"correlation_dropout": 1.0}, r"correlation_dropout must be in \[0, 1\)"),
        ({"correlation_position": "head"}, "one of encoder, aspp, fusion, classifier, not 'head'"),
        ({"num_labels": 2, "label_colors": [[0, 0, 0], [0, 0, 256]]}, "label_colors must be"),
        ({"num_labels": 2, "label_colors": [[0, 0, 0], "red"]}, "label_colors must be"),
        ({"num_labels": 300}, "ignore_index 255 is the id of one of the 300 classes"),
        ({"encoder_kwargs": {"pretrained": True}}, "must not contain pretrained"),
        ({"encoder_kwargs": {"checkpoint_path": "x", "output_stride": 8}}, "checkpoint_path, output_stride"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CorrMatchConfig(**options)


def test_wrong_types_are_named():
    with pytest.raises(StrictDataclassFieldValidationError, match="encoder_name"):
        CorrMatchConfig(encoder_name=50)


def test_configurations_with_the_old_name_of_decoder_type_load(tmp_path):
    """transformers takes a field `decoder` for a sub-configuration."""
    CorrMatchConfig(decoder_type="linear").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"decoder_type"', '"decoder"'))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.decoder_type == "linear" and "decoder" not in config.to_dict()
    assert CorrMatchConfig.from_pretrained(tmp_path, decoder="deeplabv3plus").decoder_type == "deeplabv3plus"
    assert config.get_text_config() is config


def test_colours_of_other_classes_are_dropped(tmp_path):
    config = CorrMatchConfig(num_labels=2, label_colors=[[0, 0, 0], [255, 0, 0]])
    config.save_pretrained(tmp_path)
    assert CorrMatchConfig.from_pretrained(tmp_path).label_colors == [[0, 0, 0], [255, 0, 0]]
    assert CorrMatchConfig.from_pretrained(tmp_path, num_labels=3).label_colors is None

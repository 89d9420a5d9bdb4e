import pytest

from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation


def tiny_config(**options) -> CorrMatchConfig:
    small = {"aspp_channels": 16, "low_level_channels": 8, "decoder_channels": 16, "correlation_channels": 16}
    classes = {} if "id2label" in options else {"num_labels": 5}
    return CorrMatchConfig(**{"encoder_name": "resnet18", **classes, **small, **options})


@pytest.fixture
def config():
    """Makes a configuration with few channels."""
    return tiny_config


@pytest.fixture
def network():
    """Makes a network with few channels."""
    return lambda **options: CorrMatchForSegmentation(tiny_config(**options))

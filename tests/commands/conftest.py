"""A saved model for the commands that use one."""

import pytest
import torch

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor

ID2LABEL = {0: "sky", 1: "road", 2: "car"}


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    torch.manual_seed(0)
    config = CorrMatchConfig(
        encoder_name="test_resnet",
        id2label=ID2LABEL,
        aspp_channels=16,
        decoder_channels=16,
        correlation_head=False,
    )
    folder = tmp_path_factory.mktemp("model")
    CorrMatchForSegmentation(config).save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    return folder

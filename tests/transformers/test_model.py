"""transformers' common tests of models, for a CNN and a plain transformer, and of their configuration."""

import unittest

import torch

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation

from .models import CNN, VIT
from .suites import suite

modeling, configuration = suite("test_modeling_common"), suite("test_configuration_common")


class Tester:
    """What the suites ask of a model's tests."""

    batch_size, image_size, num_channels, is_training = 2, 48, 3, True

    def __init__(self, parent, options):
        self.parent, self.options = parent, options

    def get_config(self):
        return CorrMatchConfig(**self.options)

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": torch.rand(shape)}


class Common(modeling.ModelTesterMixin):
    all_model_classes = (CorrMatchForSegmentation,)
    pipeline_model_mapping = {"image-segmentation": CorrMatchForSegmentation}  # noqa: RUF012
    test_resize_embeddings = False
    has_attentions = False
    options = CNN

    def setUp(self):
        self.model_tester = Tester(self, self.options)
        self.config_tester = configuration.ConfigTester(
            self, config_class=CorrMatchConfig, has_text_modality=False, common_properties=["num_labels"]
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(inputs_dict)
        if return_labels:
            n, _, height, width = inputs["pixel_values"].shape
            inputs["labels"] = torch.zeros(n, height, width, dtype=torch.long)
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_hidden_states_output(self):
        """The encoder's levels, where they are asked for: in the call, or in the configuration."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = CorrMatchForSegmentation(config).eval()
        with torch.no_grad():
            levels = model(**inputs, output_hidden_states=True).hidden_states
            assert model(**inputs).hidden_states is None
            model.config.output_hidden_states = True
            assert len(model(**inputs).hidden_states) == len(levels)
        assert [level.shape[1] for level in levels] == model.encoder.channels

    # What transformers' own models on timm (TimmWrapper) leave out, too.

    @unittest.skip("an image has no embeddings")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("an image has no embeddings")
    def test_model_get_set_embeddings(self):
        pass


class CNNTest(Common, unittest.TestCase):
    pass


class ViTTest(Common, unittest.TestCase):
    options = VIT


del Common

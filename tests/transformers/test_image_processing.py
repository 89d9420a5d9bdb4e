"""transformers' common tests of image processors, and of what they make of a network's output."""

import unittest

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from corrmatch_hf import CorrMatchImageProcessor

from .suites import suite

common = suite("test_image_processing_common")


class Tester(common.ImageProcessingTester):
    image_size = 20

    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"height": 20, "width": 24})
        kwargs.setdefault("do_resize", True)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"torchvision": CorrMatchImageProcessor}

    def expected_output_image_shape(self, images):
        return self.num_channels, 20, 24

    def prepare_post_process_semantic_segmentation_inputs(self):
        expected = {"height": 20, "width": 24, "num_labels": 5}
        return {"outputs": SemanticSegmenterOutput(logits=torch.randn(self.batch_size, 5, 20, 24))}, expected


class ImageProcessorTest(
    common.ImageProcessingTestMixin, common.PostProcessSemanticSegmentationTestMixin, unittest.TestCase
):
    image_processor_tester_class = Tester


del common

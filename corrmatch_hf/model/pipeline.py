"""transformers' `pipeline("image-segmentation")` for photos of every mode, in batches of any sizes.

transformers' own class converts photos with PIL before the image processor sees them, which clips 16-bit and float
values, and cannot batch photos of different sizes. Importing the package's model puts this class in its place; models
of other kinds are served as before. A model loaded by `trust_remote_code`, without the package, has transformers' own.
"""

import os

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.pipelines import PIPELINE_REGISTRY, ImageSegmentationPipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .image_processing_corrmatch import CorrMatchImageProcessor
from .picture_corrmatch import to_rgb, upright


class CorrMatchSegmentationPipeline(ImageSegmentationPipeline):
    """Photos -> one mask for each class, as in [`ImageSegmentationPipeline`]."""

    @property
    def _is_own(self) -> bool:
        return isinstance(self.image_processor, CorrMatchImageProcessor)

    def check_model_type(self, supported_models):
        """transformers' list names its own models alone, and calls every other one unsupported."""
        if not self._is_own:
            super().check_model_type(supported_models)

    def preprocess(self, image, subtask=None, timeout=None):
        """A PIL image, path, URL or base64 text -> pixel_values (1, 3, H, W) and target_size [(H, W)]."""
        here = isinstance(image, Image.Image) or (isinstance(image, str) and os.path.isfile(image))
        if self._is_own and here:
            image = to_rgb(upright(image))
        return super().preprocess(image, subtask=subtask, timeout=timeout)

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ):
        if not self._is_own or batch_size == 1:
            return super().get_iterator(
                inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
            )
        if hasattr(inputs, "__len__"):
            photos = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            photos = PipelineIterator(inputs, self.preprocess, preprocess_params)
        batches = DataLoader(photos, batch_size, num_workers=num_workers, collate_fn=_joined)
        outputs = PipelineIterator(batches, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def _forward(self, model_inputs):
        """Photos of one size pass the network together; their logits are padded to the largest size."""
        photos = model_inputs["pixel_values"]
        if not isinstance(photos, list):
            return super()._forward(model_inputs)
        groups: dict[torch.Size, list[int]] = {}
        for i, photo in enumerate(photos):
            groups.setdefault(photo.shape, []).append(i)
        logits: list = [None] * len(photos)
        for places in groups.values():
            together = self.model(pixel_values=torch.cat([photos[i] for i in places])).logits
            for i, each in zip(places, together, strict=True):
                logits[i] = each
        height, width = (max(each.shape[axis] for each in logits) for axis in (-2, -1))
        padded = [F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in logits]
        outputs = SemanticSegmenterOutput(logits=torch.stack(padded))
        outputs["target_size"] = model_inputs["target_size"]
        return outputs


def _joined(items: list[dict]) -> dict:
    """Preprocessed photos -> one batch; `pixel_values` stays a list, since sizes may differ."""
    return {
        "pixel_values": [item["pixel_values"] for item in items],
        "target_size": [item["target_size"] for item in items],  # split again photo by photo
    }


def register_pipeline() -> None:
    """Let transformers' `pipeline` use this class for the task "image-segmentation"."""
    PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] = CorrMatchSegmentationPipeline

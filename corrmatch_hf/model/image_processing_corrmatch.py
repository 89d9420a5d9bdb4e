"""Images of any kind to normalised tensors, segmentation maps to class ids, logits to segmentation maps."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

from .palette_corrmatch import class_palette
from .picture_corrmatch import refuse_huge_tiles, sixteen_to_eight, tile_pixels, to_rgb, upright

logger = logging.get_logger(__name__)

# Options of other image processors that this one does not have: only their being off is accepted.
NOT_HERE = ("do_center_crop", "crop_size", "do_pad", "pad_size")
# What transformers writes into the file of an image processor beside its options.
FILE_KEYS = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")
MAX_SIDE = 16_384  # of an image after resizing; far above useful values
SIDES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
RESAMPLINGS = range(6)  # PIL's codes


class CorrMatchImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict
    """
    ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels added around segmentation maps when a batch holds several sizes, and of those that
        `do_reduce_labels` takes out.
    do_reduce_labels (`bool`, *optional*, defaults to `False`):
        Whether 0 in segmentation maps becomes `ignore_index`, and every other id is lowered by one (ADE20K). Its old
        name `reduce_labels` is understood.
    """

    ignore_index: int
    do_reduce_labels: bool


class CorrMatchImageProcessor(TorchvisionBackend):
    """Prepares images and segmentation maps for [`CorrMatchForSegmentation`], and decodes its output.

    Images are PIL images of every mode, paths, URLs, or arrays and tensors (H,W), (H,W,C) or (C,H,W) with 1, 3 or 4
    channels. Gray becomes RGB, palettes are looked up, alpha is dropped, 16-bit values (PIL modes I;16
    and I, uint16) are divided by 257, and PIL images of floats may be 0..1 or 0..255. The size stays unless
    `do_resize=True` is given, here or in a call, with a `size` (512 x 512 by default). Values are divided by 255 and
    normalised with ImageNet's mean and deviation. Float arrays that are 0..1 already need `do_rescale=False`.

    Segmentation maps are PIL images (palette indices are the ids), or arrays and tensors (H,W). Ids are kept
    as they are; if the size changes, by nearest neighbour.

    Images of different sizes are padded at the right and bottom to the largest, with zeros after
    normalisation, their maps with `ignore_index`; without `return_tensors` they stay as they are.
    """

    valid_kwargs = CorrMatchImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 512, "width": 512}  # noqa: RUF012  (copied for every instance)
    do_convert_rgb = True
    do_resize = False
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    ignore_index = 255
    do_reduce_labels = False
    model_input_names = ["pixel_values"]  # noqa: RUF012  (transformers reads it from the class)

    def __init__(self, **kwargs: Unpack[CorrMatchImageProcessorKwargs]):
        self._last_resize: tuple[bool, Any] | None = None  # do_resize and size of the last call
        kwargs = _own_options(kwargs)
        known = {*self.valid_kwargs.__annotations__, *FILE_KEYS}
        unknown = [
            name
            for name in kwargs
            if name not in known
            and not name.startswith("_")
            and not callable(getattr(type(self), name, None))
        ]
        if unknown:
            raise ValueError(f"The image processor has no option {_short(', '.join(unknown))}: leave it out.")
        try:
            super().__init__(**kwargs)
        except (AttributeError, LookupError, TypeError) as error:  # invalid sizes
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"The image processor does not accept these options: {reason}.") from error
        if wrong := [*_problems(vars(self)), *self._misplaced(kwargs)]:
            raise ValueError(" ".join(wrong))

    # One reader of pictures, and one colour per class, for everything that has this processor: an endpoint, a Space.
    class_palette = staticmethod(class_palette)
    to_rgb = staticmethod(to_rgb)
    tile_pixels = staticmethod(tile_pixels)

    def _misplaced(self, given: dict) -> list[str]:
        """A sentence for each option that a configuration cannot have."""
        wrong = []
        for name in ("device", "return_tensors", "input_data_format"):
            if given.get(name) is not None:
                wrong.append(
                    f"{name} is an argument of a call, not of an image processor's configuration: leave it out."
                )
        if hidden := sorted(n for n in given if n.startswith("__") or callable(getattr(type(self), n, None))):
            wrong.append(
                f"{_short(', '.join(hidden))} cannot be set: the image processor has methods of these names."
            )
        return wrong

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers, but a file without a JSON object is a ValueError, too."""
        try:
            options, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
            if not isinstance(options, dict):
                raise TypeError
        except (AttributeError, TypeError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(
                f"The preprocessor_config.json of {pretrained_model_name_or_path} is not the configuration of an image "
                f"processor ({type(error).__name__}): it must be one JSON object, {{...}}, with plain values."
            ) from error
        return options, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        """As in transformers, but deeply nested values are a ValueError, and unknown ones are named and left out."""
        image_processor_dict, kwargs = _own_options(image_processor_dict), _own_options(kwargs)
        known = {*cls.valid_kwargs.__annotations__, *FILE_KEYS}
        unknown = [name for name in image_processor_dict if name not in known and not hasattr(cls, name)]
        if unknown:
            logger.warning(
                f"Options that the image processor does not have are left out: {_short(', '.join(unknown))}."
            )
            image_processor_dict = {k: v for k, v in image_processor_dict.items() if k not in unknown}
        try:
            return super().from_dict(image_processor_dict, **kwargs)
        except RecursionError as error:
            raise ValueError(
                "An image processor's configuration must be plain values, not nested hundreds of levels deep."
            ) from error

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[CorrMatchImageProcessorKwargs],
    ) -> BatchFeature:
        """One image or several, with or without segmentation maps.

        Returns:
            pixel_values: (N,3,H,W) float32 with `return_tensors="pt"`, else a list of (3,H,W).
            labels: (N,H,W) int64, or a list of (H,W), if segmentation maps were given.

        Raises:
            ValueError: an image or a segmentation map of an unsupported kind; a map of another size than its image.
        """
        kwargs = _own_options(kwargs)
        return super().preprocess(images, segmentation_maps, **kwargs)

    def to_dict(self):
        """As in transformers, without what is remembered of the last call."""
        return {name: value for name, value in super().to_dict().items() if name != "_last_resize"}

    def fetch_images(self, image_url_or_urls):
        """Files of this machine are opened here, since transformers reads neither TIFF nor 16 bits."""
        if isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls):
            return upright(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, device=None, **kwargs):
        """One image to a (3,H,W) tensor in 0..255."""
        if isinstance(image, Image.Image):
            refuse_huge_tiles(image)
            if do_convert_rgb:
                image = to_rgb(image)
            elif image.mode.startswith("I"):
                image = np.array(image, dtype=np.uint16)
        if isinstance(image, np.ndarray) and image.dtype == np.uint16:
            image = sixteen_to_eight(image)
        if isinstance(image, np.ndarray):
            # a copy, since torch supports neither other byte orders nor negative strides
            image = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))
        if isinstance(image, torch.Tensor) and image.dtype == torch.uint16:
            image = torch.from_numpy(sixteen_to_eight(image.cpu().numpy())).to(image.device)
        if isinstance(image, torch.Tensor) and image.ndim == 3 and input_data_format is None:
            # transformers 5.17 alone would not recognise four channels
            input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
        image = super().process_image(
            image, do_convert_rgb=False, input_data_format=input_data_format, device=device
        )
        if do_convert_rgb:
            image = image[:3].expand(3, -1, -1)  # drops alpha; repeats gray three times
        return image

    def _preprocess_image_like_inputs(
        self,
        images,
        segmentation_maps,
        do_convert_rgb,
        input_data_format,
        return_tensors,
        ignore_index,
        do_reduce_labels,
        device=None,
        **kwargs,
    ) -> BatchFeature:
        given = {**kwargs, "ignore_index": ignore_index, "do_reduce_labels": do_reduce_labels}
        channels = (1, 3) if do_convert_rgb else (1, 3, 4)
        if wrong := _problems({**vars(self), **{k: v for k, v in given.items() if v is not None}}, channels):
            raise ValueError(" ".join(wrong))
        self._last_resize = bool(kwargs["do_resize"]), kwargs["size"]
        images = [
            self.process_image(each, do_convert_rgb, input_data_format, device)
            for each in _as_list(self.fetch_images(images), batch_ndim=4)
        ]
        data = {"pixel_values": self._preprocess(images, **kwargs)}
        if segmentation_maps is not None:
            maps = [
                _class_ids(each).to(device or "cpu") for each in _as_list(segmentation_maps, batch_ndim=3)
            ]
            if do_reduce_labels:
                maps = [_reduced(each, ignore_index) for each in maps]
            sizes = [tuple(image.shape[-2:]) for image in images], [tuple(each.shape) for each in maps]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"Segmentation maps must be as large as their images {sizes[0]}, not {sizes[1]}."
                )
            if kwargs["do_resize"]:
                maps = [
                    self.resize(each[None], kwargs["size"], tvF.InterpolationMode.NEAREST_EXACT)[0]
                    for each in maps
                ]
            data["labels"] = maps
        if return_tensors:
            data["pixel_values"] = _stack(data["pixel_values"], 0)
            if segmentation_maps is not None:
                data["labels"] = _stack(data["labels"], ignore_index)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size,
        resample,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        **kwargs,
    ) -> list[torch.Tensor]:
        if do_resize:
            images = [self.resize(image, size, resample) for image in images]
        return [
            self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            for image in images
        ]

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """Class ids of every pixel.

        Args:
            outputs: of [`CorrMatchForSegmentation`], with logits (N,K,H,W).
            target_sizes: (height, width) of each result, usually of the image before processing. Padding is cut off:
                where the last call of this processor (before the first: its options) did not resize, down to a size
                that is not larger; where it resized images of several shapes to one `shortest_edge`, for instance,
                down to what it made of images of these sizes. Then the logits are resized where they must be.
            return_segmentation_scores: return the logits at that size, too.

        Returns:
            N tensors (height, width), int64; with scores N [`BatchFeature`] of `segmentation`, as before, and
            `segmentation_scores` (K,height,width).

        Raises:
            ValueError: not one target size for each image, or logits that are not finite.
        """
        logits = outputs.logits
        if not logits.amax(dim=1).isfinite().all():  # NaN would pass for a class
            raise ValueError(
                "The model's outputs are not finite: its weights are corrupt, or the precision is too low. Use an "
                "earlier checkpoint, or float32."
            )
        if target_sizes is None:
            target_sizes = [logits.shape[-2:]] * len(logits)
        if len(target_sizes) != len(logits):
            raise ValueError(
                f"target_sizes must contain one size for each of {len(logits)} images, not {len(target_sizes)}."
            )
        target_sizes = [(int(height), int(width)) for height, width in target_sizes]
        unpadded = self._unpadded(logits.shape[-2:], target_sizes)
        results = []
        for each, size, (height, width) in zip(logits, unpadded, target_sizes, strict=True):
            each = each[:, : size[0], : size[1]]
            if (height, width) != each.shape[-2:]:
                each = F.interpolate(each[None], size=(height, width), mode="bilinear", align_corners=True)[0]
            results.append(BatchFeature({"segmentation": each.argmax(dim=0), "segmentation_scores": each}))
        return results if return_segmentation_scores else [each.segmentation for each in results]

    def _unpadded(
        self, padded: tuple[int, int], target_sizes: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """The size of each image of a batch without the padding, for logits of size `padded`."""
        do_resize, size = self._last_resize or (self.do_resize, self.size)
        if not do_resize:
            return [
                (height, width) if height <= padded[0] and width <= padded[1] else padded
                for height, width in target_sizes
            ]
        # Without memory: what the processor makes of images of these sizes.
        images = [torch.empty(1, *each, device="meta") for each in target_sizes]
        sizes = [tuple(self.resize(image, size).shape[-2:]) for image in images]
        largest = tuple(max(side) for side in zip(*sizes, strict=True))
        return sizes if largest == tuple(padded) else [padded] * len(sizes)  # else of other images


def _own_options(given: dict) -> dict:
    """The options with today's names.

    Raises:
        ValueError: one that other image processors have, and this one does not, is switched on.
    """
    if on := [name for name in NOT_HERE if given.get(name)]:
        raise ValueError(
            f"The image processor cannot crop or pad to a size ({', '.join(on)}): leave this out, or use "
            "do_resize=True with a size."
        )
    own = {name: value for name, value in given.items() if name not in NOT_HERE}
    if "reduce_labels" in own:  # up to transformers 4.40
        own.setdefault("do_reduce_labels", own.pop("reduce_labels"))
    return own


def _problems(options: Mapping[str, Any], channels: Sequence[int] = (1, 3)) -> list[str]:
    """A sentence for each option outside its bounds; they may come from an untrusted preprocessor_config.json."""
    wrong = []
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels"):
        if type(options[name]) is not bool and options[name] is not None:
            wrong.append(f"{name} must be true or false, not {_short(options[name])}.")
    if not _is_number(options["rescale_factor"]) or not 0 < options["rescale_factor"] <= 1e6:
        wrong.append(f"rescale_factor must be a number above 0, not {_short(options['rescale_factor'])}.")
    for name, least in (("image_mean", -1e6), ("image_std", 1e-6)):
        value = options[name]
        values = list(value) if isinstance(value, list | tuple) else [value]
        if len(values) not in channels or not all(_is_number(v) and least <= v <= 1e6 for v in values):
            wrong.append(
                f"{name} must be three {'positive ' if name == 'image_std' else ''}numbers of moderate size, "
                f"not {_short(value)}."
            )
    resample = options["resample"]
    if not isinstance(resample, tvF.InterpolationMode) and (
        not isinstance(resample, int) or resample not in RESAMPLINGS
    ):
        wrong.append(f"resample must be one of PIL's codes 0 to 5, not {_short(options['resample'])}.")
    if type(options["ignore_index"]) is not int or not -(2**31) <= options["ignore_index"] < 2**31:
        wrong.append(f"ignore_index must be a 32-bit integer, not {_short(options['ignore_index'])}.")
    sides = {name: getattr(options["size"], name, None) for name in SIDES} if options["size"] else {}
    sides = {name: side for name, side in sides.items() if side is not None}
    if any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in sides.values()):
        wrong.append(f"size must be sides from 1 to {MAX_SIDE} pixels, not {_short(sides)}.")
    return wrong


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _as_list(images, batch_ndim: int) -> list:
    """One image, a list of them or an array of `batch_ndim` dimensions, as a list of images."""
    if isinstance(images, list | tuple):
        return [image for each in images for image in _as_list(each, batch_ndim)]
    if getattr(images, "ndim", 0) == batch_ndim and images.shape[-1] != 1:
        return list(images)
    return [images]


def _class_ids(segmentation_map) -> torch.Tensor:
    """A segmentation map as (H,W) int64."""
    if isinstance(segmentation_map, torch.Tensor):
        ids = segmentation_map
    else:
        array = np.asarray(segmentation_map)  # for a palette image, the indices
        ids = (
            torch.from_numpy(array.astype(np.int64)) if array.dtype.kind in "biu" else torch.from_numpy(array)
        )
    if ids.ndim == 3 and 1 in (ids.shape[0], ids.shape[-1]):
        ids = ids.squeeze(0 if ids.shape[0] == 1 else -1)
    if ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"A segmentation map must be (height, width) integers, not {tuple(ids.shape)} {ids.dtype}; "
            "convert colours to class ids first."
        )
    return ids.to(torch.int64)


def _reduced(ids: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Ids with 0 as "no class" -> ids from 0, with `ignore_index` for it."""
    return torch.where((ids == 0) | (ids == ignore_index), ignore_index, ids - 1)


def _stack(tensors: list[torch.Tensor], fill: float) -> torch.Tensor:
    """Tensors (...,h,w) to (N,...,H,W), padded at the right and bottom to the largest height and width."""
    height, width = (max(tensor.shape[axis] for tensor in tensors) for axis in (-2, -1))
    return torch.stack(
        [F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2]), value=fill) for each in tensors]
    )

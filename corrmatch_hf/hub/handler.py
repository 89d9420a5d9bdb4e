"""The handler of a Hugging Face Inference Endpoint: returns one mask for every class in a photo.

The endpoint finds this file next to the weights and calls `EndpointHandler(path)(data)`. It only needs the packages of
requirements.txt and the model's code next to it. `trust_remote_code` below allows that code to run: it comes from the
same repository as this file.
"""

import base64
import binascii
import io
import math
import os
import threading

import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

# Limits of one image and one request, against uploads that would exhaust memory or block other requests. Environment
# variables of the same names with the prefix CORRMATCH_ replace them.
MAX_IMAGE_BYTES = 32 * 2**20
MAX_IMAGE_PIXELS = 16_000_000
MAX_IMAGES = 16
# Images processed at the same time, over all requests; the others wait. A single one uses all cores, and each needs
# hundreds of bytes per pixel.
MAX_CONCURRENT = 1

# Networks compute at least one row of features, so the work for a very long image of one row is that of many rows.
MAX_SIDE = 65_535

# The formats that are decoded. PIL's other formats are rare, and some start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# Parameters of the Hub's task that do not apply to semantic segmentation.
NOT_SEMANTIC = ("mask_threshold", "overlap_mask_area_threshold")


class EndpointHandler:
    """Semantic segmentation with the interface of the Hub's task "image-segmentation".

    Args:
        path: folder of the model; by default that of this file.
    """

    def __init__(self, path=""):
        path = str(path) or os.path.dirname(os.path.abspath(__file__))
        self.max_bytes = _limit("CORRMATCH_MAX_IMAGE_BYTES", MAX_IMAGE_BYTES)
        self.max_pixels = _limit("CORRMATCH_MAX_IMAGE_PIXELS", MAX_IMAGE_PIXELS)
        self.max_images = _limit("CORRMATCH_MAX_IMAGES", MAX_IMAGES)
        self.turn = threading.Semaphore(_limit("CORRMATCH_MAX_CONCURRENT", MAX_CONCURRENT))
        self.device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
        self.processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=True)
        model = AutoModelForSemanticSegmentation.from_pretrained(path, trust_remote_code=True)
        self.model = model.to(self.device).eval()

    def __call__(self, data):
        """The classes of one or several images.

        Args:
            data: {"inputs": an image, "parameters": {...} or nothing}. An image is a PIL image, the bytes of an
                image file, those in base64 (also as a data: URL), or {"image": any of these}; a list of images
                gives a list of results. Photos are turned upright by their EXIF orientation. Parameters:
                "threshold", 0 to 1, drops classes with a lower score; "subtask" can only be "semantic".

        Returns:
            A list, in the order of the class ids, with a dict for every class that is predicted for any pixel:
            "label": its name; "score": its mean probability over those pixels; "mask": a gray PNG in base64 of the
            size of the (upright) image, 255 for those pixels and 0 elsewhere.

        Raises:
            ValueError: no image, too many, an unreadable or too large one, an unknown parameter, or outputs of the
                model that are not finite. The message is meant for the client.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('The request has no "inputs": send an image there, as base64 text.')
        threshold = _threshold(data.get("parameters"))
        inputs = data["inputs"]
        if not isinstance(inputs, list):
            return self._answer(inputs, "inputs", threshold)
        if not inputs:
            raise ValueError('"inputs" is an empty list: send at least one image.')
        if len(inputs) > self.max_images:
            raise ValueError(
                f'"inputs" contains {len(inputs):,} images: at most {self.max_images:,} are allowed; '
                "send more requests."
            )
        return [self._answer(each, f"inputs[{i}]", threshold) for i, each in enumerate(inputs)]

    def _answer(self, value, place, threshold):
        """One image in any form -> list of {label, score, mask}, after waiting for its turn."""
        with self.turn:
            return self._segment(self._read(value, place), place, threshold)

    @torch.inference_mode()
    def _segment(self, image, place, threshold):
        """PIL image -> list of {label, score, mask}."""
        pixel_values = self.processor(images=image, return_tensors="pt")["pixel_values"]
        logits = self.model(pixel_values.to(self.device, self.model.dtype)).logits.float()
        size = (image.height, image.width)
        if logits.shape[-2:] != size:  # the processor resizes
            logits = interpolate(logits, size=size, mode="bilinear", align_corners=True)
        highest, class_ids = logits[0].max(dim=0)
        if not highest.isfinite().all():
            raise ValueError(
                f'The model\'s outputs for "{place}" are not finite: its weights are corrupt, or the '
                "precision is too low."
            )
        probability = (highest - logits[0].logsumexp(dim=0)).exp()
        class_ids, probability = (
            class_ids.cpu(),
            probability.cpu().double(),
        )  # Apple's GPU has no double precision
        pixels = torch.bincount(class_ids.flatten(), minlength=logits.shape[1])
        total = torch.bincount(class_ids.flatten(), weights=probability.flatten(), minlength=logits.shape[1])
        found = []
        for class_id in pixels.nonzero().flatten().tolist():
            score = min((total[class_id] / pixels[class_id]).item(), 1.0)
            if score >= threshold:
                mask = Image.fromarray(((class_ids == class_id) * 255).to(torch.uint8).numpy())
                label = self.model.config.id2label[class_id]
                found.append({"label": label, "score": score, "mask": _png_base64(mask)})
        return found

    def _read(self, value, place):
        """One image in any form -> upright PIL image."""
        if isinstance(value, dict):
            if list(value) != ["image"]:
                raise ValueError(
                    f'"{place}" has the keys {sorted(map(str, value))}: an object must be {{"image": ...}}.'
                )
            value = value["image"]
        if isinstance(value, str):
            value = self._decode_text(value, place)
        if isinstance(value, bytes | bytearray | memoryview):
            if len(value) > self.max_bytes:
                self._refuse_bytes(place)
            if not value:
                raise ValueError(f'"{place}" is empty: send the bytes of an image file.')
            value = self._open(bytes(value), place)
        if not isinstance(value, Image.Image):
            raise ValueError(
                f'"{place}" is a {type(value).__name__}: send an image as base64 text, or its file as the body of the '
                "request with a content type such as image/jpeg."
            )
        if value.format is not None and value.format not in (*FORMATS, "MPO"):  # opened, not yet decoded
            raise ValueError(f'"{place}" is a {value.format} image: send one of {", ".join(FORMATS)}.')
        if value.width * value.height > self.max_pixels or max(value.size) > MAX_SIDE:
            raise ValueError(
                f'"{place}" has {value.width} x {value.height} pixels: at most {self.max_pixels:,} are allowed, and '
                f"{MAX_SIDE:,} a side; send a smaller image."
            )
        if _tile_pixels(value) > self.max_pixels:
            raise ValueError(
                f'"{place}" is a TIFF image whose tiles are far larger than the image: send a PNG image.'
            )
        try:
            value.load()
            return ImageOps.exif_transpose(value)
        except Exception as error:  # OSError, SyntaxError, struct.error ..., depending on the format
            raise ValueError(f'"{place}" is corrupt or truncated: {_reason(error)}.') from error

    def _decode_text(self, text, place):
        """base64 text or a data: URL -> bytes."""
        if text[:5].lower() == "data:":
            head, _, text = text.partition(",")
            if not head.lower().endswith(";base64"):
                raise ValueError(f'"{place}" is a data: URL without base64: write data:image/png;base64,...')
        text = "".join(text.split())  # command line tools break base64 into lines
        if len(text) > 4 * (self.max_bytes + 2) // 3:
            self._refuse_bytes(place)
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f'"{place}" is not an image in base64 ({_reason(error)}): send the content of the file, since URLs and '
                "paths are not fetched."
            ) from error

    def _open(self, content, place):
        """The bytes of an image file -> PIL image, not yet decoded."""
        try:
            return Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(
                f'"{place}" has too many pixels: at most {self.max_pixels:,} are allowed; send a smaller image.'
            ) from error
        except Exception as error:  # UnidentifiedImageError, or any other error for a corrupt header
            raise ValueError(
                f'"{place}" is not a readable image: send one of {", ".join(FORMATS)}.'
            ) from error

    def _refuse_bytes(self, place):
        raise ValueError(f'"{place}" is larger than {self.max_bytes:,} bytes: send a smaller file.')


def _limit(name, default):
    """A whole number from the environment."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"The environment variable {name} is {text!r}: give a whole number above 0.")
    return int(text)


def _threshold(parameters):
    """Check the parameters of a request; returns the lowest score to report."""
    if parameters is None:
        return 0.0
    if not isinstance(parameters, dict):
        raise ValueError(
            f'"parameters" is a {type(parameters).__name__}: give an object with names and values.'
        )
    given = {name: value for name, value in parameters.items() if value is not None}
    if unknown := sorted(set(given) - {"threshold", "subtask", *NOT_SEMANTIC}):
        raise ValueError(f"Unknown parameter {unknown[0]!r}: there are threshold and subtask.")
    for name in NOT_SEMANTIC:
        if name in given:
            raise ValueError(f"The parameter {name!r} does not apply to semantic segmentation: leave it out.")
    if given.get("subtask", "semantic") != "semantic":
        raise ValueError(f"The subtask {given['subtask']!r} is not supported: it can only be 'semantic'.")
    try:
        threshold = float(given.get("threshold", 0.0))  # numbers in URLs are text
    except (TypeError, ValueError, OverflowError):
        threshold = None
    if threshold is None or not 0 <= threshold <= 1:
        raise ValueError(f"The parameter 'threshold' is {given['threshold']!r}: give a number from 0 to 1.")
    return threshold


def _tile_pixels(image):
    """Pixels of a tile of a TIFF file; tiles are always decoded as a whole."""
    tags = getattr(image, "tag_v2", None) or {}
    sides = (tags.get(name, 0) for name in (322, 323))  # TileWidth, TileLength
    return math.prod(side if isinstance(side, int) else 0 for side in sides)


def _png_base64(mask):
    stream = io.BytesIO()
    mask.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _reason(error):
    return str(error).strip().rstrip(".") or type(error).__name__

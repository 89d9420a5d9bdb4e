"""Photos without what cameras and programs wrote into them: EXIF with the place, XMP, IPTC, comments, thumbnails.

JPEG, PNG and WebP lose these parts of the file, and the compressed pixels stay as they are, byte for byte. An EXIF
orientation is kept, in a block with that tag alone, so that the photo is still shown upright. TIFF is written again
without loss, upright. Other formats become PNG, upright, but only where they hold such data.
"""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..data.images import FORMATS, open_picture

# Marker of the next segment, behind entropy-coded data, in which FF is followed by 00 or a restart marker.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PNG_START = b"\x89PNG\r\n\x1a\n"
# The parts that decoding and colours need. Others may hold anything: text, EXIF, or content credentials (caBX).
_PNG_KEPT = {
    b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"mDCV", b"mDCv", b"cLLI",
    b"cLLi", b"sBIT", b"bKGD", b"pHYs", b"hIST", b"acTL", b"fcTL", b"fdAT",
}  # fmt: skip
_WEBP_KEPT = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"ANIM", b"ANMF"}
# The tags that describe how a TIFF's pixels are stored; others tell of camera, program, person or place.
_TIFF_TAGS = {
    254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 296, 297, 317, 318, 319,
    320, 322, 323, 324, 325, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532, 34675,
}  # fmt: skip


def without_metadata(path: str | Path) -> tuple[bytes, str] | None:
    """The content of a picture's file without metadata, and the suffix to add to its name; None if it has none.

    Raises:
        InputError: the picture cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        stripped = _stripped(content)
    except (ValueError, IndexError, struct.error):  # not as the format says, though PIL may read it
        stripped = None
    if stripped == content:
        return None
    original = open_picture({"path": None, "bytes": content}, str(path))
    if stripped is not None:
        try:
            if _equal(original, open_picture({"path": None, "bytes": stripped}, str(path))):
                return stripped, ""
        except ValueError:
            pass
    return _encoded(original, content)


def _stripped(content: bytes) -> bytes | None:
    """The file without the parts that hold metadata; None for formats that have to be written again."""
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    if content.startswith(_PNG_START):
        return _png(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    with _opened(content) as picture:
        if picture.format == "TIFF":
            return None if {*picture.getexif()} - _TIFF_TAGS else content
        return None if len(picture.getexif()) or {"exif", "xmp", "comment"} & {*picture.info} else content


def _opened(content: bytes) -> Image.Image:
    Image.init()
    return Image.open(BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])


def _orientation(content: bytes) -> int:
    with _opened(content) as picture:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 < value <= 8 else 1


def _exif(orientation: int) -> bytes:
    """An EXIF block with the orientation alone."""
    return b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)


def _jpeg(content: bytes) -> bytes:
    """Only the first picture of the file, with the segments that decoding needs and the colour profile."""
    parts, place = [content[:2]], 2
    orientation = _orientation(content)
    if orientation > 1:
        block = b"Exif\0\0" + _exif(orientation)
        parts.append(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block)
    while True:
        while content[place] == 0xFF and content[place + 1] == 0xFF:  # padding
            place += 1
        if content[place] != 0xFF:
            raise ValueError("no marker")
        marker = content[place + 1]
        if marker == 0xD9:
            return b"".join([*parts, content[place : place + 2]])
        end = place + 2 + struct.unpack_from(">H", content, place + 2)[0]
        if end > len(content):
            raise ValueError("cut off")
        segment = content[place:end]
        if marker == 0xDA:  # the pixels, up to the next marker
            found = _NEXT_MARKER.search(content, end)
            if found is None:
                raise ValueError("no end")
            end = found.start()
            segment = content[place:end]
        if _is_needed(marker, segment[4:]):
            parts.append(segment)
        place = end


def _is_needed(marker: int, data: bytes) -> bool:
    if marker == 0xFE:  # a comment
        return False
    if not 0xE0 <= marker <= 0xEF:
        return True
    kept = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
    return marker in kept and data.startswith(kept[marker])


def _png(content: bytes) -> bytes:
    parts, place = [_PNG_START], len(_PNG_START)
    orientation = _orientation(content)
    while True:
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 12 + length
        if end > len(content):
            raise ValueError("cut off")
        if kind == b"IEND":
            return b"".join([*parts, content[place:end]])
        if kind == b"IDAT" and orientation > 1:
            block = b"eXIf" + _exif(orientation)
            parts.append(struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block)))
            orientation = 1
        if kind in _PNG_KEPT:
            parts.append(content[place:end])
        place = end


def _webp(content: bytes) -> bytes:
    chunks, place, end = [], 12, 8 + struct.unpack_from("<I", content, 4)[0]
    if end > len(content):
        raise ValueError("cut off")
    orientation = _orientation(content)
    while place < end:
        kind, length = struct.unpack_from("<4sI", content, place)
        data = content[place + 8 : place + 8 + length]
        if kind == b"VP8X":  # its flags tell which other chunks there are
            data = bytes([data[0] & ~0x0C | (0x08 if orientation > 1 else 0)]) + data[1:]
        if kind in _WEBP_KEPT:
            chunks.append((kind, data))
        place += 8 + length + length % 2
    if orientation > 1:
        chunks.append((b"EXIF", _exif(orientation)))
    body = b"".join(
        struct.pack("<4sI", kind, len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _equal(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures are shown with the same pixels."""
    return (
        one.mode == other.mode
        and one.size == other.size
        and np.array_equal(np.asarray(one), np.asarray(other))
    )


def _encoded(picture: Image.Image, content: bytes) -> tuple[bytes, str]:
    """The upright picture, written again without loss."""
    with _opened(content) as opened:
        tiff = opened.format == "TIFF"
    plain = ImageOps.exif_transpose(picture.copy())
    kept = {name: picture.info[name] for name in ("transparency", "icc_profile") if name in picture.info}
    plain.info = {}
    stream = BytesIO()
    if tiff:
        plain.save(stream, "TIFF", compression="tiff_deflate", icc_profile=kept.get("icc_profile"))
        return stream.getvalue(), ""
    if plain.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        plain = plain.convert("RGB")
    plain.save(stream, "PNG", **kept)
    return stream.getvalue(), ".png"

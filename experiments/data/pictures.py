"""Pictures in the formats that Pillow reads, and only as far as nothing is lost.

The formats are listed, because Pillow would start other programs for some that are not
(ghostscript for EPS), whatever a file is called. Sizes are checked in the header.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 2**26  # of an image: 268 MB as Pillow holds it
MAX_SIDE = 2**15  # resizing takes memory that grows with the longer side alone

_GREY = ("1", "L", "LA")
_EIGHT_BITS = (*_GREY, "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B")  # one channel; of more, Pillow keeps 8 bits
_PNG_DEPTH = 24  # the byte of a PNG that says how many bits a channel has
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_ORIENTATION = ExifTags.Base.Orientation


class Header(NamedTuple):
    """What a file says of its image: `(width, height)`, and whether it is grey."""

    size: tuple[int, int]
    grey: bool


def header(file: BinaryIO) -> Header:
    """Returns the header of an image, upright, without decoding it.

    Raises:
      ValueError: what would be lost or is too large, in one line without the name of
        the file. Pillow's own exceptions, of any kind, if it is damaged.
    """
    with _opened(file) as image:
        _check_kept(image, file)
        return Header(_upright_size(image), image.mode in (*_GREY, *_SIXTEEN_BITS))


def upright(file: BinaryIO, channels: int) -> np.ndarray:
    """Decodes an image, turned as its EXIF orientation says.

    Args:
      file: its bytes.
      channels: 1 for grey, 3 for RGB. Transparency is dropped.

    Returns:
      `[H, W, channels]`: uint8, or of 16 bits float32 in [0, 1], its levels / 65535.

    Raises:
      As `header`.
    """
    with _opened(file) as image:
        _check_kept(image, file)
        white_is_zero = (
            isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
        )
        turned = ImageOps.exif_transpose(image)
        if turned.mode not in _SIXTEEN_BITS:
            return _eight_bits(turned, channels)
    levels = np.asarray(turned).astype(np.float32) / np.float32(65535)
    # Pillow sees to that itself, but not where there are 16 bits.
    levels = 1 - levels if white_is_zero else levels
    return np.repeat(levels[..., None], channels, axis=-1)


def decode(file: str | BinaryIO, channels: int) -> np.ndarray:
    """Decodes an image of a data set to uint8 `[H, W, channels]`, as it was stored.

    Raises:
      ValueError: if it is too large. Pillow's own exceptions, of any kind, if it is
        damaged.
    """
    with _opened(file) as image:
        return _eight_bits(image, channels)


@contextlib.contextmanager
def _opened(file: str | BinaryIO) -> Iterator[Image.Image]:
    bombs = Image.DecompressionBombWarning, Image.DecompressionBombError
    with warnings.catch_warnings():
        # Of broken metadata Pillow warns, in lines of its own, and goes on without.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                check_size(image.size)
                yield image
        except bombs:
            raise ValueError(f"has more than {MAX_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            raise ValueError(f"not one of {', '.join(FORMATS)}") from None


def check_size(size: tuple[int, int]) -> None:
    """Raises a ValueError on an image that would take too much memory."""
    if size[0] * size[1] > MAX_PIXELS or max(size) > MAX_SIDE:
        raise ValueError(
            f"has {size[0]:,} x {size[1]:,} pixels, expected at most {MAX_PIXELS:,}, "
            f"and {MAX_SIDE:,} a side"
        )


def _check_kept(image: Image.Image, file: BinaryIO) -> None:
    """Raises a ValueError where decoding would lose bits, or pages after the first."""
    # What a telephone adds to its JPEG (MPO) are other views of the same.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError("holds several pages or frames: save each as a file")
    depth = _depth(image, file)
    modes = {16: _SIXTEEN_BITS}.get(depth, _EIGHT_BITS if depth <= 8 else ())
    if image.mode not in modes:
        raise ValueError(
            f"has {depth} bits a channel (mode {image.mode}), expected 8 bits, or 16 "
            "of grey without transparency: convert it"
        )


def _depth(image: Image.Image, file: BinaryIO) -> int:
    """Returns bits a channel as they are in the file, which modes do not tell."""
    if image.format == "PNG":
        there = file.tell()
        file.seek(_PNG_DEPTH)
        depth = file.read(1)[0]
        file.seek(there)
        return depth
    if isinstance(image, TiffImageFile):
        if set(image.tag_v2.get(_SAMPLE_FORMAT, (1,))) - {1, 4}:
            raise ValueError("has signed or floating point pixels: convert it")
        return max(image.tag_v2.get(_BITS, (1,)))
    return 8


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if isinstance(image, TiffImageFile):  # Pillow turns these itself
        return width, height
    # Not the method of PNG files, which decodes all pixels to look behind them.
    orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def _eight_bits(image: Image.Image, channels: int) -> np.ndarray:
    image.load()
    image.info.pop("transparency", None)  # Pillow would warn that it is dropped
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)

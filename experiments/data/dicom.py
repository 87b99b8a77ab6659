"""DICOM files, as scanners and hospitals write them, by pydicom: `invertjax[dicom]`.

A grey image becomes what a viewer shows first: stored values by rescale slope and
intercept, then the file's first window (NEMA PS3.3 C.11.2) to [0, 1], clipped.
Without a window the whole range of values that the file's bits can hold goes to [0, 1],
so that equal values in files of one scanner are equal pixels. MONOCHROME1 is inverted:
0 is black. Colour has 8 bits a channel. VOI tables, overlays and padding are ignored.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from experiments.data.pictures import Header, check_size

SUFFIXES = (".dcm", ".dicom", ".ima")
_PREAMBLE, _MAGIC = 128, b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"  # all of it has to be in memory to read any
_GREY = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(file: BinaryIO) -> bool:
    """Returns whether a file says that it is one: many have no suffix."""
    return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC


def header(file: BinaryIO) -> Header:
    """Returns the header of an image.

    Raises:
      ValueError: what is not there or cannot be read, in one line without the name of
        the file. pydicom's own exceptions, of any kind, if it is damaged.
    """
    with _quiet():
        found = _read(file, stop_before_pixels=True)
        return Header((found.Columns, found.Rows), _is_grey(found))


def pixels(file: BinaryIO, channels: int) -> np.ndarray:
    """Decodes an image.

    Args:
      file: its bytes.
      channels: 1 for grey, 3 for RGB; grey images have either.

    Returns:
      `[H, W, channels]`: float32 in [0, 1] of grey, uint8 of colour.

    Raises:
      As `header`.
    """
    with _quiet():
        found = _read(file, stop_before_pixels=False)
        stored = found.pixel_array
        if not _is_grey(found):
            return stored
        levels = _shown(found, stored.astype(np.float64))
    if found.PhotometricInterpretation == "MONOCHROME1":
        levels = 1 - levels
    return np.repeat(levels.astype(np.float32)[..., None], channels, axis=-1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of what it repairs
        yield


def _read(file: BinaryIO, *, stop_before_pixels: bool) -> Any:
    """Returns the data set of a file, which holds an image that can be read."""
    try:  # here, because few have such files
        import pydicom  # pyright: ignore[reportMissingImports]
        from pydicom.filereader import (  # pyright: ignore[reportMissingImports]
            read_file_meta_info,
        )
    except ImportError:
        raise ValueError(
            "a DICOM file, which needs pydicom: pip install 'invertjax[dicom]'"
        ) from None
    meta = read_file_meta_info(file.name)
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        raise ValueError("is deflated as a whole: convert it")
    found = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)
    if "Rows" not in found or "BitsStored" not in found:
        raise ValueError("holds no image of whole numbers")
    check_size((found.Columns, found.Rows))
    if int(found.get("NumberOfFrames") or 1) > 1:
        raise ValueError("holds several frames: save each as a file")
    if "ModalityLUTSequence" in found:
        raise ValueError("has a table of values (ModalityLUTSequence): convert it")
    if not _is_grey(found) and not _is_colour(found):
        raise ValueError(
            f"has {found.BitsAllocated} bits a channel and is of the kind "
            f"{found.PhotometricInterpretation}: convert it"
        )
    return found


def _is_grey(found: Any) -> bool:
    return found.PhotometricInterpretation in _GREY and found.SamplesPerPixel == 1


def _is_colour(found: Any) -> bool:
    kind = found.PhotometricInterpretation
    known = kind == "RGB" or kind.startswith("YBR_")  # pydicom makes the others RGB
    return known and found.SamplesPerPixel == 3 and found.BitsAllocated == 8


def _shown(found: Any, stored: np.ndarray) -> np.ndarray:
    """Returns stored values as levels in [0, 1]."""
    slope = float(found.get("RescaleSlope", 1))
    intercept = float(found.get("RescaleIntercept", 0))
    values = stored * slope + intercept
    center, width = _first(found, "WindowCenter"), _first(found, "WindowWidth")
    if center is None or width is None:
        bits, signed = int(found.BitsStored), int(found.PixelRepresentation)
        ends = np.array([0, 2**bits - 1]) - signed * 2 ** (bits - 1)
        low, high = np.sort(ends * slope + intercept)
        _require("RescaleSlope", slope, high > low)
        return np.clip((values - low) / (high - low), 0, 1)
    kind = found.get("VOILUTFunction") or "LINEAR"
    if kind == "SIGMOID":
        _require("WindowWidth", width, width > 0)
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if kind == "LINEAR":  # the standard's own: of pixels, not of points
        _require("WindowWidth", width, width >= 1)
        center, width = center - 0.5, max(width - 1, 1e-9)
    _require("WindowWidth", width, width > 0)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _first(found: Any, name: str) -> float | None:
    """Returns the first of the numbers under a name; None if there is none."""
    values = np.atleast_1d(np.asarray(found.get(name, ()), object))
    numbers = [float(value) for value in values if value is not None]
    return numbers[0] if numbers else None


def _require(name: str, value: float, holds: bool) -> None:
    if not holds or not np.isfinite(value):
        raise ValueError(f"has no usable {name}: {value}")

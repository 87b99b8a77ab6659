"""One image file of a user: of which kind it is, its header and its pixels.

Whatever is wrong with it is one line that names it, since libraries that read others'
bytes raise exceptions of every kind.
"""

import contextlib
import enum
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from experiments.data import dicom, pictures

KINDS = "PNG, JPEG, WebP, TIFF, BMP or DICOM"
# What systems and archives leave in folders, beside files that begin with a dot.
IGNORED = ("thumbs.db", "desktop.ini", "dicomdir", "__macosx")


class Kind(enum.Enum):
    """Who reads it."""

    PICTURE = enum.auto()
    DICOM = enum.auto()


class File(NamedTuple):
    """An image file that is there, by its name."""

    path: pathlib.Path
    kind: Kind


def is_ignored(path: pathlib.Path) -> bool:
    """Returns whether a name is hidden, or one that nobody has given."""
    return path.name.startswith(".") or path.name.lower() in IGNORED


def file(path: pathlib.Path) -> File:
    """Returns a file by its suffix, or if that says nothing by its first bytes.

    Raises:
      ValueError: if it is none of `KINDS`, or not even a regular file.
    """
    with _named(path):
        # Opening anything else may wait for ever.
        if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        suffix = path.suffix.lower()
        if suffix in pictures.SUFFIXES:
            return File(path, Kind.PICTURE)
        if suffix in dicom.SUFFIXES:
            return File(path, Kind.DICOM)
        with path.open("rb") as content:
            if dicom.is_dicom(content):
                return File(path, Kind.DICOM)
        raise ValueError(f"expected nothing but images ({KINDS}) in folder:PATH")


def header(of: File) -> pictures.Header:
    """Returns the header of an image, upright, without decoding it.

    Raises:
      ValueError: that names the file, and what of it cannot be read or would be lost.
    """
    with _opened(of.path) as content:
        if of.kind is Kind.DICOM:
            return dicom.header(content)
        return pictures.header(content)


def pixels(of: File, channels: int) -> np.ndarray:
    """Decodes an image, upright.

    Args:
      of: the file.
      channels: 1 for grey, 3 for RGB.

    Returns:
      `[H, W, channels]`, uint8, or float32 in [0, 1] where 8 bits do not hold it.

    Raises:
      ValueError: as `header`.
    """
    with _opened(of.path) as content:
        if of.kind is Kind.DICOM:
            return dicom.pixels(content, channels)
        return pictures.upright(content, channels)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[BinaryIO]:
    with _named(path), path.open("rb") as content:
        yield content


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"Cannot read {str(path)!r}: {reason.rstrip('.')}.") from error

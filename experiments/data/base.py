"""What every source of images shares: the record, the source, pixels and splits."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

# Pillow reports damaged files by different exceptions, depending on the format.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

_SPLIT = re.compile(r"([A-Za-z][\w.-]*)(?:\[(-?\d*):(-?\d*)\])?")


class Dataset(NamedTuple):
    """One split of a data set, in memory.

    images: `[N, H, W, C]` float32 in [0, 1]; labels: `[N]` int32, positions in
    class_names; name, split: as they were asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    split: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class Source(NamedTuple):
    """A split that is known to exist but not yet read.

    size: images in it; read: positions -> pairs of uint8 `[H, W, C]` and label;
    image_size: side in pixels to resize to by default, None to leave as is.
    """

    size: int
    class_names: tuple[str, ...]
    read: Callable[[Iterable[int]], Iterator[tuple[np.ndarray, int]]]
    image_size: int | None = None


class Selection(NamedTuple):
    """`test[4:8]`, taken apart."""

    split: str
    slice: slice


def select(split: str) -> Selection:
    """Parses `name` or `name[start:stop]`; start and stop are whole numbers."""
    match = _SPLIT.fullmatch(split)
    if not match:
        raise ValueError(
            f"Expected split={split!r} to be a name with an optional slice of whole "
            "numbers, such as 'test' or 'test[4:8]'."
        )
    start, stop = (int(text) if text else None for text in match.groups()[1:])
    return Selection(match[1], slice(start, stop))


def require_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Raises a ValueError that lists the splits unless `split` is one of them."""
    splits = tuple(splits)
    if split not in splits:
        raise ValueError(
            f"Unknown split {split!r} of {name!r}: expected {' or '.join(splits)}."
        )


def decode(file: str | BinaryIO, channels: int) -> np.ndarray:
    """Decodes a PNG or JPEG to uint8 `[H, W, channels]`, 1 for grey, 3 for RGB.

    Raises:
      One of DAMAGED: not an image, or cut short.
    """
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes uint8 `[H, W, C]` to `[side, side, C]`, anti-aliased; exact if equal."""
    if image.shape[:2] == (side, side):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))
    return small.reshape(side, side, image.shape[-1])

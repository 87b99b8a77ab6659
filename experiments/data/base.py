"""What every source of images shares: the record, the source, pixels and splits."""

import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

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

    size: images in it; read: positions -> pairs of an image `[H, W, C]` and its label,
    where pixels are uint8, or float32 in [0, 1] if 8 bits do not hold them;
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


def located(path: str) -> pathlib.Path:
    """Returns a path, with `~` replaced by the home directory where there is one."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:  # of a user that is not there
        return pathlib.Path(path)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes `[H, W, C]` to `[side, side, C]`, anti-aliased; exact if equal.

    Its pixels are uint8, or float32 in [0, 1], and stay so.
    """
    if image.shape[:2] == (side, side):
        return image
    if image.dtype == np.uint8:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        return _lanczos(picture, side).reshape(side, side, image.shape[-1])
    planes = [
        _lanczos(Image.fromarray(image[..., channel]), side)
        for channel in range(image.shape[-1])
    ]
    return np.clip(np.stack(planes, axis=-1), 0, 1)  # the filter overshoots


def _lanczos(picture: Image.Image, side: int) -> np.ndarray:
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))


def shared(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns which images are among others too, pixel for pixel.

    Args:
      images: `[N, H, W, C]` float32.
      others: `[M, H, W, C]` float32.

    Returns:
      `[N]` bool.
    """
    if images.shape[1:] != others.shape[1:]:
        return np.zeros(len(images), bool)
    # Sums are exact and cheap: few images are left to be compared as a whole.
    sums, of_others = _sums(images), _sums(others)
    seen = {image.tobytes() for image in others[np.isin(of_others, sums)]}
    alike = np.isin(sums, of_others)
    alike[alike] = [image.tobytes() in seen for image in images[alike]]
    return alike


def _sums(images: np.ndarray) -> np.ndarray:
    """Returns `[N]` uint64, sums of the pixels' bits, equal for equal images."""
    bits = np.ascontiguousarray(images, np.float32).view(np.uint32)
    return bits.sum(axis=(1, 2, 3), dtype=np.uint64)

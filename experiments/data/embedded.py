"""Real images that ship inside scikit-image's wheel: always there, never downloaded.

The files are opened directly. `skimage.data`'s own functions would fetch a file that
is missing from the wheel.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.data.base import Source, require_split
from experiments.data.pictures import decode


class Box(NamedTuple):
    """A square of a photograph, in pixels."""

    top: int
    left: int
    side: int


class Photo(NamedTuple):
    """One photograph: its class, its file, its two hand-picked crops, its usable part.

    targets: the recognisable crops, best first; inside: `[top, left, bottom, right]`
    from which training crops come, None for all.
    """

    name: str
    file: str
    targets: tuple[Box, Box]
    inside: tuple[int, int, int, int] | None = None


PHOTOS = (
    Photo("astronaut", "astronaut.png", (Box(10, 140, 170), Box(330, 270, 180))),
    Photo("cat", "chelsea.png", (Box(55, 130, 230), Box(75, 115, 120))),
    Photo("coffee", "coffee.png", (Box(10, 120, 330), Box(180, 280, 160))),
    Photo("rocket", "rocket.jpg", (Box(130, 250, 140), Box(245, 235, 180))),
    Photo(
        "motorcycle",
        "motorcycle_left.png",
        (Box(160, 90, 330), Box(60, 480, 160)),
    ),
    Photo(
        "retina",
        "retina.jpg",
        (Box(430, 80, 450), Box(450, 500, 450)),
        inside=(205, 205, 1205, 1205),  # the square inside the black surround
    ),
    Photo("tissue", "ihc.png", (Box(300, 220, 200), Box(0, 0, 220))),
    Photo("galaxies", "hubble_deep_field.jpg", (Box(350, 550, 300), Box(0, 100, 300))),
)

TRAIN_CROPS_PER_PHOTO = 64
_FACES, _TEST_FACES = 100, 25


def photos(split: str) -> Source:
    """Square crops of eight photographs; the class is the photograph.

    Every eight consecutive images hold each class once, so any prefix is balanced.
    `test`: 80 images. The first four are fixed: an astronaut's face, a cat's face, a
    cup of coffee, a rocket. Then the other photographs' first crops, everyone's second,
    and the corners of all of these at three quarters of their size. `train`: 512 crops
    at three scales that share no pixel with any test crop. 32x32 RGB by default.
    """
    require_split("photos", split, ("train", "test"))
    crops_of = _test_boxes if split == "test" else _train_boxes
    boxes = [crops_of(photo) for photo in PHOTOS]
    table = [
        (label, box)
        for turn in zip(*boxes, strict=True)
        for label, box in enumerate(turn)
    ]

    def read(indices: Iterable[int]) -> Iterator[tuple[np.ndarray, int]]:
        for label, (top, left, side) in (table[index] for index in indices):
            picture = _picture(PHOTOS[label].file)
            yield picture[top : top + side, left : left + side], label

    names = tuple(photo.name for photo in PHOTOS)
    return Source(len(table), names, read, image_size=32)


def faces(split: str) -> Source:
    """100 faces and 100 backgrounds of Labeled Faces in the Wild, 25x25 grey.

    Huang, Ramesh, Berg and Learned-Miller (2007), "Labeled Faces in the Wild". Class 0
    is `face`, 1 is `background` (a few show part of a face). `test`: 25 faces, then 25
    backgrounds. `train`: the other 75 of each, in turn. Deviation from the file: its
    float pixels are rounded to 8 bits, so that saved images are exact.
    """
    require_split("faces", split, ("train", "test"))
    test = [*range(_TEST_FACES), *range(_FACES, _FACES + _TEST_FACES)]
    train = [
        row for face in range(_TEST_FACES, _FACES) for row in (face, face + _FACES)
    ]
    rows = test if split == "test" else train

    def read(indices: Iterable[int]) -> Iterator[tuple[np.ndarray, int]]:
        pixels = np.load(_path("lfw_subset.npy"))
        pixels = np.round(pixels * 255).astype(np.uint8)[..., None]
        for row in (rows[index] for index in indices):
            yield pixels[row], int(row >= _FACES)

    return Source(len(rows), ("face", "background"), read)


def _test_boxes(photo: Photo) -> list[Box]:
    return [*photo.targets, *(box for pick in photo.targets for box in _corners(pick))]


def _corners(box: Box) -> list[Box]:
    side = box.side * 3 // 4
    shifts = (0, box.side - side)
    return [Box(box.top + y, box.left + x, side) for y in shifts for x in shifts]


def _train_boxes(photo: Photo) -> list[Box]:
    """Evenly spread among the windows outside the targets, largest windows first."""
    top, left, bottom, right = photo.inside or (0, 0, *_picture(photo.file).shape[:2])
    windows = [
        Box(y, x, side)
        for side in (min(bottom - top, right - left) // part for part in (3, 4, 5))
        for y in range(top, bottom - side + 1, side // 6)
        for x in range(left, right - side + 1, side // 6)
    ]
    free = [w for w in windows if not any(_overlap(w, t) for t in photo.targets)]
    chosen = np.linspace(0, len(free) - 1, TRAIN_CROPS_PER_PHOTO).astype(int)
    # A fixed stride that is coprime to the count mixes scales and positions.
    return [free[chosen[i * 27 % len(chosen)]] for i in range(len(chosen))]


def _overlap(a: Box, b: Box) -> bool:
    return max(a.top, b.top) < min(a.top + a.side, b.top + b.side) and max(
        a.left, b.left
    ) < min(a.left + a.side, b.left + b.side)


@functools.cache
def _picture(file: str) -> np.ndarray:
    try:
        return decode(str(_path(file)), channels=3)
    except Exception as error:  # Pillow's are of any kind
        raise ValueError(f"Cannot read {_path(file)}: {error}.") from error


def _path(file: str) -> pathlib.Path:
    import skimage  # here, because a run on other data does without it

    path = pathlib.Path(skimage.data_dir) / file
    if not path.is_file():
        raise ValueError(
            f"scikit-image lacks its own {path}: reinstall it with `pip install "
            "--force-reinstall scikit-image`."
        )
    return path


# What comes with the installation, by name: `split -> Source`.
SOURCES: dict[str, Callable[[str], Source]] = {"photos": photos, "faces": faces}

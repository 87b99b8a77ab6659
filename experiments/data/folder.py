"""A user's own images: `PATH/class/file.png`, or `PATH/train|test/class/file.png`."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.data.base import DAMAGED, Source, decode, require_split

SUFFIXES = (".png", ".jpg", ".jpeg")
TEST_EVERY = 5
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")  # 16 and 32 bits a channel: "I;16", "I", "F"


class _File(NamedTuple):
    path: pathlib.Path
    label: int


def open_source(path: str, split: str, image_size: int | None) -> Source:
    """Images of class folders; class `k` is the k-th folder name in sorted order.

    Splits: where PATH holds `train` or `test` folders of class folders, these (and
    their siblings) are the splits. Otherwise the first and every fifth image after it
    of each class, sorted by name, are `test` and the others `train`; where every class
    has a single image, so are the first and every fifth class. Order: the first image
    of every class, then the second of every class, and so on. Channels: 1 if every
    file is grey, else 3; transparency is dropped.

    Raises:
      ValueError: missing folder, no class folders, no images, unknown split, a file
        that is no 8-bit image, or different sizes where `image_size` is None.
    """
    root = pathlib.Path(path).expanduser()
    if not path or not root.is_dir():
        raise ValueError(f"No folder {path!r}: expected folder:PATH of class folders.")
    splits, names = _splits(root)
    require_split(f"folder:{path}", split, splits)
    headers = [_header(file.path) for files in splits.values() for file in files]
    sizes = sorted({size for size, _ in headers})
    if image_size is None and len(sizes) > 1:
        raise ValueError(
            f"Images in {path!r} differ in size (width x height, "
            f"{_by(sizes[0])} to {_by(sizes[-1])}): set image_size, such as "
            "image_size=64."
        )
    channels = 1 if all(grey for _, grey in headers) else 3
    files = splits[split]

    def read(indices: Iterable[int]) -> Iterator[tuple[np.ndarray, int]]:
        for file in (files[index] for index in indices):
            yield _decode(file.path, channels), file.label

    return Source(len(files), names, read)


def _splits(root: pathlib.Path) -> tuple[dict[str, list[_File]], tuple[str, ...]]:
    """The files of every split, and the names of the classes of all splits."""
    inside = {folder.name: _classes(folder) for folder in _folders(root)}
    given = {split: classes for split, classes in inside.items() if classes}
    # A class may be called `train`: only a folder of class folders is a split.
    if "train" not in given and "test" not in given:
        given = _own_splits(root)
    names = sorted({name for classes in given.values() for name in classes})
    files = {
        split: _in_turn(
            [
                [_File(path, label) for path in classes.get(name, ())]
                for label, name in enumerate(names)
            ]
        )
        for split, classes in given.items()
    }
    return files, tuple(names)


def _own_splits(root: pathlib.Path) -> dict[str, dict[str, list[pathlib.Path]]]:
    classes = _classes(root)
    if not classes:
        raise ValueError(
            f"No class folders with images in {str(root)!r}: expected "
            f"{root / 'CLASS' / 'IMAGE'}, ending in {', '.join(SUFFIXES)}."
        )
    alone = all(len(paths) == 1 for paths in classes.values())
    train, test = {}, {}
    for label, (name, paths) in enumerate(classes.items()):
        first = label if alone else 0
        for index, path in enumerate(paths, start=first):
            held = train if index % TEST_EVERY else test
            held.setdefault(name, []).append(path)
    return {"train": train, "test": test}


def _in_turn(columns: list[list[_File]]) -> list[_File]:
    turns = itertools.zip_longest(*columns)
    return [file for turn in turns for file in turn if file is not None]


def _classes(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Images by class folder; folders without images are no classes."""
    images = {
        folder.name: sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        )
        for folder in _folders(root)
    }
    return {name: paths for name, paths in images.items() if paths}


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path for path in root.iterdir() if path.is_dir() and path.name[0] != "."
    )


def _header(path: pathlib.Path) -> tuple[tuple[int, int], bool]:
    """(width, height) and whether the file is grey, without decoding it."""
    try:
        with Image.open(path) as image:
            size, mode = image.size, image.mode
    except DAMAGED as error:
        raise ValueError(f"Cannot read {str(path)!r}: not a PNG or JPEG.") from error
    if mode.startswith(_DEEP):
        raise ValueError(f"{str(path)!r} has more than 8 bits a channel: convert it.")
    return size, mode in _GREY


def _decode(path: pathlib.Path, channels: int) -> np.ndarray:
    try:
        return decode(str(path), channels)
    except DAMAGED as error:
        raise ValueError(f"Cannot read {str(path)!r}: {error}.") from error


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"

"""A user's own images: `PATH/class/file.png`, or `PATH/train|test/class/file.png`, or
without labels `PATH/file.png`.

Nothing that is there is passed over: what cannot be an image, or a class, is refused.
"""

import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.data import files
from experiments.data.base import Source, located, require_split

TEST_EVERY = 5
SPLITS = ("train", "test")  # folders whose names say that they are no classes

Classes = dict[str, list[files.File]]


class _Example(NamedTuple):
    file: files.File
    label: int


class _Entries(NamedTuple):
    """What a folder holds, sorted by name, without what nobody has put there."""

    folders: list[pathlib.Path]
    others: list[pathlib.Path]


def open_source(path: str, split: str, image_size: int | None) -> Source:
    """Images of class folders; class `k` is the k-th folder name in sorted order.

    Images in folders within a class folder belong to the class. Without class folders
    all images are of one class, label 0, which has the name of the folder.

    Splits: where PATH holds `train` or `test` folders of class folders (or both, of
    images without labels), these and their siblings are the splits. Otherwise the first
    and every fifth image after it of each class, sorted by name, are `test` and the
    others `train`; where every class has a single image, so are the first and every
    fifth class. Order: the first image of every class, then the second of every class,
    and so on. Channels: 1 if every file is grey, else 3; transparency is dropped. EXIF
    orientation is applied. Grey of 16 bits keeps them; for DICOM see `dicom`.

    Raises:
      ValueError: missing folder, no images, unknown split, classes and images side by
        side, anything that is no image or whose bits would be lost (by its name), or
        different sizes where `image_size` is None.
    """
    root = located(path)
    if not path or not root.is_dir():
        raise ValueError(f"No folder {path!r}: expected folder:PATH of class folders.")
    splits, names = _splits(root)
    require_split(f"folder:{path}", split, splits)
    headers = [files.header(one.file) for held in splits.values() for one in held]
    sizes = sorted({header.size for header in headers})
    if image_size is None and len(sizes) > 1:
        raise ValueError(
            f"Images in {path!r} differ in size (width x height, "
            f"{_by(sizes[0])} to {_by(sizes[-1])}): set image_size, such as "
            "image_size=64."
        )
    channels = 1 if all(header.grey for header in headers) else 3
    held = splits[split]

    def read(indices: Iterable[int]) -> Iterator[tuple[np.ndarray, int]]:
        for one in (held[index] for index in indices):
            yield files.pixels(one.file, channels), one.label

    return Source(len(held), names, read)


def _splits(root: pathlib.Path) -> tuple[dict[str, list[_Example]], tuple[str, ...]]:
    """The examples of every split, and the names of the classes of all splits."""
    given = _given_splits(root) or _own_splits(_classes(root, within_split=False))
    names = sorted({name for classes in given.values() for name in classes})
    for name in names:
        if not any(classes.get(name) for classes in given.values()):
            raise ValueError(
                f"Class folder {name!r} in {str(root)!r} holds no images: expected "
                "some, or no such folder."
            )
    held = {
        split: _in_turn(
            [
                [_Example(file, label) for file in classes.get(name, ())]
                for label, name in enumerate(names)
            ]
        )
        for split, classes in given.items()
    }
    return held, tuple(names)


def _given_splits(root: pathlib.Path) -> dict[str, Classes]:
    """The classes of every split that is a folder; empty where there are none.

    A class may be called `train`, too: it holds images, and not every split is there.
    """
    entries = _entries(root)
    inside = {folder.name: _entries(folder) for folder in entries.folders}
    named = [inside[name] for name in SPLITS if name in inside]
    of_classes = any(one.folders and not one.others for one in named)
    flat = len(named) == len(SPLITS) and all(one.others for one in named)
    if not of_classes and not flat:
        return {}
    _require_none(entries.others, f"nothing beside {', '.join(inside)}")
    for folder in entries.folders:
        folders, others = inside[folder.name]
        if of_classes:
            _require_none(others, "class folders, as other splits have them")
        _require_none(folders if flat else [], "images without class folders")
    return {
        folder.name: {_name(root): _images(folder)}
        if flat
        else _classes(folder, within_split=True)
        for folder in entries.folders
    }


def _own_splits(classes: Classes) -> dict[str, Classes]:
    alone = all(len(images) == 1 for images in classes.values())
    train, test = {}, {}
    for label, (name, images) in enumerate(classes.items()):
        first = label if alone else 0
        for index, image in enumerate(images, start=first):
            held = train if index % TEST_EVERY else test
            held.setdefault(name, []).append(image)
        train.setdefault(name, [])  # a class without images is not lost
    return {"train": train, "test": test}


def _in_turn(columns: list[list[_Example]]) -> list[_Example]:
    turns = itertools.zip_longest(*columns)
    return [one for turn in turns for one in turn if one is not None]


def _classes(folder: pathlib.Path, *, within_split: bool) -> Classes:
    """Images by class folder, or of one class where there are no folders."""
    entries = _entries(folder)
    if entries.others and not entries.folders and not within_split:
        return {_name(folder): _images(folder)}
    _require_none(entries.others, "nothing beside class folders")
    found = {one.name: _images(one) for one in entries.folders}
    if not any(found.values()):
        raise ValueError(
            f"No class folders with images in {str(folder)!r}: expected "
            f"{folder / 'CLASS' / 'IMAGE'}, of {files.KINDS}."
        )
    if not within_split and not any(_entries(one).others for one in entries.folders):
        raise ValueError(
            f"All images in {str(folder)!r} are in folders within folders, which may "
            f"be classes within splits: expected {folder / 'CLASS' / 'IMAGE'}, or "
            f"{folder / SPLITS[0] / 'CLASS'} and {folder / SPLITS[1] / 'CLASS'}."
        )
    return found


def _images(folder: pathlib.Path) -> list[files.File]:
    """All images in a folder and below, sorted by path."""
    found, left = [], [folder]
    while left:
        entries = _entries(left.pop())
        for one in entries.folders:
            if one.is_symlink():  # it may lead back up
                raise ValueError(f"{str(one)!r} is a link: expected a folder.")
        left += entries.folders
        found += [files.file(path) for path in entries.others]
    return sorted(found, key=lambda image: image.path)


def _entries(folder: pathlib.Path) -> _Entries:
    try:
        found = sorted(one for one in folder.iterdir() if not files.is_ignored(one))
    except OSError as error:
        raise ValueError(f"Cannot read {str(folder)!r}: {error.strerror}.") from None
    folders = [one for one in found if one.is_dir()]
    return _Entries(folders, [one for one in found if not one.is_dir()])


def _require_none(paths: list[pathlib.Path], expected: str) -> None:
    if paths:
        raise ValueError(f"{str(paths[0])!r} would be left out: expected {expected}.")


def _name(folder: pathlib.Path) -> str:
    return folder.resolve().name or "all"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"

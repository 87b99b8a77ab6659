"""The description files of a prepared TFDS data set, checked entry by entry.

A file that is cut short, or of another form, is one line that names it.
"""

import json
import pathlib
from typing import Any, NamedTuple

from experiments.data import pictures

INFO, FEATURES, LABELS = "dataset_info.json", "features.json", "label.labels.txt"
MAX_CLASSES = 1_000_000
_MAX_RECORDS = 2**40


class Info(NamedTuple):
    """What `dataset_info.json` says: the format of the records, and how many each file
    of each split holds."""

    format: str
    splits: dict[str, list[int]]


class Features(NamedTuple):
    """What `features.json` says: the shape of an image, None where it varies, and the
    number of classes."""

    shape: tuple[int | None, int | None, int | None]
    classes: int


def info(folder: pathlib.Path) -> Info:
    """Reads `dataset_info.json`.

    Raises:
      ValueError: that names the file, where it is damaged.
    """
    file = folder / INFO
    found = _json(file)
    splits: dict[str, list[int]] = {}
    for part in _entry(file, found, "splits", list):
        lengths = _entry(file, part, "shardLengths", list, [])
        splits[_plain(_entry(file, part, "name", str))] = [
            _number(file, length, 0, _MAX_RECORDS) for length in lengths
        ]
    return Info(_plain(_entry(file, found, "fileFormat", str, "tfrecord")), splits)


def features(name: str, folder: pathlib.Path) -> Features:
    """Reads `features.json`, where it is there.

    Raises:
      ValueError: that names the file where it is damaged; or `name`, where it has no
        8-bit image or no class label.
    """
    file = folder / FEATURES
    described = _json(file) if file.is_file() else {}
    inside = _entry(file, described, "featuresDict", dict, {})
    found = _entry(file, inside, "features", dict, {})
    image = _entry(file, _entry(file, found, "image", dict, {}), "image", dict, {})
    label = _entry(file, _entry(file, found, "label", dict, {}), "classLabel", dict, {})
    if not image or not label or image.get("dtype", "uint8") != "uint8":
        listed = ", ".join(map(_plain, sorted(found)))
        raise ValueError(
            f"{name!r} has no 8-bit image with a class label: expected features "
            f"'image' and 'label', found {listed or 'none'}."
        )
    sides = _entry(file, _entry(file, image, "shape", dict), "dimensions", list)
    shape = [_number(file, side, -1, pictures.MAX_SIDE) for side in sides]
    if len(shape) != 3 or shape[2] not in (-1, 0, 1, 3):
        raise _damaged(file, f"dimensions {shape}, not those of a grey or RGB image")
    height, width, channels = (side if side > 0 else None for side in shape)
    count = _entry(file, label, "numClasses", object)
    classes = _number(file, count, 1, MAX_CLASSES)
    return Features((height, width, channels), classes)


def class_names(folder: pathlib.Path, classes: int) -> tuple[str, ...]:
    """Returns the names of the classes; their numbers where there are no names.

    Raises:
      ValueError: that names the file, where it cannot be read.
    """
    file = folder / LABELS
    names = _text(file).split("\n") if file.is_file() else []
    names = tuple(name for name in names if name)
    return names if len(names) == classes else tuple(map(str, range(classes)))


def _json(file: pathlib.Path) -> Any:
    text = _text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, " ".join(str(error).split())) from error


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise _damaged(file, " ".join(str(error).split())) from error


def _entry(
    file: pathlib.Path, of: Any, name: str, kind: type, default: Any = None
) -> Any:
    """Returns an entry of an object, and refuses those of another kind."""
    if not isinstance(of, dict):
        raise _damaged(file, f"{_shown(of)} in place of an object with {name!r}")
    found = of.get(name, default)
    if found is None or not isinstance(found, kind):
        raise _damaged(file, f"{name!r} is {_shown(found)}")
    return found


def _number(file: pathlib.Path, text: Any, low: int, high: int) -> int:
    """Returns a whole number, which these files write as text."""
    try:
        number = int(text) if isinstance(text, str | int) else None
    except ValueError:
        number = None
    if number is None or not low <= number <= high:
        raise _damaged(
            file, f"{_shown(text)} in place of a number from {low} to {high}"
        )
    return number


def _plain(text: str) -> str:
    """Returns text that a message may hold: one line, nothing that moves a cursor."""
    return ascii(text)[1:-1]


def _shown(found: Any) -> str:
    return ascii(found)[:60]


def _damaged(file: pathlib.Path, reason: str) -> ValueError:
    return ValueError(f"Cannot read {str(file)!r}: {reason}.")

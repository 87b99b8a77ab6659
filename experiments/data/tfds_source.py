"""TensorFlow Datasets that are already on disk, read without TensorFlow or a network.

Everything is checked against the files first, because TFDS answers a data set that is
not there with a download, and one in TensorFlow's format with a traceback.
"""

import difflib
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import numpy as np

from experiments.data import tfds_metadata
from experiments.data.base import Source, located, require_split
from experiments.data.embedded import SOURCES
from experiments.data.pictures import decode
from experiments.data.tfds_metadata import Info

OWN_NAMES = (*SOURCES, "folder:PATH")
_NAME = re.compile(r"(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CHUNK = 256


def open_source(
    name: str, split: str, data_dir: str | None, image_size: int | None
) -> Source:
    """The images and labels of `name[/config][:version]`; the newest version if free.

    Raises:
      ValueError: unknown name, not prepared, prepared for TensorFlow only,
        incomplete, unknown split, no 8-bit `image` or no class `label`, or images of
        different sizes where `image_size` is None.
    """
    root = _root(data_dir)
    folder = _find(name, root)
    info = tfds_metadata.info(folder)
    _require_array_record(name, root, folder, info)
    splits = info.splits
    require_split(name, split, splits)
    shards = list(folder.glob(f"*-{split}.array_record*"))
    if len(shards) != len(splits[split]):
        raise ValueError(
            f"{name!r} is incomplete: {folder} holds {len(shards)} of "
            f"{len(splits[split])} files of split {split!r}. Delete that folder, then: "
            f"{_command(name, root)}"
        )
    shape, classes = tfds_metadata.features(name, folder)
    names = tfds_metadata.class_names(folder, classes)
    if image_size is None and None in shape:
        raise ValueError(
            f"Images of {name!r} differ in size: set image_size, such as image_size=64."
        )
    read = _reader(name, root, folder, split, channels=shape[-1] or 3)
    return Source(sum(splits[split]), names, read)


def _reader(
    name: str, root: pathlib.Path, folder: pathlib.Path, split: str, channels: int
) -> Callable[[Iterable[int]], Iterator[tuple[np.ndarray, int]]]:
    def read(indices: Iterable[int]) -> Iterator[tuple[np.ndarray, int]]:
        tfds, indices = _tfds(), list(indices)
        try:
            records = _records(tfds, folder, split)
            for start in range(0, len(indices), _CHUNK):
                chunk = records.__getitems__(indices[start : start + _CHUNK])
                for row in chunk:
                    image = decode(io.BytesIO(row["image"]), channels)
                    yield image, int(row["label"])
        except Exception as error:  # of any kind, by several libraries
            raise ValueError(
                f"Split {split!r} of {name!r} in {folder} is damaged "
                f"({_one_line(error)}). Delete that folder, then: "
                f"{_command(name, root)}"
            ) from error

    return read


def _records(tfds: Any, folder: pathlib.Path, split: str) -> Any:
    # Images are decoded by Pillow here, so that pixels and messages do not depend on
    # whether OpenCV is installed. The builder's own code is never imported.
    builder = tfds.builder_from_directory(folder)
    skip = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split, decoders=skip)


def _root(data_dir: str | None) -> pathlib.Path:
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return located(data_dir or default)


def _find(name: str, root: pathlib.Path) -> pathlib.Path:
    """The folder `root/name/[config/]version` that holds a prepared data set."""
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(_unknown(name))
    base, config, version = match.groups()
    home = root / base / config if config else root / base
    found = _versions(home, version)
    configs = [path for path in _folders(home) if _versions(path, version)]
    if not found and not config and len(configs) > 1:
        listed = ", ".join(f"{base}/{path.name}" for path in configs)
        raise ValueError(f"{name!r} has several configurations; name one of: {listed}.")
    if not found and not config and configs:
        found = _versions(configs[0], version)
    return found[-1] if found else _fail(name, base, root)


def _versions(home: pathlib.Path, version: str | None) -> list[pathlib.Path]:
    found = [
        path
        for path in _folders(home)
        if _VERSION.fullmatch(path.name)
        and version in (None, path.name)
        and (path / tfds_metadata.INFO).is_file()
    ]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _folders(home: pathlib.Path) -> list[pathlib.Path]:
    if not home.is_dir():
        return []
    return sorted(path for path in home.iterdir() if path.is_dir())


def _fail(name: str, base: str, root: pathlib.Path) -> NoReturn:
    homes = [root / base, *_folders(root / base)]
    others = [path for home in homes for path in _versions(home, None)]
    if others:
        listed = ", ".join(path.relative_to(root).as_posix() for path in others)
        raise ValueError(f"There is no {name!r} in {root}, which holds {listed}.")
    known = _tfds().list_builders(with_community_datasets=False)
    if base not in known:
        raise ValueError(_unknown(name, known))
    raise ValueError(
        f"TFDS data set {name!r} is not prepared: no files in {root / base}. Nothing "
        f"is downloaded here; prepare it once with: {_command(name, root)}"
    )


def _unknown(name: str, known: Iterable[str] = ()) -> str:
    if name and pathlib.Path(name).is_dir():
        return f"Unknown data set {name!r}: for your own images, name 'folder:{name}'."
    known = known or _tfds().list_builders(with_community_datasets=False)
    plain = re.split("[/:]", name.lower())[0]
    names = {option.split(":")[0]: option for option in (*OWN_NAMES, *known)}
    close = [names[key] for key in difflib.get_close_matches(plain, names, n=3)]
    hint = f"did you mean {' or '.join(close)}? It" if close else "it"
    return (
        f"Unknown data set {name!r}: {hint} may be {', '.join(OWN_NAMES)} or a TFDS "
        "image data set such as cifar10 or mnist."
    )


def _command(name: str, root: pathlib.Path) -> str:
    # The `tfds build` command line of TFDS 4.9.10 does the same, but starts only where
    # apache-beam and mlcroissant are installed too.
    call = f"tfds.builder('{name}', data_dir='{root}', file_format='array_record')"
    return (
        "pip install tensorflow importlib_resources && python -c "
        f'"import tensorflow_datasets as tfds; {call}.download_and_prepare()"'
    )


def _require_array_record(
    name: str, root: pathlib.Path, folder: pathlib.Path, info: Info
) -> None:
    if info.format != "array_record":
        other = root.with_name(f"{root.name}_array_record")
        raise ValueError(
            f"{name!r} in {folder} is prepared as {info.format}, which needs "
            "TensorFlow to read. Prepare it as array_record in another folder and set "
            f"data_dir to that: {_command(name, other)}"
        )


def _tfds() -> Any:
    try:  # here, because it takes a third of a second
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            "Only photos, faces and folder:PATH work without TensorFlow Datasets: "
            "pip install tensorflow-datasets array-record"
        ) from error
    return tfds


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

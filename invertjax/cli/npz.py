"""Reading .npz, where nothing is loaded that its own headers do not account for.

A header of a few bytes may ask for all of a machine's memory, and Python objects in a
file may run code: sizes are compared before anything is read, objects are refused.
"""

import math
import warnings
import zipfile
from typing import IO, NamedTuple

import numpy as np

from invertjax.cli import startup

_SUFFIX = ".npy"
_LONGEST, _DEEPEST = 1000, 100  # of a key: characters, and nodes of its path
_KINDS = "biufcSU"  # numbers and texts; no objects, no dates, no records
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Unreadable(ValueError):
    """A file cannot be read; the message is one line without its name."""


class _Member(NamedTuple):
    """An array in a file; `size` is that of its numbers, in bytes."""

    key: str
    name: str
    size: int


def read(path: str, most: float | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by key.

    Args:
      path: of a regular file.
      most: bytes of all arrays together; by default this machine's memory.

    Raises:
      Unreadable: whatever is wrong with it.
    """
    limit = startup.machine_memory() if most is None else most
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns of what it repairs
            return _read(path, limit)
    except Unreadable:
        raise
    except Exception as error:  # of any kind: zlib's, struct's, a parser's of headers
        reason = (str(error).splitlines() or [""])[0]
        raise Unreadable(reason or type(error).__name__) from None


def check_key(key: str) -> None:
    """Raises `Unreadable` on a key that no tree of arrays would have."""
    if len(key) > _LONGEST or key.count("/") > _DEEPEST:
        raise Unreadable(
            f"an array has a name of {len(key)} characters, with {key.count('/')} "
            f'times "/": expected at most {_LONGEST} and {_DEEPEST}'
        )


def _read(path: str, limit: float) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        magic = file.read(len(np.lib.format.MAGIC_PREFIX))
        if magic == np.lib.format.MAGIC_PREFIX:
            raise Unreadable("it is a single array; use np.savez")
        with zipfile.ZipFile(file) as archive:
            members = [_checked(archive, info) for info in archive.infolist()]
            total = sum(member.size for member in members)
            if total > limit:
                raise Unreadable(
                    f"its arrays would take {total} bytes, expected at most {limit:.0f}"
                )
            if len({member.key for member in members}) < len(members):
                raise Unreadable("two of its arrays have one name")
            return {member.key: _array(archive, member) for member in members}


def _checked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """Returns a member whose header, size and name go together."""
    key = info.filename.removesuffix(_SUFFIX)
    check_key(key)
    if key == info.filename or info.compress_type not in _PACKED:
        raise Unreadable(f"{info.filename!r} is no array as np.savez writes it")
    with archive.open(info) as stream:
        shape, dtype = _header(stream, key)
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or stream.tell() + size != info.file_size:
            raise Unreadable(f"{key!r} is not of the size that its header says")
    return _Member(key, info.filename, size)


def _header(stream: IO[bytes], key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and the type of an array."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise Unreadable(f"{key!r} has a header of version {version}, not 1.0 or 2.0")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise Unreadable("it holds Python objects: save plain arrays, one for each key")
    if dtype.kind == "V":  # .npz keeps such types, as bfloat16, only as bytes
        raise Unreadable(
            f"{key!r} is of a type that .npz does not keep ({dtype.itemsize} "
            "bytes each, perhaps bfloat16); save it as float32, or as .safetensors"
        )
    if dtype.kind not in _KINDS:
        raise Unreadable(f"{key!r} is of type {dtype}, expected numbers")
    return shape, dtype


def _array(archive: zipfile.ZipFile, member: _Member) -> np.ndarray:
    with archive.open(member.name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)

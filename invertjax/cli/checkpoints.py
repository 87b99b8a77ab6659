"""A pytree of arrays in an .npz file: leaves by number, no pickles, written whole."""

import os
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

_DAMAGED = (zipfile.BadZipFile, zlib.error)


def save(file: pathlib.Path, tree: Any) -> None:
    """Writes the leaves beside the file, and renames: it is the old one or the new."""
    leaves = jax.device_get(jax.tree.leaves(tree))
    beside = file.with_name(f".{file.name}.partial")
    with beside.open("wb") as out:
        np.savez(out, **{f"leaf_{i:05}": leaf for i, leaf in enumerate(leaves)})
        out.flush()
        os.fsync(out.fileno())
    os.replace(beside, file)


def load(file: pathlib.Path, like: Any) -> Any:
    """What `save` has written, as a pytree like the given one.

    Raises:
      ValueError: if it cannot be read, or has not the leaves of `like`, their shapes
        and dtypes.
    """
    wanted, structure = jax.tree.flatten(like)
    try:
        with file.open("rb") as content:  # np.load leaves a damaged one open
            archive = np.load(content, allow_pickle=False)
            names = sorted(archive.files)
            leaves = [archive[name] for name in names]
    except (OSError, ValueError, EOFError, AttributeError, *_DAMAGED) as error:
        raise ValueError(f"{file} cannot be read ({error}).") from None
    if len(leaves) != len(wanted):
        raise ValueError(
            f"{file} holds {len(leaves)} arrays: expected {len(wanted)}, of this run's "
            "network, server and defense."
        )
    for name, leaf, one in zip(names, leaves, wanted, strict=True):
        if (leaf.shape, leaf.dtype) != (one.shape, one.dtype):
            raise ValueError(
                f"{file} holds {name} of shape {leaf.shape} and type {leaf.dtype}: "
                f"expected {one.shape} and {one.dtype}."
            )
    return jax.tree.unflatten(structure, leaves)

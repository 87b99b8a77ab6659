"""Reading and writing pytrees of arrays: npz or safetensors, never pickle.

Keys are tree paths joined by "/", e.g. `layers/0/kernel`.
"""

import itertools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from invertjax.cli.near import near

SUFFIXES = (".npz", ".safetensors")
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    safetensors.SafetensorError,
)


def load(path: str, named: str) -> dict[str, np.ndarray]:
    """The arrays of a file, by key.

    Args:
      path: of a .npz or .safetensors file.
      named: what errors call it, e.g. "--update=FILE".

    Raises:
      ValueError: where it cannot be read, or holds no arrays.
    """
    check_suffix(path, named)
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{named}: there is no such file.")
    try:
        arrays = load_file(path) if path.endswith(SUFFIXES[1]) else _npz(path)
        nested(arrays)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "allow_pickle" in reason:
            reason = "it holds Python objects: save plain arrays, one for each key"
        raise ValueError(f"{named} cannot be read: {reason}.") from None
    if not arrays:
        raise ValueError(f"{named} holds no arrays.")
    return arrays


def check_suffix(path: str, named: str) -> None:
    """Raises `ValueError` unless a file's name says which of the two formats it has."""
    if not path.endswith(SUFFIXES):
        raise ValueError(f"{named}: expected a file named *.npz or *.safetensors.")


def _npz(path):
    with open(path, "rb") as file:  # np.load leaves a damaged one open
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array; use np.savez")
        return {key: archive[key] for key in archive.files}


def save(path: str, tree: Any, notes: dict[str, str] | None = None) -> None:
    """Writes a pytree as safetensors, whole or not at all, with notes in its header."""
    beside = f"{path}.partial"
    arrays = {key: np.array(leaf) for key, leaf in flat(tree).items()}
    save_file(arrays, beside, metadata=notes)
    os.replace(beside, path)


def notes(path: str) -> dict[str, str]:
    """What `save` has noted; {} of other files."""
    if not path.endswith(SUFFIXES[1]):
        return {}
    with safetensors.safe_open(path, "np") as file:
        return file.metadata() or {}


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths joined by "/"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def nested(arrays: dict[str, Any]) -> dict:
    """Nested dicts from keys joined by "/"; `ValueError` on `a` beside `a/b`."""
    tree: dict = {}
    for key, value in arrays.items():
        *parents, name = key.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{key!r} would lie inside another array")
        if name in node:
            raise ValueError(f"other arrays would lie inside {key!r}")
        node[name] = value
    return tree


def forms(arrays: dict[str, Any]) -> Iterator[Any]:
    """Trees of which the arrays may come, as a path does not tell 0 from "0".

    Nodes whose names are 0, 1, ... become lists, then dicts of integers, then dicts of
    strings. There is one form only where there are no such nodes.
    """
    tree = nested(arrays)
    made = [_numbered(tree, kind) for kind in (_as_list, _as_integers)]
    if jax.tree.structure(made[0]) != jax.tree.structure(tree):
        yield from made
    yield tree


def _numbered(node, kind):
    if not isinstance(node, dict):
        return node
    children = {name: _numbered(child, kind) for name, child in node.items()}
    count = [str(i) for i in range(len(children))]
    return kind(children, count) if sorted(children) == sorted(count) else children


def _as_list(children, names):
    return [children[name] for name in names]


def _as_integers(children, names):
    return {int(name): children[name] for name in names}


def as_tree(arrays: dict[str, np.ndarray], like: Any, named: str) -> Any:
    """The arrays as a pytree with the structure and shapes of `like`.

    Raises:
      ValueError: naming the first key that is missing, not expected, or of another
        shape.
    """
    wanted = flat(like)
    for key in wanted:
        if key not in arrays:
            raise ValueError(
                f"{named} has no array {key!r}: expected shape {wanted[key].shape}"
                f"{near(key, sorted(set(arrays) - set(wanted)))}"
            )
    for key, value in arrays.items():
        if key not in wanted:
            raise ValueError(
                f"{named} has an array {key!r} too many: expected {_listed(wanted)}"
            )
        if value.shape != wanted[key].shape:
            raise ValueError(
                f"{named} has {key!r} of shape {value.shape}: expected "
                f"{wanted[key].shape}."
            )
    leaves = [arrays[key] for key in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def as_floats(arrays: dict[str, Any], dtype: Any, named: str) -> dict[str, np.ndarray]:
    """The arrays in the precision of the run.

    Raises:
      ValueError: naming the first array that is not all finite floats, also once cast.
    """
    cast = {}
    for key, value in arrays.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{named} has {key!r} of type {value.dtype}: expected floats."
            )
        with np.errstate(over="ignore"):
            cast[key] = np.asarray(value).astype(dtype)
        if not np.all(np.isfinite(cast[key])):
            raise ValueError(
                f"{named} has values in {key!r} that are not finite: expected finite "
                f"{np.dtype(dtype).name}."
            )
    return cast


def _listed(keys, most=4):
    names = [repr(key) for key in itertools.islice(keys, most)]
    return ", ".join(names) + (", ..." if len(keys) > most else "") + "."

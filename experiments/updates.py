"""Reading and writing pytrees of arrays: npz or safetensors, never pickle.

Keys are tree paths joined by "/", e.g. `layers/0/kernel`.
"""

import pathlib
import zipfile
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from experiments.near import near


def load(path: str, flag: str) -> dict[str, np.ndarray]:
    """The arrays of a file, by key.

    Raises:
      ValueError: naming the flag and the file, where it cannot be read.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"--{flag}={path}: there is no such file.")
    if file.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"--{flag}={path}: expected a .npz or .safetensors file.")
    try:
        if file.suffix == ".safetensors":
            return load_file(path)
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError) as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f"--{flag}={path} cannot be read: {reason}") from None


def save(path: str, tree: Any) -> None:
    """Writes a pytree as safetensors."""
    save_file({key: np.array(leaf) for key, leaf in flat(tree).items()}, path)


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths joined by "/"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def nested(arrays: dict[str, np.ndarray]) -> dict:
    """Nested dicts from keys joined by "/"."""
    tree: dict = {}
    for key, value in arrays.items():
        *parents, name = key.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def as_tree(arrays: dict[str, np.ndarray], like: Any, flag: str) -> Any:
    """The arrays as a pytree with the structure and shapes of `like`.

    Raises:
      ValueError: naming the first key that is missing, not known, of another shape, or
        not finite.
    """
    wanted = flat(like)
    for key in wanted:
        if key not in arrays:
            raise ValueError(
                f"--{flag} has no array {key!r}, which the params have{near(key, arrays)}"
            )
    for key, value in arrays.items():
        if key not in wanted:
            raise ValueError(
                f"--{flag} has an array {key!r}, which the params have not"
                f"{near(key, wanted)}"
            )
        if value.shape != wanted[key].shape:
            raise ValueError(
                f"--{flag} has {key!r} of shape {value.shape}; the params have "
                f"{wanted[key].shape}."
            )
        check_finite({key: value}, flag)
    leaves = [np.asarray(arrays[key], wanted[key].dtype) for key in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_finite(arrays: dict[str, np.ndarray], flag: str) -> None:
    """Raises `ValueError` naming the first array that is not all finite numbers."""
    for key, value in arrays.items():
        if not np.issubdtype(value.dtype, np.number) or not np.all(np.isfinite(value)):
            raise ValueError(f"--{flag} has values in {key!r} that are not finite.")

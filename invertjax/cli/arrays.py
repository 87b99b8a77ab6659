"""Reading and writing pytrees of arrays: npz or safetensors, never pickle.

Updates, params and networks have tree paths for keys, joined by "/", such as
`layers/0/kernel`. The state of a run, which only that run reads, has its leaves by
number (`save_leaves`).
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from invertjax.cli import npz, run_folder
from invertjax.cli.near import near

_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown
_safetensors: Any = safetensors  # likewise

PICKLES = (".pt", ".pth", ".ckpt", ".bin")  # as PyTorch writes them
SUFFIXES = (".npz", ".safetensors")


def load(path: str, named: str, most: float | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by key.

    Args:
      path: of a .npz or .safetensors file.
      named: what errors call it, e.g. "--update=FILE".
      most: bytes of all arrays of a .npz together; by default this machine's memory.

    Raises:
      ValueError: where it cannot be read, or holds no arrays.
    """
    check_suffix(path, named)
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{named}: there is no such file.")
    try:
        is_npz = path.endswith(SUFFIXES[0])
        arrays = npz.read(path, most) if is_npz else _of_safetensors(path)
    except npz.Unreadable as error:
        raise ValueError(f"{named} cannot be read: {error}.") from None
    if not arrays:
        raise ValueError(f"{named} holds no arrays.")
    return arrays


def _of_safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        arrays: dict[str, np.ndarray] = _safetensors.numpy.load_file(path)
    except Exception as error:  # of any kind: types that it does not know, as well
        reason = (str(error).splitlines() or [""])[0]
        raise npz.Unreadable(reason or type(error).__name__) from None
    for key in arrays:
        npz.check_key(key)
    return arrays


def check_suffix(path: str, named: str) -> None:
    """Raises `ValueError` unless a file's name says which of the two formats it has."""
    if path.endswith(PICKLES):
        raise ValueError(
            f"{named} is a pickle, which runs code when it is read: expected *.npz or "
            "*.safetensors. If you trust it: python -c 'import sys, torch; from "
            "safetensors.torch import save_file; save_file(torch.load(sys.argv[1], "
            f"weights_only=True), sys.argv[2])' {path} {path}.safetensors"
        )
    if not path.endswith(SUFFIXES):
        raise ValueError(f"{named}: expected a file named *.npz or *.safetensors.")


def save(path: str, tree: Any, notes: dict[str, str] | None = None) -> None:
    """Writes a pytree as safetensors, whole or not at all, with notes in its header."""
    arrays = {key: np.array(leaf) for key, leaf in flat(tree).items()}
    content = safetensors.numpy.save(arrays, metadata=notes)
    run_folder.write(pathlib.Path(path), content)


def notes(path: str) -> dict[str, str]:
    """Returns the notes that `save` has put into a header; {} for other files."""
    if not path.endswith(SUFFIXES[1]):
        return {}
    with _safetensors.safe_open(path, "np") as file:
        return file.metadata() or {}


def save_leaves(path: pathlib.Path, tree: Any) -> None:
    """Writes the leaves of a pytree as .npz by their number, whole or not at all."""
    leaves = jax.device_get(jax.tree.leaves(tree))
    with run_folder.replacing(path) as file:
        named: Any = {f"leaf_{i:05}": _bits(leaf) for i, leaf in enumerate(leaves)}
        np.savez(file, **named)


def load_leaves(path: pathlib.Path, like: Any) -> Any:
    """Returns what `save_leaves` has written, as a pytree like the given one.

    Raises:
      ValueError: if it cannot be read, or has not the leaves of `like`, their shapes
        and dtypes.
    """
    wanted, structure = _jax.tree.flatten(like)
    most = sum(leaf.size * leaf.dtype.itemsize for leaf in wanted)
    found = sorted(_leaves(path, most).items())
    if len(found) != len(wanted):
        raise ValueError(
            f"{path} holds {len(found)} arrays: expected {len(wanted)}, of this run's "
            "network, server and defense."
        )
    found = [
        (name, _of_bits(leaf, right))
        for (name, leaf), right in zip(found, wanted, strict=True)
    ]
    for (name, leaf), right in zip(found, wanted, strict=True):
        if (leaf.shape, leaf.dtype) != (right.shape, right.dtype):
            raise ValueError(
                f"{path} holds {name} of shape {leaf.shape} and type {leaf.dtype}: "
                f"expected {right.shape} and {right.dtype}."
            )
    return _jax.tree.unflatten(structure, [leaf for _, leaf in found])


def _leaves(path: pathlib.Path, most: float) -> dict[str, np.ndarray]:
    try:
        if not path.is_file():
            raise npz.Unreadable("not a regular file")
        return npz.read(str(path), most)
    except npz.Unreadable as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None


def _bits(leaf: Any) -> np.ndarray:
    """Returns numbers of a type that .npz does not keep, such as bfloat16, as bits."""
    leaf = np.asarray(leaf)
    return leaf.view(f"u{leaf.dtype.itemsize}") if leaf.dtype.kind == "V" else leaf


def _of_bits(leaf: np.ndarray, like: Any) -> np.ndarray:
    dtype = np.dtype(like.dtype)
    as_bits = dtype.kind == "V" and leaf.dtype == f"u{dtype.itemsize}"
    return leaf.view(dtype) if as_bits else leaf


def flat(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their paths, joined by "/".

    Names may have "/" in them, as those of dm-haiku have.

    Raises:
      ValueError: where two leaves have the same path, as of {"a/b"} and {"a": {"b"}}.
    """
    leaves, _ = _jax.tree_util.tree_flatten_with_path(tree)
    found: dict[str, Any] = {}
    for path, leaf in leaves:
        key = _jax.tree_util.keystr(path, simple=True, separator="/")
        if key in found:
            raise ValueError(
                f"Two arrays have the path {key!r}: expected other names in the tree."
            )
        found[key] = leaf
    return found


def nested(arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns nested dicts from keys joined by "/".

    Raises:
      ValueError: where one array would lie inside another, as of `a` and `a/b`.
    """
    tree: dict[str, Any] = {}
    for key, value in arrays.items():
        *parents, name = key.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not _is_dict(node):
                raise ValueError(f"{key!r} would lie inside another array")
        if name in node:
            raise ValueError(f"other arrays would lie inside {key!r}")
        node[name] = value
    return tree


def forms(arrays: dict[str, Any]) -> Iterator[Any]:
    """Yields the trees that such keys may stand for: a path does not tell 0 from "0".

    Nodes whose names are 0, 1, ... become lists, then dicts of integers, then dicts of
    strings. Last come modules whose names have "/" in them, as those of dm-haiku have.
    """
    modules = _by_module(arrays)
    try:
        tree = nested(arrays)
    except ValueError:  # a module may have the name of another and more
        yield modules
        return
    made = [_numbered(tree, kind) for kind in (_as_list, _as_integers)]
    if _jax.tree.structure(made[0]) != _jax.tree.structure(tree):
        yield from made
    yield tree
    if _jax.tree.structure(modules) != _jax.tree.structure(tree):
        yield modules


def _by_module(arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns `{module: {name: array}}`, with all but the last part for the module."""
    tree: dict[str, Any] = {}
    for key, value in arrays.items():
        module, _, name = key.rpartition("/")
        if module:
            tree.setdefault(module, {})[name] = value
        else:
            tree[name] = value
    return tree


def _numbered(node: Any, kind: Callable[[dict[str, Any], list[str]], Any]) -> Any:
    """Makes nodes whose names are 0, 1, ... a `kind(children, names)`."""
    if not _is_dict(node):
        return node
    children = {name: _numbered(child, kind) for name, child in node.items()}
    count = [str(i) for i in range(len(children))]
    return kind(children, count) if sorted(children) == sorted(count) else children


def _is_dict(node: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(node, dict)


def _as_list(children: dict[str, Any], names: list[str]) -> list[Any]:
    return [children[name] for name in names]


def _as_integers(children: dict[str, Any], names: list[str]) -> dict[int, Any]:
    return {int(name): children[name] for name in names}


def as_tree(arrays: dict[str, np.ndarray], like: Any, named: str) -> Any:
    """Returns the arrays as a pytree with the structure and shapes of `like`.

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
    return _jax.tree.unflatten(_jax.tree.structure(like), leaves)


def as_floats(arrays: dict[str, Any], dtype: Any, named: str) -> dict[str, np.ndarray]:
    """Returns the arrays in the precision of the run.

    Raises:
      ValueError: naming the first array that is not all finite floats, also once cast.
    """
    cast: dict[str, np.ndarray] = {}
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


def _listed(keys: dict[str, Any], most: int = 4) -> str:
    names = [repr(key) for key in itertools.islice(keys, most)]
    return ", ".join(names) + (", ..." if len(keys) > most else "") + "."

"""What tells the inputs of two runs apart, where their settings name them alike."""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import Dataset, load
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import Victim
from experiments.victims import inputs
from invertjax.cli import own_code


def of_files(saved: SavedUpdate, victim: Victim) -> dict[str, str]:
    """Returns digests of the files that flags name, by flag; without those not there.

    A checkpoint that the run itself has just written counts as one that was read.
    """
    named = {
        "update": saved.update,
        "params": saved.params,
        "checkpoint": victim.checkpoint,
        "model": own_code.source(victim.model),
        "loss": own_code.source(victim.loss),
    }
    return {
        flag: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
        for flag, path in named.items()
        if path is not None and pathlib.Path(path).is_file()
    }


def of_images(splits: Mapping[str, Dataset | Mapping[str, Any] | None]) -> dict:
    """Returns digests of images and labels, by the flag of the split they are from."""
    return {flag: _of_arrays(held) for flag, held in splits.items() if held is not None}


def of_runs(
    runs: Iterable[tuple[Data, Clients, Victim]],
    *,
    whole: bool = False,
    check: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Returns digests of the images that many runs read, by the names of their splits.

    A split is read once, as far as any of the runs does. What cannot be read counts by
    the reason, since it costs only the runs that need it.

    Args:
      runs: their topics; they read no files but images.
      whole: whether all images of all splits are read.
      check: called before each split; it may raise a KeyboardInterrupt.
    """
    most: dict[_Split, int | None] = {}
    for data, clients, victim in runs:
        for flag, limit in inputs.limits(data, clients, victim).items():
            split = _Split(
                data.dataset, getattr(data, flag), data.data_dir, data.image_size
            )
            before = most.get(split, 0)
            if whole or limit is None or before is None:
                most[split] = None
            else:
                most[split] = max(limit, before)
    found: dict[str, str] = {}
    for split, limit in most.items():
        check()
        found[str(split)] = _of_split(split, limit)
    return found


class _Split(NamedTuple):
    """Which images, whatever they are for."""

    dataset: str
    split: str
    data_dir: str | None
    image_size: int | None

    def __str__(self) -> str:
        given = {name: value for name, value in self._asdict().items() if value}
        return " ".join(f"{name}={value}" for name, value in given.items())


def _of_split(split: _Split, limit: int | None) -> str:
    name, part, folder, side = split
    try:
        return _of_arrays(load(name, part, folder, image_size=side, limit=limit))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _of_arrays(held: Any) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(held):
        if hasattr(leaf, "dtype"):
            found.update(f"{leaf.dtype}{leaf.shape}".encode())
            found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()

"""What tells the inputs of two runs apart, where their settings name them alike."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.data import Dataset
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import Victim
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


def _of_arrays(held: Any) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(held):
        if hasattr(leaf, "dtype"):
            found.update(f"{leaf.dtype}{leaf.shape}".encode())
            found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()

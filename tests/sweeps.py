"""Runs `python -m experiments.sweep` in this process, and reads what it leaves."""

import os
import pathlib
import re
from unittest import mock

import jax
import pandas as pd
from absl.testing import flagsaver
from pandas.testing import assert_frame_equal

from experiments import commands, grid, sweep

SMALL = """
dataset = "photos"
model = "mlp"
width = 9
image_size = 8
attack = "inverting_gradients"
targets = 2
steps = 12
"""


def write(path: pathlib.Path, text: str) -> str:
    """A grid file of small networks, with these settings too; its `--grid`."""
    file = path / "grid.toml"
    file.write_text(SMALL + text)
    return f"--grid={file}"


def cells(path: pathlib.Path, text: str):
    """Those of such a file, resolved."""
    return grid.read(write(path, text).removeprefix("--grid=")).cells


def run(*args: str) -> int:
    """The exit code; what it prints goes to stdout and stderr."""
    cache = {"JAX_COMPILATION_CACHE_DIR": os.devnull}  # none of the user's
    with flagsaver.flagsaver(), mock.patch.dict(os.environ, cache):
        try:
            return sweep.main(commands.parse(["sweep", *args]))
        except SystemExit as stop:
            return stop.code
        finally:
            jax.config.update("jax_enable_x64", False)


def table(folder: pathlib.Path) -> pd.DataFrame:
    """Its rows by cell and target, as a reader gets them; none is there twice."""
    found = pd.read_parquet(folder).sort_values(["cell", "target"], ignore_index=True)
    assert not found.duplicated(["cell", "target"]).any()
    return found


def pictures(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("_images/*.png")}


def assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """The same table, bit by bit, but for the time that it took; the same pictures."""
    tables = [table(folder).drop(columns="seconds") for folder in (one, other)]
    assert_frame_equal(*tables, check_exact=True)
    assert pictures(one) == pictures(other)


def promised(out: str) -> int:
    """The number of programs that a sweep says it will compile."""
    return int(re.search(r"each one program: (\d+)", out)[1])


def files(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

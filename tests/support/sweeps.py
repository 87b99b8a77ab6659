"""Runs `python -m experiments.sweep` in this process, and reads what it leaves."""

import pathlib
import re
import tomllib

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from PIL import Image

import models
from experiments.settings.settings import RULES, Settings
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid
from models.mlp import MLP
from support import cli

SMALL = {
    "model": '"mlp"',
    "width": 9,
    "image_size": 8,
    "attack": '"inverting_gradients"',
    "targets": 2,
    "steps": 12,
}


@pytest.fixture
def added_model(monkeypatch):
    """The name of a model that was added by its row, as the docstring of `models` says;
    with the same width it is the mlp."""
    name = "three_layers"
    row = MLP._replace(defaults=MLP.defaults._replace(width=24))
    monkeypatch.setitem(models._ARCHITECTURES, name, row)
    monkeypatch.setitem(models.DEFAULTS, name, row.defaults)
    monkeypatch.setattr(models, "NAMES", (*models.NAMES, name))
    # Else the names are read when the settings are imported.
    rule = RULES["model"]._replace(one_of=models.NAMES)
    monkeypatch.setitem(RULES, "model", rule)
    return name


def write(path: pathlib.Path, text: str) -> str:
    """A grid file of these settings, and small where it does not say; its `--grid`."""
    said = tomllib.loads(text)
    small = "".join(f"{key} = {SMALL[key]}\n" for key in SMALL if key not in said)
    file = path / "grid.toml"
    file.write_text(small + text)
    return f"--grid={file}"


def cells(path: pathlib.Path, text: str) -> list[Settings]:
    """Those of such a file, resolved."""
    return grid.read(write(path, text).removeprefix("--grid=")).cells


def run(*args: str) -> int:
    """The exit code; what it prints goes to stdout and stderr."""
    return cli.run_script(sweep, *args)


def table(folder: pathlib.Path) -> pd.DataFrame:
    """Its rows by cell and target, as a reader gets them; none is there twice."""
    found = pd.read_parquet(folder).sort_values(["cell", "target"], ignore_index=True)
    assert not found.duplicated(["cell", "target"]).any()
    return found


def pictures(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("_images/*.png")}


def pixels(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image) / 255


def assert_same(one: pathlib.Path, other: pathlib.Path) -> None:
    """The same table, bit by bit, but for the time that it took; the same pictures."""
    tables = [table(folder).drop(columns="seconds") for folder in (one, other)]
    assert_frame_equal(*tables, check_exact=True)
    assert pictures(one) == pictures(other)


def promised(out: str) -> int:
    """The number of programs that a sweep says it will compile."""
    return int(re.search(r"each one program: (\d+)", out)[1])


def refused(capsys, grid: str, workdir: pathlib.Path, *args: str) -> str:
    """The one line that is said of bad input, which changes no file."""
    before = files(workdir.parent)
    capsys.readouterr()
    code = run(grid, f"--workdir={workdir}", *args)
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert "None" not in printed.err
    assert files(workdir.parent) == before
    return printed.err


def files(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counted(monkeypatch) -> list:
    """The combinations of a grid that are made, as they are made."""
    made, resolve = [], grid.resolve

    def count(given):
        made.append(given)
        return resolve(given)

    monkeypatch.setattr(grid, "resolve", count)
    return made

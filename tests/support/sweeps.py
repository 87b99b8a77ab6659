"""Runs `python -m experiments.sweep` in this process, and reads what it leaves."""

import pathlib
import random
import re
import subprocess
import time
import tomllib

import numpy as np
import pandas as pd
from pandas.testing import assert_frame_equal
from PIL import Image

from experiments.sweep import __main__ as sweep
from experiments.sweep import grid
from support import cli

SMALL = {
    "model": '"mlp"',
    "width": 9,
    "image_size": 8,
    "attack": '"inverting_gradients"',
    "targets": 2,
    "steps": 12,
}


def write(path: pathlib.Path, text: str) -> str:
    """A grid file of these settings, and small where it does not say; its `--grid`."""
    said = tomllib.loads(text)
    small = "".join(f"{key} = {SMALL[key]}\n" for key in SMALL if key not in said)
    file = path / "grid.toml"
    file.write_text(small + text)
    return f"--grid={file}"


def cells(path: pathlib.Path, text: str):
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


def kill(process: subprocess.Popen, folder: pathlib.Path, parts: int) -> None:
    """With kill -9, a moment after so many parts of the table are there."""
    until = time.monotonic() + 60
    while len(list(folder.glob("part-*"))) < parts:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    process.kill()
    process.communicate()

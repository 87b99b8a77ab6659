"""Runs `python -m experiments.reconstruct` in this process."""

import json
import os
import pathlib
from unittest import mock

import jax
import numpy as np
from absl.testing import flagsaver

from experiments import reconstruct

FILES = {
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "reconstructions.npz",
    "grid.png",
}


def run(*args: str) -> int:
    """The exit code; what it prints goes to stdout and stderr."""
    cache = {"JAX_COMPILATION_CACHE_DIR": os.devnull}  # none of the user's
    with flagsaver.flagsaver(), mock.patch.dict(os.environ, cache):
        try:
            return reconstruct.main(reconstruct.parse(["reconstruct", *args]))
        except SystemExit as stop:
            return stop.code
        finally:
            jax.config.update("jax_enable_x64", False)


def summary(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def rows(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(workdir / "reconstructions.npz", allow_pickle=False) as archive:
        return dict(archive)


def refused(capsys, workdir: pathlib.Path, *args: str) -> str:
    """The one line that a run on bad input leaves on stderr; it leaves nothing else."""
    before = _files(workdir.parent)
    capsys.readouterr()
    code = run(*args, f"--workdir={workdir}")
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert "None" not in printed.err
    assert _files(workdir.parent) == before
    return printed.err


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

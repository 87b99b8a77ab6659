"""The folder of a sweep: which grid it is of, and whether it can take this one."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections import Counter

import pyarrow.parquet as pq

import invertjax
from experiments.settings.config import Config
from experiments.sweep import pictures
from experiments.sweep import table as table_
from experiments.sweep.grid import Grid
from invertjax.cli import run_folder

FILE, LEASES = "_sweep.json", "_leases"


def open_(path: str, grid: Grid, *, overwrite: bool) -> pathlib.Path:
    """Makes the folder, or finds this very sweep in it.

    Raises:
      ValueError: if it cannot be written, or holds other results, saying which.
    """
    folder, named = pathlib.Path(path), f"--workdir={path}"
    run_folder.check_writable(folder, named)
    try:
        if overwrite:
            _empty(folder)
        if (folder / FILE).exists():
            _check_same(folder, named, _described(grid))
        elif any(folder.glob("[!_]*")):  # another process may just be making ours
            raise ValueError(
                f"{named} holds other files: give --overwrite or another folder."
            )
        (folder / LEASES).mkdir(parents=True, exist_ok=True)
        _write(folder / FILE, _described(grid))
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})"
        raise ValueError(f"{named} cannot be written: {reason}.") from None
    return folder


def failed(folder: pathlib.Path) -> Counter[str]:
    """The reasons of rows that failed, and how many each has."""
    tables = [
        pq.read_table(file, columns=["status", "reason"]) for file in _parts(folder)
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    return Counter(row["reason"] for row in rows if row["status"] == "failed")


def _parts(folder):
    return list(folder.glob("part-*.parquet"))


def _described(grid):
    """The grid as JSON: every setting's values, and a digest of the cells."""
    names = [field.name for field in dataclasses.fields(Config)]
    settings = {
        name: sorted({json.dumps(getattr(cell, name)) for cell in grid.cells})
        for name in names
    }
    cells = "".join(sorted(map(table_.name_of, grid.cells)))
    digest = hashlib.sha256(cells.encode()).hexdigest()
    return {
        "version": invertjax.__version__,
        "cells": len(grid.cells),
        "settings": settings,
        "digest": digest,
    }


def _check_same(folder, named, now):
    try:
        before = json.loads((folder / FILE).read_text("utf-8"))
        same = before["digest"] == now["digest"]
        old, new = before["settings"], now["settings"]
        version = before["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{named}: its {FILE} cannot be read; give --overwrite or another folder."
        ) from None
    if version != now["version"]:
        raise ValueError(
            f"{named} was written by invertjax {version}, this is {now['version']}: "
            "expected the same; give --overwrite or another folder."
        )
    if same:
        return
    differ = [name for name in new if old.get(name) != new[name]]
    what = ", ".join(f"{name}: {_listed(old.get(name))}" for name in differ[:3])
    raise ValueError(
        f"{named} holds a sweep of another grid ({before['cells']} cells, this one has "
        f"{now['cells']}); it has {what or 'other combinations'}: give "
        "--overwrite or another folder."
    )


def _listed(values, most=4):
    values = values or []
    return "[" + ", ".join(values[:most]) + (", ..." * (len(values) > most)) + "]"


def _empty(folder):
    """Removes a former sweep, and nothing else."""
    for file in _parts(folder):
        file.unlink()
    for name in (LEASES, pictures.FOLDER, "_figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / FILE).unlink(missing_ok=True)


def _write(file, content):
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1), "utf-8")
    beside.rename(file)

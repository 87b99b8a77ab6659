"""The folder of a sweep: which grid it is of, and whether it can take this one."""

import hashlib
import json
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Mapping
from typing import Any

import invertjax
from experiments.audit import digests
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.settings import RULES, flat
from experiments.sweep import pictures
from experiments.sweep import table as table_
from experiments.sweep.grid import Grid
from invertjax.cli import earlier, fields, leases, run_folder
from invertjax.reports import text

FILE, LEASES = "_sweep.json", "_leases"


def open_(
    path: str,
    grid: Grid,
    *,
    inputs: Mapping[str, str] | None = None,
    overwrite: bool,
) -> pathlib.Path:
    """Makes the folder, or finds this very sweep in it.

    Args:
      path: of the folder.
      grid: of the sweep.
      inputs: digests of what its cells read, by name; None: they are not compared.
      overwrite: whether a former sweep in the folder is removed.

    Raises:
      ValueError: if it cannot be written, or holds other results, saying which.
    """
    folder, named = pathlib.Path(path), f"--workdir={path}"
    run_folder.check_writable(folder, named)
    described = _described(grid)
    if inputs is not None:
        described["inputs"] = dict(inputs)
    try:
        if overwrite:
            _check_idle(folder, named)
            _empty(folder)
        if os.path.lexists(folder / FILE):
            _check_same(folder, named, described)
        elif any(folder.glob("[!_]*")):  # another process may just be making ours
            raise ValueError(
                f"{named} holds other files: give --overwrite or another folder."
            )
        (folder / LEASES).mkdir(parents=True, exist_ok=True)
        run_folder.write(folder / FILE, json.dumps(described, indent=1).encode())
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})"
        raise ValueError(f"{named} cannot be written: {reason}.") from None
    return folder


def failed(folder: pathlib.Path) -> Counter[str]:
    """Returns the reasons of rows that failed, and how many each has."""
    found = Counter[str]()
    for file in table_.parts(folder):
        rows = table_.columns(file, "status", "reason")
        found.update(str(why) for how, why in rows if how == "failed")
    return found


def _described(grid: Grid) -> dict[str, Any]:
    """Returns the grid as JSON: every setting's values, and digests of the cells and of
    the reader's own code."""
    by_cell = list(map(flat, grid.cells))
    values = {name: {one[name] for one in by_cell} for name in RULES}
    settings = {name: sorted(map(json.dumps, some)) for name, some in values.items()}
    cells = "".join(sorted(map(table_.name_of, grid.cells)))
    digest = hashlib.sha256(cells.encode()).hexdigest()
    return {
        "version": invertjax.__version__,
        "cells": len(grid.cells),
        "settings": settings,
        "digest": digest,
        "code": _code(grid),
    }


def _code(grid: Grid) -> dict[str, str]:
    """Returns digests of the source files of the reader's own models and losses."""
    found: dict[str, str] = {}
    for victim in dict.fromkeys(cell.victim for cell in grid.cells):
        read = digests.of_files(SavedUpdate(), victim)
        found |= {getattr(victim, flag): digest for flag, digest in read.items()}
    return found


_DESCRIBED = {
    "version": fields.LINE,
    "cells": fields.COUNT,
    "settings": fields.table(fields.listed(fields.LINE)),
    "digest": fields.LINE,
}
_ADDED = {  # which folders of before have not
    "inputs": fields.table(fields.LINE),
    "code": fields.table(fields.LINE),
}


def _check_same(folder: pathlib.Path, named: str, now: dict[str, Any]) -> None:
    try:
        before = fields.read(folder / FILE, _DESCRIBED, _ADDED)
    except ValueError as error:
        raise ValueError(
            f"{named}: its {FILE} cannot be read ({error}); give --overwrite or "
            "another folder."
        ) from None
    version = before["version"]
    if version != now["version"]:
        raise ValueError(
            f"{named} was written by invertjax {fields.shown(version)}, as its {FILE} "
            f"says, this is {now['version']}: expected the same; give --overwrite or "
            "another folder."
        )
    if before["digest"] == now["digest"]:
        if "inputs" in before and "inputs" in now:
            _check_inputs(named, before["inputs"], now["inputs"])
        return _check_code(named, before.get("code", {}), now["code"])
    old, new = before["settings"], now["settings"]
    differ = [name for name in new if old.get(name) != new[name]]
    what = ", ".join(f"{name}: {_listed(old.get(name))}" for name in differ[:3])
    raise ValueError(
        f"{named} holds a sweep of another grid, as its {FILE} says "
        f"({before['cells']} cells, this one has {now['cells']}); it has "
        f"{what or 'other combinations'}: give --overwrite or another folder."
    )


def _check_inputs(named: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    replaced = earlier.first_replaced(before, now)
    if replaced is not None:
        raise ValueError(
            f"{named}: {text.printable(replaced)} is not what it was when the sweep "
            f"there began, as its {FILE} says: expected the same images; give "
            "--overwrite or another folder."
        )


def _check_code(named: str, before: dict[str, str], now: dict[str, str]) -> None:
    for code, digest in now.items():
        if before.get(code) != digest:
            raise ValueError(
                f"{named} holds results of {code} before its file changed, as its "
                f"{FILE} says: give --overwrite or another folder."
            )


def _listed(values: list[str] | None, most: int = 4) -> str:
    values = [fields.shown(value) for value in values or []]
    return "[" + ", ".join(values[:most]) + (", ..." * (len(values) > most)) + "]"


def _check_idle(folder: pathlib.Path, named: str) -> None:
    if leases.busy(folder / LEASES):
        raise ValueError(
            f"{named}: another process is at work in it; expected to wait for its end, "
            "or no --overwrite, to join it."
        )


def _empty(folder: pathlib.Path) -> None:
    """Removes a former sweep, and nothing else."""
    for file in table_.parts(folder):
        file.unlink()
    for name in (LEASES, pictures.FOLDER, "_figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / FILE).unlink(missing_ok=True)
    run_folder.remove_partial(folder)

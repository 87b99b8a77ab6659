"""The Parquet parts of a sweep's folder, read and checked: anybody may have written
them."""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from experiments.settings.settings import RULES
from invertjax.auditing import scores
from invertjax.cli import fields

NEEDED = (
    *("cell", "target", "status", "reason"),
    *("defense", "defense_name", "strength", "psnr"),
)
PICTURES = ("image", "original")  # columns of files' names
_TEXTS = ("cell", "status", "reason", "defense", "defense_name", *PICTURES)
_KINDS: dict[str, type] = {
    # Of settings those that are numbers; the others may be of any type.
    **{name: rule.kind for name, rule in RULES.items() if rule.kind in (int, float)},
    "guess": float,
    **scores.COLUMNS,
    **dict.fromkeys(_TEXTS, str),
    "target": int,
    "strength": float,
}


def read(workdir: pathlib.Path, needed: Iterable[str] = NEEDED) -> Any:
    """Returns the rows of all parts as one table, in the order of their names.

    Raises:
      ValueError: naming the folder or the part that is wrong.
    """
    if not workdir.is_dir():
        raise ValueError(f"--workdir={workdir}: there is no such folder.")
    parts = [_part(path) for path in sorted(workdir.glob("part-*.parquet"))]
    if not sum(part.num_rows for part in parts):
        raise ValueError(f"--workdir={workdir}: no results, expected part-*.parquet.")
    try:
        table = pyarrow.concat_tables(parts, promote_options="permissive")
    except pyarrow.ArrowException as error:
        says = fields.shown(" ".join(str(error).split()))
        raise ValueError(f"--workdir={workdir}: its parts differ: {says}") from None
    names = table.column_names
    for name in needed:
        if name not in names:
            raise ValueError(f"--workdir={workdir}: no column {name!r} in its parts.")
    try:
        if len({*names}) < len(names):
            raise ValueError("two columns have one name")
        _check(table)
        return table.to_pandas()
    except (ValueError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"--workdir={workdir}: its part-*.parquet are damaged: {error}."
        ) from None


def _part(path: pathlib.Path) -> Any:
    try:
        fields.check_regular(path)
        with parquet.ParquetFile(path) as file:
            table = file.read()
        table.validate(full=True)  # texts in UTF-8, offsets within their buffers
        return table
    except Exception as error:  # Arrow's are of all sorts
        says = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path}: not a readable Parquet file: {says}.") from None


def _check(table: Any) -> None:
    """Refuses columns of other types than sweeps write, and scores that are none."""
    for name, kind in _KINDS.items():
        if name in table.column_names and not _is_of(table.field(name).type, kind):
            found = table.field(name).type
            raise ValueError(f"column {name!r} is of type {found}")
    for name in ("cell", "target"):
        if table.column(name).null_count:
            raise ValueError(f"column {name!r} has gaps")
    done = [status == "done" for status in table.column("status").to_pylist()]
    psnr = np.asarray(table.column("psnr").to_pandas(), float)[done]
    if not np.all(np.isfinite(psnr)):
        raise ValueError("a row that is done has no finite psnr")


def _is_of(found: Any, kind: type) -> bool:
    types = pyarrow.types
    if types.is_null(found):
        return True
    if kind is str:
        return types.is_string(found) or types.is_large_string(found)
    return types.is_integer(found) or types.is_floating(found)

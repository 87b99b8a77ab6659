"""The table of a sweep: Parquet part files that appear whole or not at all.

`pandas.read_parquet(workdir)` reads them; everything else there starts with "_".
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import typing
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.settings import defense_flags
from experiments.settings.config import Config

_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
# Settings that are no coordinates of a sweep.
_LEFT_OUT = ("update", "params", "loss", "image_shape", "num_classes", "null_control")
_MEASURED = {
    "psnr": float,
    "psnr_min": float,
    "ssim": float,
    "label_recall": float,
    "loss": float,
    "steps_taken": int,
    "stopped": str,
    "update_rms": float,
    "seconds": float,
    "status": str,
    "reason": str,
    "attack_run": str,
    "threat_model": str,
    "versions": str,
    "device": str,
    "image": str,
    "original": str,
}


def _kind(hint):
    kind = (*typing.get_args(hint), hint)[0]
    return _TYPES.get(kind, pa.string())


_HINTS = typing.get_type_hints(Config)
_SETTINGS = {
    field.name: _kind(_HINTS[field.name])
    for field in dataclasses.fields(Config)
    if field.name not in _LEFT_OUT
}
SCHEMA = pa.schema(
    {"cell": pa.string(), "target": pa.int64()}
    | _SETTINGS
    | {"defense_name": pa.string(), "strength": pa.float64()}
    | {name: _TYPES[kind] for name, kind in _MEASURED.items()}
)


def name_of(config: Config) -> str:
    """A cell's name: sixteen characters that differ where any setting does."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def coordinates(config: Config) -> dict[str, Any]:
    """The columns that say which cell a row is of."""
    found = {name: getattr(config, name) for name in _SETTINGS}
    specs = defense_flags.specs(config.defense)
    found["defense"] = "+".join(config.defense) or "none"
    found["defense_name"] = "+".join(spec.name for spec in specs) or "none"
    found["strength"] = specs[-1].strength if specs else None
    return {"cell": name_of(config), **found}


def write(folder: pathlib.Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Adds rows to the table, as `part-NAME.parquet`; columns they lack are null."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    beside = folder / f"_part-{name}.{os.getpid()}"
    try:
        with beside.open("wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(folder / f"part-{name}.parquet")
    finally:
        beside.unlink(missing_ok=True)


def finished(folder: pathlib.Path) -> dict[str, set[int]]:
    """The targets of every cell that are in the table.

    Raises:
      ValueError: naming a part that cannot be read.
    """
    found: dict[str, set[int]] = {}
    for file in folder.glob("part-*.parquet"):
        for cell, target in _rows(file, file.stat().st_mtime_ns):
            found.setdefault(cell, set()).add(target)
    return found


@functools.cache  # a part never changes
def _rows(file, written):
    del written  # a part of that name may be of a former sweep
    try:
        table = pq.read_table(file, columns=["cell", "target"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None
    return list(zip(*table.to_pydict().values(), strict=True))

"""The table of a sweep: Parquet part files that appear whole or not at all.

`pandas.read_parquet(workdir)` reads them; everything else there starts with "_".
"""

import functools
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.settings import settings
from experiments.settings.settings import RULES, Settings
from invertjax.auditing import scores
from invertjax.cli import run_folder

# The settings in the order of the columns. `experiments.show` takes the first among
# equals; a setting that is not here comes after them. No sweep has a checkpoint, but
# the tables of former ones have its column.
_ORDER = (
    *("dataset", "data_dir", "split", "image_size"),
    *("model", "activation", "norm", "norm_mode", "init", "width", "networks"),
    *("train_steps", "train_split", "train_lr", "checkpoint"),
    *("attack", "batch_size", "targets", "restarts", "steps", "warm_start", "stop"),
    *("labels", "attack_lr", "total_variation"),
    *("local_steps", "local_batch", "local_lr", "local_shuffle", "local_known"),
    *("defense", "defense_known", "x64", "seed"),
)
_VARIED = tuple(name for name, rule in RULES.items() if not rule.fixed)
_SETTINGS = tuple(dict.fromkeys((*_ORDER, *_VARIED)))
# What a row says beside its scores.
_FACTS = {
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
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
SCHEMA = pa.schema(
    {"cell": pa.string(), "target": pa.int64()}
    | {name: _TYPES.get(RULES[name].kind, pa.string()) for name in _SETTINGS}
    | {"defense_name": pa.string(), "strength": pa.float64()}
    | {name: _TYPES[kind] for name, kind in {**scores.COLUMNS, **_FACTS}.items()}
)


def name_of(cell: Settings) -> str:
    """Returns a cell's name: 16 characters that differ where any setting does."""
    return settings.digest(settings.flat(cell), 16)


def defense_of(cell: Settings) -> str:
    """Returns a cell's defenses as one text; "none" where there are none."""
    return "+".join(map(str, cell.clients.defense)) or "none"


def coordinates(cell: Settings) -> dict[str, Any]:
    """Returns the columns that say which cell a row is of."""
    flat, defense = settings.flat(cell), cell.clients.defense
    return {
        "cell": name_of(cell),
        **{name: flat[name] for name in _SETTINGS},
        "defense": defense_of(cell),
        "defense_name": "+".join(one.name for one in defense) or "none",
        "strength": defense[-1].strength if defense else None,
    }


def write(folder: pathlib.Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Adds rows to the table, as `part-NAME.parquet`; columns they lack are null."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with run_folder.replacing(folder / f"part-{name}.parquet") as file:
        pq.write_table(table, file)


def parts(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of the table."""
    return sorted(folder.glob("part-*.parquet"))


def finished(folder: pathlib.Path) -> dict[str, set[int]]:
    """Returns the targets of every cell that are in the table.

    Raises:
      ValueError: naming a part that cannot be read.
    """
    found: dict[str, set[int]] = {}
    for file in parts(folder):
        for cell, target in _rows(file, file.stat().st_mtime_ns):
            found.setdefault(cell, set()).add(target)
    return found


@functools.cache  # a part never changes
def _rows(file: pathlib.Path, written: int) -> list[tuple[str, int]]:
    del written  # a part of that name may be of a former sweep
    try:
        table = pq.read_table(file, columns=["cell", "target"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None
    return list(zip(*table.to_pydict().values(), strict=True))

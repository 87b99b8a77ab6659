"""The table of a sweep: Parquet part files that appear whole or not at all.

`pandas.read_parquet(workdir)` reads them; everything else there starts with "_".
"""

import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.settings import settings
from experiments.settings.settings import COLUMNS, RULES, Settings
from experiments.sweep import grid
from invertjax.auditing import scores
from invertjax.cli import fields, run_folder

# The settings in the order of the columns. `experiments.show` takes the first among
# equals; a setting that is not here comes after them. No sweep has a checkpoint, but
# the tables of former ones have its column.
_ORDER = (
    *("dataset", "data_dir", "split", "image_size"),
    *("model", "activation", "norm", "norm_mode", "init", "width", "hidden"),
    *("normalise", "networks"),
    *("train_steps", "train_split", "train_lr", "checkpoint"),
    *("attack", "batch_size", "targets", "restarts", "steps", "warm_start", "stop"),
    *("labels", "attack_lr", "total_variation"),
    *("local_steps", "local_epochs", "local_batch", "local_lr", "local_shuffle"),
    "local_known",
    *("defense", "defense_known", "x64", "seed"),
)
_VARIED = tuple(name for name, rule in RULES.items() if not rule.fixed)
_SETTINGS = tuple(dict.fromkeys((*_ORDER, *_VARIED)))
# What a row says beside its scores.
_FACTS = {
    "guess": float,  # PSNR of a guess that does not look at the update
    "seconds": float,
    "status": str,
    "reason": str,
    "attack_run": str,
    "closed_form": str,  # the attack that reads such an update exactly, if another
    "threat_model": str,
    "versions": str,
    "device": str,
    "image": str,
    "original": str,
}
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
SCHEMA = pa.schema(
    {"cell": pa.string(), "target": pa.int64()}
    | {COLUMNS[n]: _TYPES.get(RULES[n].kind, pa.string()) for n in _SETTINGS}
    | {"defense_name": pa.string(), "strength": pa.float64()}
    | {name: _TYPES[kind] for name, kind in {**scores.COLUMNS, **_FACTS}.items()}
)


@functools.lru_cache(grid.MOST)  # a start asks for that of every cell, several times
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
        **{COLUMNS[name]: flat[name] for name in _SETTINGS},
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


class Finished:
    """The targets that are in the table; every part is read once, as it never changes.

    Attributes:
      targets: by the names of cells.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.targets = folder, dict[str, set[int]]()
        self._read: set[pathlib.Path] = set()

    def look(self) -> None:
        """Reads the parts that have come, whoever has written them.

        Raises:
          ValueError: naming a part that cannot be read.
        """
        for file in parts(self.folder):
            if file not in self._read:
                for cell, target in columns(file, "cell", "target"):
                    self.targets.setdefault(cell, set()).add(target)
                self._read.add(file)


def columns(file: pathlib.Path, *names: str) -> Iterator[tuple]:
    """Returns some columns of a part, row by row.

    Raises:
      ValueError: naming the part if it cannot be read, or has them of other types.
    """
    try:
        fields.check_regular(file)
        with pq.ParquetFile(file) as part:
            table = part.read(columns=list(names))
            _check_types(table, names)
            found = table.to_pydict()
            return zip(*(found[name] for name in names), strict=True)
    except Exception as error:  # Arrow's are of all sorts
        reason = fields.shown(" ".join(str(error).split()))
        raise ValueError(f"{file} cannot be read: {reason}.") from None


def _check_types(table: pa.Table, names: Iterable[str]) -> None:
    """Refuses columns that this table has not, or not of such values."""
    table.validate(full=True)  # texts in UTF-8, offsets within their buffers
    for name in names:
        found, right = table.schema.field(name).type, SCHEMA.field(name).type
        if found not in (right, pa.null()):
            raise ValueError(f"column {name!r} is of type {found}, expected {right}")
    for name in {"cell", "target"} & {*names}:
        if table.column(name).null_count:
            raise ValueError(f"column {name!r} has gaps")

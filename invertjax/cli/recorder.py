"""What a run has done so far: kept in memory and, soon after, on disk.

A run has rows, and a payload that grows with them or is replaced. Both lie in files of
their own, so that a kill may come between the two: a `Store` says in which order they
are written, and which rows count when the run goes on.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from invertjax.base import Arrays, Row
from invertjax.cli import arrays, fields
from invertjax.cli.run_folder import ROWS, RunDir

RECONSTRUCTIONS, STATE = "reconstructions.npz", "state.npz"
MOST = 10**6  # targets of a run
FLUSH_SECONDS = 1.0  # between two writings, at least
FLUSH_TIMES = 10  # as long as writing takes, at least


class Store(NamedTuple):
    """How the payload of a run is kept in its folder.

    Attributes:
      load: `folder -> (rows, payload)`, all that a run can go on with. Raises
        `ValueError` where the files cannot be read.
      join: `(payload, new) -> payload`, with what belongs to one more row.
      save: `(folder, payload)`, writes its file whole or not at all.
      rows_first: whether rows are written before the payload.
    """

    load: Callable[[RunDir], tuple[list[Row], Any]]
    join: Callable[[Any, Any], Any]
    save: Callable[[RunDir, Any], None]
    rows_first: bool


class Recorder:
    """The rows and the payload of one run.

    They are written by the first `add` or `flush_in_time` that comes a second or more
    after the last writing; after ten times what writing takes, if that is longer.

    Args:
      folder: of the run, opened by `run_folder.open_`.
      store: `ARRAYS`, or from `state`.
      clock: tells seconds.

    Attributes:
      rows: of all that is done, in order.
      payload: as its store has it.
      seconds: what the run has taken by its last row; who goes on with it adds to that.

    Raises:
      ValueError: where the folder holds a run that cannot be read.
    """

    def __init__(
        self, folder: RunDir, store: Store, clock: Callable[[], float] = time.monotonic
    ):
        self.folder, self.store, self.clock = folder, store, clock
        self.rows, self.payload = store.load(folder)
        self.seconds = self.rows[-1].get("seconds", 0.0) if self.rows else 0.0
        self.pause, self.written, self.unsaved = FLUSH_SECONDS, clock(), False

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception: object) -> None:
        """Writes what is not on disk, whatever has ended the run."""
        if self.unsaved:
            self.flush()

    def complete(self) -> bool:
        """Returns whether the folder holds a whole run."""
        return self.folder.json("summary.json").get("interrupted") is False

    def start(self, content: dict[str, Any]) -> None:
        """Writes config.json."""
        self.folder.write_json("config.json", content)

    def add(self, row: Row | None, new: Any) -> None:
        """Takes a row, if there is one, and what it adds to the payload."""
        self.rows += [row] if row else []
        self.payload = self.store.join(self.payload, new)
        self.unsaved = True
        self.flush_in_time()

    def flush_in_time(self) -> None:
        """Writes if it is time: a process may be killed in the hours to come."""
        if self.unsaved and self.clock() - self.written > self.pause:
            self.flush()

    def flush(self) -> None:
        """Writes rows and payload."""
        start = self.clock()
        if self.store.rows_first:
            self.folder.write_rows(self.rows)
        self.store.save(self.folder, self.payload)
        if not self.store.rows_first:
            self.folder.write_rows(self.rows)
        self.written, self.unsaved = self.clock(), False
        self.pause = max(FLUSH_SECONDS, FLUSH_TIMES * (self.written - start))


class Elsewhere(contextlib.nullcontext[None]):
    """Stands for the recorder in processes that do not write."""

    rows, payload = (), ()

    def complete(self) -> bool:
        return False

    def start(self, content: dict[str, Any]) -> None:
        del content

    def add(self, row: Row | None, new: Any) -> None:
        del row, new

    def flush_in_time(self) -> None:
        pass


class Like(NamedTuple):
    """What the arrays of a run have to be.

    Attributes:
      targets: of the run, at most.
      each: of one target by name: the shape, and the kinds of dtype, such as "f".
    """

    targets: int
    each: Mapping[str, tuple[tuple[int, ...], str]]


def _is_target(value: Any) -> bool:
    return fields.COUNT.holds(value) and value < MOST


_TARGET = fields.Kind(f"a target, below {MOST}", _is_target)
_OPTIONAL = {"target": _TARGET, "seconds": fields.NUMBER}


def _load_arrays(
    folder: RunDir, check: Callable[[Row], None], like: Like | None
) -> tuple[list[Row], list[Arrays]]:
    def checked(row: Row) -> None:
        fields.check(row, {"stopped": fields.TEXT}, _OPTIONAL)
        check(row)

    try:
        rows = folder.rows(checked)
        _check_targets(rows, like)
        pairs = zip(rows, _arrays_of(folder, rows, like), strict=True) if rows else ()
        done = [pair for pair in pairs if pair[0]["stopped"] != "interrupted"]
        return [row for row, _ in done], [arrays for _, arrays in done]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"--resume: the results in --workdir={folder.path} cannot be read "
            f"({error}); start again with --overwrite."
        ) from None


def _check_targets(rows: list[Row], like: Like | None) -> None:
    """Refuses targets that are there twice, or that this run has not."""
    seen: set[int] = set()
    for number, row in enumerate(rows):
        target = row.get("target", number)
        if target in seen or (like is not None and target >= like.targets):
            why = "there twice" if target in seen else "none of this run"
            raise ValueError(f"{ROWS}: target {target} is {why}")
        seen.add(target)


def _arrays_of(folder: RunDir, rows: list[Row], like: Like | None) -> list[Arrays]:
    """Returns the arrays of every row: those of its target, or, in a folder that knows
    no targets, those at its place."""
    file = str(folder.path / RECONSTRUCTIONS)
    stacked = arrays.load(file, RECONSTRUCTIONS, _bytes(like))
    if like is not None:
        _check_like(stacked, like)
    places = list(range(len(rows)))
    if "target" in stacked:
        of = stacked["target"].tolist()
        places = [of.index(row["target"]) for row in rows]
    return [{name: leaf[i] for name, leaf in stacked.items()} for i in places]


def _bytes(like: Like | None) -> float | None:
    """Returns how much memory all arrays may take, at eight bytes a number."""
    if like is None:
        return None
    return like.targets * sum(8 * math.prod(shape) for shape, _ in like.each.values())


def _check_like(stacked: Arrays, like: Like) -> None:
    """Refuses arrays that are not those of such targets."""
    if set(stacked) - {"target"} != set(like.each) - {"target"}:
        raise ValueError(f"{RECONSTRUCTIONS} has {list(stacked)}")
    lengths = {leaf.shape[:1] for leaf in stacked.values()}
    for name, leaf in stacked.items():
        shape, kinds = like.each[name]
        right = leaf.shape[1:] == shape and leaf.dtype.kind in kinds
        if not right or len(lengths) > 1 or not np.all(np.isfinite(leaf)):
            raise ValueError(
                f"{RECONSTRUCTIONS} holds {name!r} of shape {leaf.shape} and type "
                f"{leaf.dtype}: expected finite numbers, {shape} a target"
            )


def _appended(batches: list[Arrays], new: Arrays) -> list[Arrays]:
    return [*batches, new]


def _save_arrays(folder: RunDir, batches: list[Arrays]) -> None:
    names = batches[0]
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in names}
    folder.write_arrays(RECONSTRUCTIONS, stacked)


def by_target(
    check: Callable[[Row], None] = fields.any_row, like: Like | None = None
) -> Store:
    """Keeps a dict of arrays for every row, stacked in reconstructions.npz.

    They are written first, so that there are arrays for every row; arrays without a row
    are left out.

    Args:
      check: raises `ValueError` on a row that is not as expected.
      like: what the arrays are; None: they may be any.
    """

    def load(folder: RunDir) -> tuple[list[Row], list[Arrays]]:
        return _load_arrays(folder, check, like)

    return Store(load, _appended, _save_arrays, rows_first=False)


ARRAYS = by_target()


def _replaced(last: Any, new: Any) -> Any:
    del last
    return new


def state(
    start: Any,
    is_done: Callable[[Row, Any], bool],
    check: Callable[[Row], None] = fields.any_row,
) -> Store:
    """Keeps the last state of a run, in state.npz.

    Rows are written first, so that none is lost of what the state has done. Rows of
    what it has not done yet are left out: the run makes them again.

    Args:
      start: the state before the run, a pytree of arrays.
      is_done: `(row, state) -> bool`, whether the state has done what the row is of.
      check: raises `ValueError` on a row that is not as expected.
    """

    def checked(row: Row) -> None:
        fields.check(row, {}, {"seconds": fields.NUMBER})
        check(row)

    def load(folder: RunDir) -> tuple[list[Row], Any]:
        file = folder.path / STATE
        if not file.exists():
            return [], start
        try:
            last = arrays.load_leaves(file, start)
            return [row for row in folder.rows(checked) if is_done(row, last)], last
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"--resume: {error} Start again with --overwrite."
            ) from None

    def save(folder: RunDir, last: Any) -> None:
        arrays.save_leaves(folder.path / STATE, last)

    return Store(load, _replaced, save, rows_first=True)

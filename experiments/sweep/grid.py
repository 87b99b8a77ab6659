"""Grid files: a sweep as TOML, expanded to the settings of a cell for each combination.

    model = "lenet"                                # a setting of reconstruct, fixed
    batch_size = [1, 4]                            # a list is an axis
    seed = {range = [0, 3]}                        # 0, 1, 2; a third number: the step
    attack_lr = {linear = [0.01, 0.05], n = 5}     # n values, evenly, ends included
    total_variation = {log = [1e-4, 1e-1], n = 4}  # geometrically
    defense = ["none", ["clip:1", "sign"], {prune = [0.5, 0.9]}]  # in order; strengths
    [[grid]]                                       # optional, any number of these: the
    attack = "auto"                                # sweep is their union, each with the
                                                   # keys above, over which its own win

Errors are one-line `ValueError`s: file, line, setting, its value and what is right.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from experiments.settings.settings import RULES, Settings, resolve, values
from experiments.settings.victim import OURS, is_own
from experiments.sweep.axes import Axis, axis_of, check, listed, wrong
from invertjax.cli import fields, setting

MOST = 100_000  # cells that are expanded


class Grid(NamedTuple):
    """cells: distinct settings in the order of the file, last axis fastest.

    axes: setting -> its values over the cells, in order of appearance, of those that
      the file or the command line sets and that take several. None: does not apply.
    merged: how many combinations came to the settings of a cell that was there already.
    """

    cells: list[Settings]
    axes: dict[str, list]
    merged: int


class TooMany(ValueError):
    """cells: the number of combinations, > MOST; first: the settings of the first."""

    def __init__(self, path: str, cells: int, first: Settings):
        super().__init__(f"{path}: {cells} combinations, expected at most {MOST}.")
        self.cells, self.first = cells, first


def read(
    path: str, given: Mapping[str, Any] | None = None, apart: tuple[str, ...] = ()
) -> Grid:
    """Returns the cells of a grid file.

    Args:
      path: of a TOML file.
      given: settings that replace the file's in all of its grids; None is not given.
        A model of the reader's own also takes the place of what the file says of its
        models' layers.
      apart: tables of the file that are read by others.

    Raises:
      TooMany: more than MOST combinations; they were counted, not made.
      ValueError: a file, a setting or a combination that cannot be.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    for name, value in given.items():
        check(name, value)
    fixed = {name: listed([value]) for name, value in given.items()}
    left = OURS if is_own(given.get("model")) else ()
    grids = [
        {name: axis for name, axis in table.items() if name not in left} | fixed
        for table in _tables(path, apart)
    ]
    names = list(dict.fromkeys(name for grid in grids for name in grid))
    varied = [name for name in names if _varies(name, grids)]
    size = sum(math.prod(axis.size for axis in grid.values()) for grid in grids)
    if size > MOST:
        first = {name: axis.at(0) for name, axis in grids[0].items()}
        raise TooMany(path, size, _cell(path, varied, first))
    combinations = itertools.chain.from_iterable(map(_combinations, grids))
    cells = list(dict.fromkeys(_cell(path, varied, one) for one in combinations))
    return Grid(cells, _axes(names, cells), size - len(cells))


def _axes(names: list[str], cells: list[Settings]) -> dict[str, list]:
    """Returns the values of every setting that takes several."""
    by_cell = list(map(values, cells))
    found = {name: list(dict.fromkeys(one[name] for one in by_cell)) for name in names}
    return {name: several for name, several in found.items() if len(several) > 1}


def _varies(name: str, grids: list[dict[str, Axis]]) -> bool:
    """Whether a setting tells combinations apart."""
    axes = [grid.get(name, listed([None])) for grid in grids]
    return len({axis.at(0) for axis in axes}) > 1 or any(a.size > 1 for a in axes)


def _combinations(grid: dict[str, Axis]) -> Iterator[dict[str, Any]]:
    every = [[axis.at(i) for i in range(axis.size)] for axis in grid.values()]
    return (dict(zip(grid, one, strict=True)) for one in itertools.product(*every))


def _cell(path: str, varied: list[str], given: dict[str, Any]) -> Settings:
    try:
        return resolve(given)
    except ValueError as error:
        said = {n: setting.shown(RULES[n], given[n]) for n in varied if n in given}
        place = ", ".join(f"{name}={text or 'none'}" for name, text in said.items())
        raise ValueError(f"{path}: {place}{': ' if place else ''}{error}") from None


def _tables(path: str, apart: tuple[str, ...]) -> list[dict[str, Axis]]:
    """Returns each grid of a file with the shared keys, in the order of the file."""
    text, shared = fields.toml(path)
    grids, _ = shared.pop("grid", [{}]), [shared.pop(key, None) for key in apart]
    if not (isinstance(grids, list) and grids and all(type(g) is dict for g in grids)):
        expected = "one [[grid]] or more, tables of settings"
        error = wrong("grid", grids, expected)
        raise ValueError(f"{_where(path, text, 'grid', -1)}{error}")
    above = _table(path, text, shared, -1)
    return [above | _table(path, text, grid, i) for i, grid in enumerate(grids)]


def _table(path: str, text: str, table: dict[str, Any], place: int) -> dict[str, Axis]:
    axes = {}
    for name, value in table.items():
        try:
            axes[name] = axis_of(name, value)
        except ValueError as error:
            raise ValueError(f"{_where(path, text, name, place)}{error}") from None
    return axes


def _where(path: str, text: str, key: str, place: int) -> str:
    """Returns `path:line: ` of a key above the grids (place -1) or in grid `place`."""
    name = rf"""["']?{re.escape(key)}["']?"""
    written = re.compile(rf"[\[\s]*(grid\s*\.\s*)?{name}\s*[=.\]]")
    lines: dict[int, int] = {}
    current = -1
    for number, line in enumerate(text.split("\n"), 1):
        current += bool(re.match(r"\s*\[\[\s*grid\s*\]\]", line))
        if written.match(line):
            lines.setdefault(current, number)
    # A table written inline has no header that says which one it is.
    found = lines.get(place) or next(iter(lines.values()), None)
    return f"{path}:{found}: " if found else f"{path}: "

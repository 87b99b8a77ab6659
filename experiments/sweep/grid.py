"""Grid files: a sweep as TOML, expanded to one resolved `Config` a combination.

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

import bisect
import itertools
import json
import math
import pathlib
import re
import tomllib
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.settings import checks
from experiments.settings.config import Config, resolve
from invertjax.cli.near import near

MOST = 100_000  # cells that are expanded
_ALL_CHECKED = 1_000  # values of an axis; of a longer one its ends

_OF_UPDATES = ("update", "params", "loss", "image_shape", "num_classes")
_REFUSED = dict.fromkeys(_OF_UPDATES, "a given update has no axes") | {
    "checkpoint": "one file cannot hold the network of every cell",
    "null_control": "it is the control of a single run",
}
_EXPECTED = {
    str: "a string in quotes, or a list of them",
    int: "a whole number, a list of them, or a range table",
    float: "a finite number, a list of them, or a range table",
    bool: "true or false, or a list of them",
}
_RANGES = {
    "range": "{range = [FIRST, STOP]}, or with a third, STEP, not 0; whole numbers",
    "linear": "{linear = [LOW, HIGH], n = N}, N a whole number >= 1",
    "log": "{log = [LOW, HIGH], n = N}, ends > 0, N a whole number >= 1",
}
_DEFENSE = '"none", "NAME:VALUE", a list of these, or {NAME = VALUES}'

# `int` of `int | None`; tuples are not looked up
_HINTS = typing.get_type_hints(Config)
_TYPES = {name: (*typing.get_args(h), h)[0] for name, h in _HINTS.items()}


class Grid(NamedTuple):
    """cells: distinct resolved configs in the order of the file, last axis fastest.

    axes: setting -> its values over the cells, in order of appearance, of those that
      the file or the command line sets and that take several. None: does not apply.
    merged: how many combinations resolved to a config that was there already.
    """

    cells: list[Config]
    axes: dict[str, list]
    merged: int


class TooMany(ValueError):
    """cells: the number of combinations, > MOST; first: the first, resolved."""

    def __init__(self, path: str, cells: int, first: Config):
        super().__init__(f"{path}: {cells} combinations, expected at most {MOST}.")
        self.cells, self.first = cells, first


class Axis(NamedTuple):
    """Values that are counted before they are made: `at(i)` for i in [0, size)."""

    size: int
    at: Callable[[int], Any]


def read(path: str, given: dict | None = None, apart: tuple[str, ...] = ()) -> Grid:
    """The cells of a grid file.

    Args:
      path: of a TOML file.
      given: settings that replace the file's in all of its grids; None is not given.
      apart: tables of the file that are read by others.

    Raises:
      TooMany: more than MOST combinations; they were counted, not made.
      ValueError: a file, a setting or a combination that cannot be.
    """
    given = {key: value for key, value in (given or {}).items() if value is not None}
    for key, value in given.items():
        _check(key, value)
    fixed = {key: _listed([value]) for key, value in given.items()}
    grids = [table | fixed for table in _tables(path, apart)]
    settings = dict.fromkeys(name for grid in grids for name in grid)
    names = [name for name in settings if _varies(name, grids)]
    size = sum(math.prod(axis.size for axis in grid.values()) for grid in grids)
    if size > MOST:
        first = {key: axis.at(0) for key, axis in grids[0].items()}
        raise TooMany(path, size, _cell(path, names, first))
    combinations = itertools.chain.from_iterable(map(_combinations, grids))
    cells = list(dict.fromkeys(_cell(path, names, one) for one in combinations))
    values = {name: dict.fromkeys(getattr(c, name) for c in cells) for name in settings}
    axes = {name: list(several) for name, several in values.items() if len(several) > 1}
    return Grid(cells, axes, size - len(cells))


def _varies(name, grids):
    """Whether a setting tells combinations apart."""
    axes = [grid.get(name, _listed([None])) for grid in grids]
    return len({axis.at(0) for axis in axes}) > 1 or any(a.size > 1 for a in axes)


def _combinations(grid):
    values = [[axis.at(i) for i in range(axis.size)] for axis in grid.values()]
    return (dict(zip(grid, one, strict=True)) for one in itertools.product(*values))


def _cell(path, names, settings):
    try:
        return resolve(Config(**settings))
    except ValueError as error:
        said = settings | {"defense": ",".join(settings.get("defense", ())) or "none"}
        place = ", ".join(f"{name}={said[name]}" for name in names if name in settings)
        raise ValueError(f"{path}: {place}{': ' if place else ''}{error}") from None


def _tables(path, apart) -> list[dict[str, Axis]]:
    """Each grid of a file with the shared keys, in the order of the file."""
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
        shared = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", error)
        raise ValueError(f"{path}: {reason}; expected a TOML file in UTF-8.") from None
    grids, _ = shared.pop("grid", [{}]), [shared.pop(key, None) for key in apart]
    if not (isinstance(grids, list) and grids and all(type(g) is dict for g in grids)):
        wrong = _wrong("grid", grids, "one [[grid]] or more, tables of settings")
        raise ValueError(f"{_where(path, text, 'grid', -1)}{wrong}")
    above = _table(path, text, shared, -1)
    return [above | _table(path, text, grid, i) for i, grid in enumerate(grids)]


def _table(path, text, table, place):
    axes = {}
    for key, value in table.items():
        try:
            axes[key] = _setting(key, value)
        except ValueError as error:
            raise ValueError(f"{_where(path, text, key, place)}{error}") from None
    return axes


def _where(path, text, key, place):
    """`path:line: ` of a key above the grids (place -1) or in grid `place`."""
    name = rf"""["']?{re.escape(key)}["']?"""
    written = re.compile(rf"[\[\s]*(grid\s*\.\s*)?{name}\s*[=.\]]")
    lines, current = {}, -1
    for number, line in enumerate(text.split("\n"), 1):
        current += bool(re.match(r"\s*\[\[\s*grid\s*\]\]", line))
        if written.match(line):
            lines.setdefault(current, number)
    # A table written inline has no header that says which one it is.
    line = lines.get(place) or next(iter(lines.values()), None)
    return f"{path}:{line}: " if line else f"{path}: "


def _setting(key, value) -> Axis:
    """The checked axis of a setting; of size 1 where it is fixed."""
    if key not in _TYPES:
        close = near(key, [*_TYPES, "grid"])
        raise _wrong(key, value, "a setting of experiments.reconstruct", close)
    if key in _REFUSED:
        return _checked(key, _listed([value]))
    if key == "defense":
        return _either([_defense(item) for item in _items(key, value)])
    return _checked(key, _values(key, value, _TYPES[key]))


def _checked(key, axis):
    """Refuses what is wrong with a value on its own, where its line is known."""
    for i in range(axis.size) if axis.size <= _ALL_CHECKED else (0, axis.size - 1):
        _check(key, axis.at(i))
    return axis


def _check(key, value):
    if key in _REFUSED:
        raise ValueError(f"--{key}={value} does not fit a sweep: {_REFUSED[key]}.")
    alone = Config(**{key: value})
    checks.choices(alone)
    checks.ranges(alone)


def _values(key, value, kind) -> Axis:
    if isinstance(value, dict) and kind in (int, float):
        return _ranged(key, value, kind)
    return _listed([_typed(key, one, kind) for one in _items(key, value)])


def _items(key, value):
    if value == []:
        raise _wrong(key, value, "at least one value")
    return value if isinstance(value, list) else [value]


def _typed(key, value, kind) -> Any:
    if kind is float and (_is_whole(value) or type(value) is float):
        value = float(value)
    right = _is_whole(value) if kind is int else type(value) is kind
    if not right or (kind is float and not math.isfinite(value)):
        raise _wrong(key, value, _EXPECTED[kind])
    return value


def _is_whole(value):
    """Whether it is a TOML integer, of 64 bits; to Python, true is an int as well."""
    return type(value) is int and -(2**63) <= value < 2**63


def _ranged(key, table, kind) -> Axis:
    """The axis of a range table, without its values."""
    for name in table:
        if name not in (*_RANGES, "n"):
            raise _wrong(key, table, "range, linear or log", near(name, _RANGES))
    name = next((name for name in _RANGES if name in table), "linear")
    steps = name == "range"
    ends, n = table.get(name), table.get("n", 1)
    right = set(table) == ({name} if steps else {name, "n"})
    right &= isinstance(ends, list) and len(ends) in ((2, 3) if steps else (2,))
    if not (right and _is_whole(n) and n >= 1):
        raise _wrong(key, table, _RANGES[name])
    ends = [_typed(key, end, int if steps else kind) for end in ends]
    if (name == "log" and min(ends) <= 0) or ends[2:] == [0]:
        raise _wrong(key, table, _RANGES[name])
    if not steps:
        return Axis(n, _spaced(ends, n, kind, name == "log"))
    first, stop, step = (*ends, 1)[:3]
    size = -((first - stop) // step)  # rounded up
    if size < 1:
        raise _wrong(key, table, "a range that is not empty: it ends before STOP")
    return Axis(size, lambda i: kind(first + i * step))


def _spaced(ends, n, kind, log):
    """`i -> value`: the ends as they are, the others as one writes them, 12 digits."""
    low, high = ends

    def at(i):
        if i in (0, n - 1):
            return high if i else low
        share = i / (n - 1)
        mean = (1 - share) * low + share * high
        value = low ** (1 - share) * high**share if log else mean
        return round(value) if kind is int else float(f"{value:.12g}")

    return at


def _defense(item) -> Axis:
    """An axis of tuples of `NAME:VALUE`, of size 1 unless there is one of strengths."""
    if isinstance(item, dict) and len(item) == 1:
        ((name, values),) = item.items()
        strengths = _values(f"defense.{name}", values, float)

        def at(i):  # not clip:1.0, which would be a config other than that of clip:1
            return (f"{name}:{strengths.at(i)!r}".removesuffix(".0"),)

        return _checked("defense", Axis(strengths.size, at))
    texts = tuple(text for text in _items("defense", item) if text != "none")
    if not all(isinstance(text, str) for text in texts):
        raise _wrong("defense", item, _DEFENSE)
    return _checked("defense", _listed([texts]))


def _listed(values) -> Axis:
    return Axis(len(values), values.__getitem__)


def _either(axes) -> Axis:
    """The values of one axis after those of another."""
    ends = list(itertools.accumulate(axis.size for axis in axes))

    def at(i):
        place = bisect.bisect_right(ends, i)
        return axes[place].at(i - (ends[place - 1] if place else 0))

    return Axis(ends[-1], at)


def _wrong(key, value, expected, close=""):
    text = f"{json.dumps(value, default=str):.60}"  # enough to find it
    return ValueError(f"{key} = {text}: expected {expected}{close or '.'}")

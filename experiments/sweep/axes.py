"""What a line of a grid file says: the values of a setting, counted before they are
made.

Errors are one-line `ValueError`s: setting, its value and what is right.
"""

import bisect
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.settings.settings import RULES
from invertjax.cli import setting
from invertjax.cli.near import near

_ALL_CHECKED = 1_000  # values of an axis; of a longer one its ends

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
_TEXTS = '"none", "NAME:VALUE", a list of these, or {NAME = VALUES}'


class Axis(NamedTuple):
    """Values that are counted before they are made: `at(i)` for i in [0, size)."""

    size: int
    at: Callable[[int], Any]


def listed(values: Sequence[Any]) -> Axis:
    """Returns the axis of values that are there."""
    return Axis(len(values), values.__getitem__)


def axis_of(name: str, value: Any) -> Axis:
    """Returns the axis of a setting, from its value in TOML; of size 1 where it is one.

    Raises:
      ValueError: where there is no such setting, where a sweep cannot vary it, or where
        one of the values cannot be.
    """
    if name not in RULES:
        close = near(name, [*RULES, "grid"])
        raise wrong(name, value, "a setting of experiments.reconstruct", close)
    rule = RULES[name]
    if rule.fixed:
        return _checked(name, listed([value]))
    if rule.many:
        return _either([_texts(name, rule, item) for item in _items(name, value)])
    return _checked(name, _values(name, value, rule.kind))


def check(name: str, value: Any) -> None:
    """Raises ValueError where a sweep cannot have a value, whatever the others are."""
    rule = RULES[name]
    if rule.fixed:
        raise ValueError(f"--{name}={value} does not fit a sweep: {rule.fixed}.")
    setting.check(name, rule, value)


def wrong(name: str, value: Any, expected: str, close: str = "") -> ValueError:
    """Returns the error of a value in TOML; close: a name that was meant, perhaps."""
    text = f"{json.dumps(value, default=str):.60}"  # enough to find it
    return ValueError(f"{name} = {text}: expected {expected}{close or '.'}")


def _checked(name: str, axis: Axis) -> Axis:
    """Refuses what is wrong with a value on its own, where its line is known."""
    for i in range(axis.size) if axis.size <= _ALL_CHECKED else (0, axis.size - 1):
        check(name, axis.at(i))
    return axis


def _values(name: str, value: Any, kind: type) -> Axis:
    if isinstance(value, dict) and kind in (int, float):
        return _ranged(name, value, kind)
    return listed([_typed(name, one, kind) for one in _items(name, value)])


def _items(name: str, value: Any) -> list:
    if value == []:
        raise wrong(name, value, "at least one value")
    return value if isinstance(value, list) else [value]


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and (_is_whole(value) or type(value) is float):
        value = float(value)
    right = _is_whole(value) if kind is int else type(value) is kind
    if not right or (kind is float and not math.isfinite(value)):
        raise wrong(name, value, _EXPECTED[kind])
    return value


def _is_whole(value: Any) -> bool:
    """Whether it is a TOML integer, of 64 bits; to Python, true is an int as well."""
    return type(value) is int and -(2**63) <= value < 2**63


def _ranged(name: str, table: dict, kind: type) -> Axis:
    """Returns the axis of a range table, without its values."""
    for key in table:
        if key not in (*_RANGES, "n"):
            raise wrong(name, table, "range, linear or log", near(key, _RANGES))
    shape = next((key for key in _RANGES if key in table), "linear")
    steps = shape == "range"
    ends: Any = table.get(shape)
    n = table.get("n", 1)
    right = set(table) == ({shape} if steps else {shape, "n"})
    right &= isinstance(ends, list) and len(ends) in ((2, 3) if steps else (2,))
    if not (right and _is_whole(n) and n >= 1):
        raise wrong(name, table, _RANGES[shape])
    ends = [_typed(name, end, int if steps else kind) for end in ends]
    if (shape == "log" and min(ends) <= 0) or ends[2:] == [0]:
        raise wrong(name, table, _RANGES[shape])
    if not steps:
        return Axis(n, _spaced(ends, n, kind, shape == "log"))
    first, stop, step = (*ends, 1)[:3]
    size = -((first - stop) // step)  # rounded up
    if size < 1:
        raise wrong(name, table, "a range that is not empty: it ends before STOP")
    return Axis(size, lambda i: kind(first + i * step))


def _spaced(ends: list, n: int, kind: type, log: bool) -> Callable[[int], Any]:
    """Returns `i -> value`: the ends as they are, the others as one writes them, with
    12 digits."""
    low, high = ends

    def at(i: int) -> Any:
        if i in (0, n - 1):
            return high if i else low
        share = i / (n - 1)
        mean = (1 - share) * low + share * high
        value = low ** (1 - share) * high**share if log else mean
        return round(value) if kind is int else float(f"{value:.12g}")

    return at


def _texts(name: str, rule: setting.Rule, item: Any) -> Axis:
    """Returns an axis of tuples that are read from `NAME:VALUE` each, of size 1 unless
    the item is a table of strengths."""
    read_one = rule.read or str
    if isinstance(item, dict) and len(item) == 1:
        ((key, values),) = item.items()
        strengths = _values(f"{name}.{key}", values, float)

        def at(i: int) -> tuple:  # not clip:1.0: its cell would not be that of clip:1
            return (read_one(f"{key}:{strengths.at(i)!r}".removesuffix(".0")),)

        return _checked(name, Axis(strengths.size, at))
    texts = [text for text in _items(name, item) if text != "none"]
    if not all(isinstance(text, str) for text in texts):
        raise wrong(name, item, _TEXTS)
    return _checked(name, listed([tuple(map(read_one, texts))]))


def _either(axes: list[Axis]) -> Axis:
    """Returns the axis of the values of one axis after those of another."""
    ends = list(itertools.accumulate(axis.size for axis in axes))

    def at(i: int) -> Any:
        place = bisect.bisect_right(ends, i)
        return axes[place].at(i - (ends[place - 1] if place else 0))

    return Axis(ends[-1], at)

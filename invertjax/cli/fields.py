"""JSON, and TOML, that others may have written or damaged: read, and checked field by
field.

A table of fields says what each has to be. What is wrong is a reason of one line;
whoever reads a file puts its name before it.
"""

import functools
import json
import pathlib
import stat
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, cast

from invertjax.reports import text

_MOST = 2**63  # of counts
_LARGEST = 1e150  # of numbers: sums of their squares are finite
_SHOWN = 60  # characters of a value in a message


class Kind(NamedTuple):
    """A kind of value: its name in words, and a check whether a value is of it."""

    words: str
    holds: Callable[[Any], bool]


Fields = Mapping[str, Kind]
NO_FIELDS: Fields = {}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_decibels(value: Any) -> bool:
    return _is_number(value) and abs(value) <= 1000


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _of(kind: type) -> Callable[[Any], bool]:
    return functools.partial(_is_of, kind)


def _is_of(kind: type, value: Any) -> bool:
    return isinstance(value, kind)


NUMBER = Kind("a number", _is_number)
SHARE = Kind("a number, 0 to 1", _is_share)
DECIBELS = Kind("dB, -1000 to 1000", _is_decibels)
COUNT = Kind("a whole number, 0 or more", _is_count)
TEXT = Kind("a text", _of(str))
LINE = Kind("a line of text", _is_line)
FLAG = Kind("true or false", _of(bool))
ANY = Kind("of any kind", _of(object))


def one_of(*values: str) -> Kind:
    """Returns the kind of a text that is one of a few."""
    return Kind(f"one of {', '.join(values)}", values.__contains__)


def nullable(kind: Kind) -> Kind:
    """Returns the kind of what may be null instead."""

    def holds(value: Any) -> bool:
        return value is None or kind.holds(value)

    return Kind(f"{kind.words}, or null", holds)


def listed(kind: Kind, *sizes: int) -> Kind:
    """Returns the kind of a list; sizes: those that it may have, by default any."""

    def holds(value: Any) -> bool:
        if not isinstance(value, list):
            return False
        items = cast("list[Any]", value)
        return (not sizes or len(items) in sizes) and all(map(kind.holds, items))

    count = f" of {' or '.join(map(str, sizes))}" if sizes else ""
    return Kind(f"a list{count}, each {kind.words}", holds)


def table(kind: Kind) -> Kind:
    """Returns the kind of an object all of whose values are of a kind."""

    def holds(value: Any) -> bool:
        found = cast("dict[str, Any]", value)
        return isinstance(value, dict) and all(map(kind.holds, found.values()))

    return Kind(f"an object, each value {kind.words}", holds)


def check(
    found: Mapping[str, Any], needed: Fields, optional: Fields = NO_FIELDS
) -> None:
    """Refuses an object whose fields are missing, or of another kind.

    Args:
      found: the object; fields that are in neither table may be anything.
      needed: fields that it has to have.
      optional: fields that it may have.

    Raises:
      ValueError: naming the first field that is wrong, and what is right.
    """
    for name, kind in needed.items():
        if name not in found:
            raise ValueError(f"no {name!r}, expected {kind.words}")
    for name, kind in {**needed, **optional}.items():
        if name in found and not kind.holds(found[name]):
            raise ValueError(
                f"{name!r} is {shown(found[name], repr)}, expected {kind.words}"
            )


def any_row(found: Mapping[str, Any]) -> None:
    """Accepts every object as a row."""
    del found


def shown(value: Any, form: Callable[[Any], str] = str) -> str:
    """Returns the beginning of any value, in one line that a terminal can show."""
    try:
        return text.printable(form(value)[:_SHOWN])
    except (RecursionError, ValueError):  # nested too deep; more digits than are shown
        return f"a {type(value).__name__}"


def content(file: pathlib.Path) -> bytes:
    """Returns the bytes of a regular file: to open or read anything else may never end.

    Raises:
      ValueError: the reason why there are none.
    """
    try:
        check_regular(file)
        return file.read_bytes()
    except OSError as error:
        raise ValueError(str(error.strerror)) from None


def check_regular(file: pathlib.Path) -> None:
    """Refuses what is no file, such as a pipe, which nobody may ever write to.

    Raises:
      ValueError: if it is something else.
      OSError: if it is not there.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("not a regular file")


def parsed(written: bytes) -> Any:
    """Returns what JSON in UTF-8 says; numbers that are not finite are none.

    Raises:
      ValueError: what is wrong with it.
    """
    try:
        # The default reads `NaN`, and takes 1e999 for infinity.
        return json.loads(
            written.decode(), parse_constant=_refused, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if abs(number) < float("inf") else _refused(shown(digits))


def read(
    file: pathlib.Path, needed: Fields = NO_FIELDS, optional: Fields = NO_FIELDS
) -> dict[str, Any]:
    """Returns the JSON object of a file.

    Args:
      file: its path.
      needed, optional: see `check`.

    Raises:
      ValueError: the reason, without the file's name.
    """
    found = parsed(content(file))
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    kept = cast("dict[str, Any]", found)
    check(kept, needed, optional)
    return kept


def toml(path: str) -> tuple[str, dict[str, Any]]:
    """Returns the text of a TOML file, and what it says.

    Raises:
      ValueError: naming the file, and what is wrong with it.
    """
    try:
        written = content(pathlib.Path(path)).decode("utf-8-sig")
        return written, tomllib.loads(written)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; expected a TOML file in UTF-8.") from None

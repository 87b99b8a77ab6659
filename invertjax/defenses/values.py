"""Readers of the values of defenses: `text -> value`, None where it is out of range."""

import math
from collections.abc import Callable

from invertjax.defenses.ats import ats


def number(accepts: Callable[[float], bool]) -> Callable[[str], float | None]:
    """Returns a reader of one number in a range."""

    def read(text: str) -> float | None:
        try:
            value = float(text)
        except ValueError:
            return None
        return value if accepts(value) else None

    return read


def whole(least: int) -> Callable[[str], int | None]:
    """Returns a reader of one whole number."""

    def read(text: str) -> int | None:
        return int(text) if text.isdecimal() and int(text) >= least else None

    return read


def numbers(*accepts: Callable[[float], bool], defaults: tuple) -> Callable:
    """Returns a reader of as many numbers as there are ranges, separated by commas; the
    last ones have defaults."""

    def read(text: str) -> tuple | None:
        given = text.split(",")
        if len(given) > len(accepts):
            return None
        found = [
            number(range_)(part) for range_, part in zip(accepts, given, strict=False)
        ]
        found += defaults[len(defaults) - len(accepts) + len(given) :]
        return None if None in found or len(found) < len(accepts) else tuple(found)

    return read


def policy(text: str) -> str | None:
    """Reads the transformations of `ats`."""
    try:
        ats(lambda params, batch, key: params, text)
    except ValueError:
        return None
    return text


def positive(value: float) -> bool:
    return 0 < value < math.inf


def not_negative(value: float) -> bool:
    return 0 <= value < math.inf


def share(value: float) -> bool:
    return 0 <= value < 1


def bits(value: float) -> bool:
    return value.is_integer() and 2 <= value <= 32

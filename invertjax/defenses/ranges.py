"""Range checks of strengths that are known when a defense is built."""

import operator
from typing import SupportsIndex

import jax
import numpy as np


def check(
    name: str,
    value: jax.typing.ArrayLike,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
) -> None:
    """Checks the range of a number; JAX's arrays, traced or not, pass unchecked.

    Raises:
      ValueError: naming argument, value and range; NaN is in no range.
    """
    if not isinstance(value, (int, float, np.number)):
        return
    if above is not None and not value > above:
        raise ValueError(f"Expected {name}={value} > {above}.")
    if at_least is not None and not value >= at_least:
        raise ValueError(f"Expected {name}={value} >= {at_least}.")
    if at_most is not None and not value <= at_most:
        raise ValueError(f"Expected {name}={value} <= {at_most}.")


def whole(
    name: str,
    value: SupportsIndex,
    *,
    at_least: int,
    at_most: SupportsIndex | None = None,
) -> int:
    """Returns a whole number of any integer type, NumPy's too, as Python's.

    Raises:
      ValueError: naming argument, value and range; on a fraction, and on any float.
    """
    try:
        found = operator.index(value)
        most = None if at_most is None else operator.index(at_most)
    except TypeError:
        raise ValueError(f"Expected {name}={value} to be a whole number.") from None
    check(name, found, at_least=at_least, at_most=most)
    return found

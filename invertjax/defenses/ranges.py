"""Range checks of strengths that are known when a defense is built."""

import jax


def check(
    name: str,
    value: jax.typing.ArrayLike,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
) -> None:
    """Checks the range of a Python number; arrays, traced or not, pass unchecked.

    Raises:
      ValueError: naming argument, value and range; NaN is in no range.
    """
    if not isinstance(value, (int, float)):
        return
    if above is not None and not value > above:
        raise ValueError(f"Expected {name}={value} > {above}.")
    if at_least is not None and not value >= at_least:
        raise ValueError(f"Expected {name}={value} >= {at_least}.")
    if at_most is not None and not value <= at_most:
        raise ValueError(f"Expected {name}={value} <= {at_most}.")

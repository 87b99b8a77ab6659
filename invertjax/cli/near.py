"""Finds what somebody who mistyped a name may have meant."""

import difflib
from collections.abc import Iterable


def near(value: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" where an allowed value is spelled alike, else "".

    It is the end of an error message: `f"expected one of {names}{near(value, names)}"`.
    """
    close = difflib.get_close_matches(value, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

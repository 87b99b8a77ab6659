"""Near misses, for error messages."""

import difflib
from collections.abc import Iterable


def near(value: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something allowed is spelled alike, else nothing."""
    close = difflib.get_close_matches(value, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

"""Says in an error message how much time or memory a large setting would take."""

from collections.abc import Callable

HOUR, YEAR = 3600.0, 365.25 * 24 * 3600.0
_UNITS = ("GB", "TB", "PB", "EB")


def seconds(each: float) -> Callable[[float], str]:
    """Returns `count -> words` for an estimate of time: `count` times these seconds."""

    def words(count: float) -> str:
        time = each * count
        some = f"{time / HOUR:.3g} hours" if time < YEAR else f"{time / YEAR:.3g} years"
        return f"that takes {some} or more"

    return words


def memory(bytes_of: Callable[[float], float]) -> Callable[[float], str]:
    """Returns `count -> words` for an estimate of memory: `count -> bytes` in words."""

    def words(count: float) -> str:
        return f"that takes {size(bytes_of(count))} or more"

    return words


def size(count: float) -> str:
    """Returns bytes with three digits, in the unit that fits."""
    count /= 1e9
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_UNITS[-1]}"

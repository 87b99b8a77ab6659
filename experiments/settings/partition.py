"""Who holds which examples, as a flag has it."""

from typing import NamedTuple


class Partition(NamedTuple):
    """Who holds which examples.

    name: iid, dirichlet or by_class. value: the concentration, or the shards that a
    client holds; None of iid. label: the text as it was typed.
    """

    name: str
    value: float | int | None = None
    label: str = "iid"

    def __str__(self) -> str:
        return self.label


_VALUES = {"dirichlet": float, "by_class": int}


def read(text: str) -> Partition:
    """Reads --partition.

    Raises:
      ValueError: naming the flag, its text and what is right.
    """
    name, _, value = text.partition(":")
    if name == "iid" and not value:
        return Partition(name, None, text)
    try:
        number = _VALUES[name](value)
    except (KeyError, ValueError):
        number = 0
    if not 0 < number < float("inf"):
        raise ValueError(
            f"--partition={text}: expected iid, dirichlet:CONCENTRATION or "
            "by_class:CLASSES, numbers above 0."
        )
    return Partition(name, number, text)

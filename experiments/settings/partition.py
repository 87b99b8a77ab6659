"""Who holds which examples of a federation, as a flag says it."""

from typing import NamedTuple

MOST_SHARDS = 10**7  # of all clients together


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


def parse(text: str) -> Partition:
    """Returns the partition that a text says; raises ValueError where it says none."""
    name, _, value = text.partition(":")
    if name == "iid" and not value:
        return Partition(name, None, text)
    try:
        number = _VALUES[name](value)
    except (KeyError, ValueError):
        number = 0
    if not 0 < number < float("inf"):
        expected = "iid, dirichlet:CONCENTRATION or by_class:CLASSES, numbers above 0"
        raise ValueError(f"--partition={text}: expected {expected}.")
    return Partition(name, number, text)


def check(partition: Partition, clients: int) -> None:
    """Refuses more shards of examples than any data set fills.

    Raises:
      ValueError: naming the flags.
    """
    most = MOST_SHARDS // clients
    if isinstance(partition.value, int) and partition.value > most:
        raise ValueError(
            f"--partition={partition}: expected by_class:{most} at most, with "
            f"--clients={clients}."
        )

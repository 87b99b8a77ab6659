"""Reads `NAME:VALUE` as a protection, at the edge and nowhere else."""

from invertjax.cli.near import near
from invertjax.defenses.protection import Protection
from invertjax.defenses.protections import PROTECTIONS


def parse(text: str) -> Protection:
    """Returns the protection that a `--defense` names.

    Raises:
      ValueError: naming the flag, its value and what is right.
    """
    name, colon, value = text.partition(":")
    if name not in PROTECTIONS:
        raise ValueError(
            f"--defense={text} is unknown: expected one of {', '.join(PROTECTIONS)}"
            f"{near(name, PROTECTIONS)}"
        )
    row = PROTECTIONS[name]
    if row.read is None:
        if colon:
            raise ValueError(f"--defense={text}: expected {name} without a value.")
        return row.protection._replace(label=text)
    found = row.read(value)
    if found is None:
        raise ValueError(f"--defense={text}: expected {name}:VALUE, {row.expected}.")
    return row.protection._replace(value=found, label=text)


def described(sort: str) -> str:
    """Returns the defenses of one sort ("update", "client" or "network"), each with
    what it expects, for a flag's help."""
    return "; ".join(
        f"{name}, {row.expected}"
        for name, row in PROTECTIONS.items()
        if getattr(row.protection, sort)
    )

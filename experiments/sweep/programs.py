"""Which cells of a sweep share a compiled program, and in what portions they run."""

import itertools
from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

from experiments.settings import traced
from experiments.settings.settings import Settings, replaced
from experiments.victims import target

ROWS = 64  # targets in a block, about: what is prepared and claimed at a time


class Block(NamedTuple):
    """Cells of one group that run together. name: of its lease and its part files."""

    name: str
    cells: list[Settings]


class Group(NamedTuple):
    """Cells whose attacks differ in numbers only: one compiled program.

    program: what that depends on, equal for no other group.
    """

    program: Hashable
    cells: list[Settings]

    @property
    def rows(self) -> int:
        return sum(cell.data.targets for cell in self.cells)


def group(cells: Iterable[Settings]) -> list[Group]:
    """Returns groups in order of appearance, each with its cells in their order."""
    found: dict[Hashable, list[Settings]] = {}
    for cell in cells:
        found.setdefault(_program(cell), []).append(cell)
    return list(itertools.starmap(Group, found.items()))


def blocks(number: int, group: Group) -> Iterator[Block]:
    """Yields portions of a group, whose cells share what the program is given once.

    Args:
      number: of the group in its sweep, for their names.
    """
    by_network: dict[Hashable, list[Settings]] = {}
    for cell in group.cells:
        by_network.setdefault(_network(cell), []).append(cell)
    count = itertools.count()
    for cells in by_network.values():
        size = max(1, ROWS // max(cell.data.targets for cell in cells))
        for first in range(0, len(cells), size):
            portion = cells[first : first + size]
            yield Block(f"{number:03d}-{next(count):05d}", portion)


def by_client(cells: Iterable[Settings]) -> list[list[Settings]]:
    """Returns cells whose clients differ in numbers only, in order of appearance."""
    found: dict[Hashable, list[Settings]] = {}
    for cell in cells:
        found.setdefault(_client(cell), []).append(cell)
    return list(found.values())


def _program(cell: Settings) -> Hashable:
    """Returns what the functions and shapes of an attack depend on."""
    return _static(traced.as_attacked(cell)), _statistics(cell)


def _client(cell: Settings) -> Hashable:
    """Returns what the functions and shapes of a client depend on."""
    return _static(cell), _statistics(cell)


def _static(cell: Settings) -> Settings:
    """Returns the settings with one value for all that is an array in programs."""
    data = {"targets": 0, "split": None, "train_split": None, "data_dir": None}
    # Training changes params, which are arrays.
    return replaced(traced.without_numbers(cell), **data, train_steps=0, train_lr=None)


def _statistics(cell: Settings) -> Hashable:
    """Returns whose running statistics are part of the functions, if any are."""
    return target.statistics(cell.data, cell.victim, cell.clients, cell.run)


def _network(cell: Settings) -> Hashable:
    """Returns what is equal for cells that have their params in common.

    One network for all targets is an argument of the program, and not of its rows.
    """
    return None if cell.victim.networks == "per_target" else _identity(cell)


def _identity(cell: Settings) -> Hashable:
    return target.identity(cell.data, cell.victim, cell.clients, cell.run)

"""Which cells of a sweep share a compiled program, and in what portions they run."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.settings import checks, traced
from experiments.settings.config import Config
from experiments.victims import network

ROWS = 64  # targets in a block, about: what is prepared and claimed at a time


class Block(NamedTuple):
    """Cells of one group that run together. name: of its lease and its part files."""

    name: str
    cells: list[Config]


class Group(NamedTuple):
    """Cells whose attacks differ in numbers only: one compiled program."""

    cells: list[Config]

    @property
    def rows(self) -> int:
        return sum(cell.targets for cell in self.cells)


def group(cells: list[Config]) -> list[Group]:
    """Groups in order of appearance, each with its cells in their order."""
    found: dict[Any, list[Config]] = {}
    for cell in cells:
        found.setdefault(_program(cell), []).append(cell)
    return list(map(Group, found.values()))


def blocks(number: int, group: Group) -> Iterator[Block]:
    """Portions of a group; the cells of each share what the program is given once."""
    sorted_cells: dict[Any, list[Config]] = {}
    for cell in group.cells:
        sorted_cells.setdefault(_given_once(cell), []).append(cell)
    count = itertools.count()
    for cells in sorted_cells.values():
        size = max(1, ROWS // max(cell.targets for cell in cells))
        for first in range(0, len(cells), size):
            portion = cells[first : first + size]
            yield Block(f"{number:03d}-{next(count):05d}", portion)


def _program(cell):
    """What the functions and shapes of an attack depend on."""
    return _same(traced.as_attacked(cell), cell)


def by_client(cells: list[Config]) -> list[list[Config]]:
    """Cells whose clients differ in numbers only, in order of appearance."""
    found: dict[Any, list[Config]] = {}
    for cell in cells:
        found.setdefault(client(cell), []).append(cell)
    return list(found.values())


def client(cell: Config) -> Any:
    """Equal for cells whose clients, too, differ in numbers only."""
    return _same(cell, cell)


def _same(config, cell):
    same = traced.without(config)
    if checks.has_batch_norm(cell, cell.model) and cell.norm_mode == "eval":
        return same, network.key(cell)  # running statistics are part of the function
    data: dict[str, Any] = dict(targets=0, split=None, train_split=None, data_dir=None)
    # Training changes params, which are arrays.
    return dataclasses.replace(same, **data, train_steps=0, train_lr=None)


def _given_once(cell):
    """One network for all targets is an argument of the program, not of its rows."""
    return None if cell.networks == "per_target" else network.key(cell)

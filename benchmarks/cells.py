"""What is measured: a cell is one size of problem."""

import re
from typing import NamedTuple


class Cell(NamedTuple):
    """A model, the images of a batch, restarts and targets at once, pixels a side."""

    model: str
    batch: int = 1
    restarts: int = 1
    targets: int = 1
    side: int = 32

    @property
    def trials(self) -> int:
        return self.restarts * self.targets

    @property
    def images(self) -> int:
        """Images that one iteration of all trials moves."""
        return self.batch * self.trials

    @property
    def name(self) -> str:
        """E.g. `convnet5_b1_r8`: what is 1, or 32 pixels, is left out."""
        name = f"{self.model}_b{self.batch}"
        parts = (("r", self.restarts, 1), ("t", self.targets, 1), ("s", self.side, 32))
        return name + "".join(f"_{k}{v}" for k, v, usual in parts if v != usual)


_NAME = re.compile(r"(\w+?)_b(\d+)(?:_r(\d+))?(?:_t(\d+))?(?:_s(\d+))?")


def parse(name: str) -> Cell:
    """The cell of a name.

    Raises:
      ValueError: if `name` is no cell's.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"Expected {name!r} to be a cell, such as lenet_b1_r8.")
    sizes = {
        field: int(text)
        for field, text in zip(Cell._fields[1:], match.groups()[1:], strict=True)
        if text is not None
    }
    return Cell(match[1], **sizes)


MODELS = ("lenet", "cnn", "convnet5", "convnet", "resnet18")
SIZES = (1, 8, 32)
RESTARTS = (1, 8, 64)

QUICK = tuple(map(parse, ("lenet_b1", "lenet_b1_r8", "cnn_b1"))) + tuple(
    map(parse, ("convnet5_b1", "convnet5_b8", "convnet5_b1_r8"))
)


def full(models: tuple[str, ...]) -> tuple[Cell, ...]:
    """Every cell of the given models, small ones before large ones of a model."""
    found = []
    for model in models:
        sizes = [Cell(model, b, r) for b in SIZES for r in RESTARTS]
        sizes += [Cell(model, targets=n) for n in RESTARTS[1:]]
        found += sorted(sizes, key=lambda cell: (cell.images, cell.batch))
        if model == "resnet18":
            found.append(Cell(model, side=224))
    return tuple(found)

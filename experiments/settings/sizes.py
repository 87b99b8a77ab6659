"""What settings take at the least: too much is refused before anything grows."""

import math

from experiments.settings.attack import Attack
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.run import Run
from experiments.settings.saved_update import SavedUpdate
from invertjax.cli import amounts, startup

SIDE = 28  # of the smallest images of data sets in use, in one channel


def check(
    data: Data, attack: Attack, clients: Clients, saved: SavedUpdate, run: Run
) -> None:
    """Refuses images, restarts and steps that this machine cannot hold.

    It counts what the end of an attack has in memory: of every restart of a target the
    images and the objective of every step.

    Raises:
      ValueError: naming the settings, what they need, and what there is.
    """
    side = data.image_size or SIDE
    shape = saved.image_shape or (side, side, 1)
    images = clients.batch_size * math.prod(shape) * (8 if run.x64 else 4)
    restarts, steps = attack.restarts or 1, attack.steps or 0
    needed = restarts * (images + 4 * steps) + (data.targets or 1) * images
    refuse(
        needed,
        f"--restarts={restarts} --batch_size={clients.batch_size} --steps={steps}, for "
        f"images of {shape[0]} x {shape[1]} pixels,",
    )


def refuse(needed: float, named: str) -> None:
    """Raises ValueError where so many bytes are more than this machine has.

    Args:
      named: what needs them, in words, with the flags.
    """
    there = startup.machine_memory()
    if needed > there:
        raise ValueError(
            f"{named} take {amounts.size(needed)} or more, this machine has "
            f"{amounts.size(there)}: expected fewer or smaller ones."
        )

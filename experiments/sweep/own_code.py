"""Models and losses of the reader's own, looked at before any cell of a sweep is."""

from collections.abc import Sequence

from experiments.settings.settings import Settings
from experiments.settings.victim import is_own
from experiments.victims import inputs, network


def check(cells: Sequence[Settings]) -> None:
    """Refuses code that cannot be imported.

    Raises:
      ValueError: naming --model or --loss.
    """
    for victim in dict.fromkeys(cell.victim for cell in cells):
        network.check_code(victim)


def check_models(cells: Sequence[Settings]) -> None:
    """Makes every model of the reader's own for an image of its data.

    Raises:
      ValueError: naming what does not fit, or the data that is not there.
    """
    own = [cell for cell in cells if is_own(cell.victim.model)]
    for data, victim in dict.fromkeys((cell.data, cell.victim) for cell in own):
        network.check_model(victim, *inputs.example(data))

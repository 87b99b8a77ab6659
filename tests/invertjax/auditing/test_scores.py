"""Whether an attack had come to its end when its steps were spent."""

import numpy as np
import pytest

from invertjax.auditing.scores import still_falling
from invertjax.base import Result, Stop


def result(losses, loss, stopped=Stop.BUDGET):
    return Result({}, np.float32(loss), np.array(losses), len(losses), stopped)


@pytest.mark.parametrize(
    "losses, loss, falling",
    [
        (np.linspace(1, 0.1, 20), 0.1, True),  # a twentieth a step
        ([1.0] * 10 + [0.5] * 10, 0.5, False),
        ([1.0] * 10 + [0.5] * 10, 0.48, False),  # less than a twentieth of the best
        ([1.0, 0.9], 0.5, True),
        ([np.inf, np.inf], 0.5, True),  # it has only begun
        ([1.0], 0.5, False),  # of one step nothing can be said
        ([], 0.0, False),  # a closed form
        ([0.1, 1.0, 1.0], 0.1, False),  # the best is old
    ],
)
def test_what_still_falls(losses, loss, falling):
    assert still_falling(result(losses, loss)) is falling
    assert still_falling(result(losses, loss, Stop.PLATEAU)) is False

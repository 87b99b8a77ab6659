"""invertjax: a JAX-accelerated gradient inversion engine.

A client is a function from a batch to an update. A defense changes the update.
An attack runs the client backwards.
"""

from invertjax import (
    attacks as attacks,
)
from invertjax import (
    base as base,
)
from invertjax.base import Result as Result
from invertjax.driver import invert as invert

__version__ = "0.1.0"

"""Local training that is given in epochs: the steps that they come to."""

from collections.abc import Mapping
from typing import Any


def with_local_steps(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns settings with the number of local steps that their epochs come to.

    Args:
      given: settings by name: local_epochs, batch_size and local_batch are read.

    Raises:
      ValueError: where local_steps are given as well, and do not agree.
    """
    epochs = given.get("local_epochs")
    if epochs is None:
        return given
    size = given.get("batch_size", 1)
    batch = given.get("local_batch", size)
    steps, asked = epochs * -(-size // batch), given.get("local_steps")
    if asked not in (None, steps):
        raise ValueError(
            f"--local_steps={asked} does not go with --local_epochs={epochs}, which "
            f"comes to {steps} steps of {batch} of the {size} images: expected one of "
            "the two flags."
        )
    return {**given, "local_steps": steps}

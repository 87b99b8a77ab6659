"""The names by which models take their modes as arguments."""

from collections.abc import Collection, Sequence
from typing import Any

from invertjax.adapters.adapted import Mode

TRAINING = ("train", "training", "is_training", "is_train")
INFERENCE = ("use_running_average", "inference", "is_eval", "eval")


def switches(names: Collection[str], mode: Mode) -> dict[str, Any]:
    """Returns the keyword arguments, of those that a call takes, that set a mode."""
    found: dict[str, Any] = {name: mode.train for name in TRAINING if name in names}
    found |= {name: not mode.train for name in INFERENCE if name in names}
    if "deterministic" in names:
        found["deterministic"] = mode.dropout is None
    return found


def needs_arguments(called: str, names: Sequence[str]) -> ValueError:
    """Returns the error of a model with batch norms whose mode cannot be set."""
    return ValueError(
        f"This model has batch norms: expected {called}({', '.join(names)}) to take "
        "train or is_training, or give arguments=lambda train: {...}, its keyword "
        "arguments in either mode."
    )

"""A loss of the reader's own code, in one of the two forms that `--loss` takes."""

from collections.abc import Callable
from typing import Any

import jax

from experiments.settings.victim import Victim
from invertjax import losses
from invertjax.cli import own_code

Compared = Callable[[Any, Any], jax.Array]  # `(logits, labels) -> []`
FORMS = (
    "beside --model, --loss is (logits, labels) -> scalar; without --model, and with "
    "--update, it is (params, batch) -> scalar"
)


def imported(text: str) -> Callable[..., Any]:
    """Returns the function that `--loss` names.

    Raises:
      ValueError: if it cannot be imported, or is no function.
    """
    found = own_code.imported("loss", text, "function")
    if not callable(found):
        raise ValueError(f"--loss={text} is no function.")
    return found


def compared(victim: Victim) -> Compared:
    """Returns the loss of a model's logits; without `--loss` their cross-entropy."""
    return losses.cross_entropy if victim.loss is None else imported(victim.loss)


def tried(loss_fn: Callable[..., Any], params: Any, batch: Any) -> None:
    """Tries a loss and its gradient on shapes.

    Raises:
      Exception: whatever the reader's own code raises; ValueError if it is no scalar.
    """
    value = jax.eval_shape(loss_fn, params, batch)
    if getattr(value, "shape", None) != ():
        found = jax.tree.map(lambda leaf: leaf.shape, value)
        raise ValueError(f"it returns shape {found}, expected a scalar.")
    jax.eval_shape(jax.grad(loss_fn), params, batch)

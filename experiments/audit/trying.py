"""A model and a loss of the reader's own code, tried on shapes before anything runs."""

from typing import Any

import jax

from experiments.settings.victim import Victim, is_own
from experiments.victims import own_loss
from invertjax.auditing import Target, Threat, clients
from invertjax.auditing.situations import shapes_of_batch
from invertjax.cli.own_model import in_a_line


def check(
    victim: Victim, target: Target, params: Any, threat: Threat, rule: str | None
) -> None:
    """Refuses the reader's own code where the client, or the attacker, cannot use it.

    Args:
      victim: settings; where nothing of them is one's own, nothing is tried.
      target: with the loss.
      params: or their shapes.
      threat: what the attacker is told.
      rule: of the client's derivatives, as `clients.actual` takes it.

    Raises:
      ValueError: naming the flags, and what the code has raised.
    """
    if not (victim.model and (victim.loss or is_own(victim.model))):
        return
    batch = shapes_of_batch(target, Threat("known"))
    _tried(victim, target, params, batch, f" and labels of shape {_shape(batch)}")
    if threat.labels == "joint":
        guess = shapes_of_batch(target, threat)
        words = f" and, with --labels=joint, labels of shape {_shape(guess)}"
        _tried(victim, target, params, guess, words)
    if target.protections:
        key = jax.eval_shape(lambda: jax.random.key(0))
        named = " ".join(f"--defense={one}" for one in target.protections)
        try:
            jax.eval_shape(clients.shared(target, rule), params, batch, key)
        except Exception as error:  # the reader's own code may raise anything
            raise ValueError(
                f"{victim.named} does not go with {named}: {in_a_line(error)}"
            ) from None


def _shape(batch: Any) -> tuple[int, ...]:
    return batch["label"].shape


def _tried(victim: Victim, target: Target, params: Any, batch: Any, words: str) -> None:
    try:
        own_loss.tried(target.loss_fn, params, batch)
    except Exception as error:
        hint = f" ({own_loss.FORMS}.)" if victim.loss else ""
        raise ValueError(
            f"{victim.named} fails on images of shape {batch['image'].shape}{words}: "
            f"{in_a_line(error)}{hint}"
        ) from None

"""Leaves out a network's features at random."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from invertjax import losses
from invertjax.base import Batch, Key, Loss, Params
from invertjax.defenses import ranges


class Dropout(NamedTuple):
    """A loss with dropout; the network itself is evaluated without it.

    loss_fn: `(params, batch) -> []`; reads `batch["kept"]`, `[B, size]` in [0, 1].
    draw: `(key, batch) -> {"kept": 0 or 1 [B, size]}`, for `clients.randomised`.
    """

    loss_fn: Loss
    draw: Callable[[Key, Batch], dict[str, jax.Array]]


def dropout(
    features: Callable[[Params, jax.Array], jax.Array],
    head: Callable[[Params, jax.Array], jax.Array],
    size: int,
    share: jax.typing.ArrayLike,
) -> Dropout:
    """Leaves out every feature of every example with probability `share`.

        loss = cross-entropy(head(features kept / (1 - share)))

    The client draws afresh at every call:

        layer = defenses.dropout(features, head, size, 0.5)
        client = clients.randomised(clients.gradient(layer.loss_fn), layer.draw)

    Srivastava et al. (2014), section 4, scaled in training so that evaluation needs no
    change. As a defense: Scheliga et al. (2023), "Dropout Is NOT All You Need to
    Prevent Gradient Leakage", whose attack optimises the mask with the image, relaxed
    to [0, 1] (`candidates.with_entry`). No guarantee; the rows of the head's weight
    gradient that are zero show, for one image, what was left out.

    Args:
      features: `(params, images) -> [B, size]`.
      head: `(params, [B, size]) -> logits [B, K]`.
      size: units of the features.
      share: `[]`, in [0, 1).

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("size", size, at_least=1)
    ranges.check("share", share, at_least=0)
    rest = 1 - share
    ranges.check("1 - share", rest, above=0)

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        hidden = features(params, batch["image"]) * batch["kept"] / rest
        return losses.cross_entropy(head(params, hidden), batch["label"])

    def draw(key: Key, batch: Batch) -> dict[str, jax.Array]:
        image = batch["image"]
        kept = jax.random.bernoulli(key, rest, (image.shape[0], size))
        return {"kept": kept.astype(image.dtype)}

    return Dropout(loss_fn, draw)

"""A model of any framework, as pure functions over pytrees of arrays."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax import keys, losses
from invertjax.base import Batch, Key, Loss, Params
from invertjax.rewrites.blocks import Chain, cut

Buffers = Any  # pytree of arrays that the loss does not differentiate
TRAIN = "train: the statistics of the client's batch"
EVAL = "eval: the running statistics"


class Mode(NamedTuple):
    """How a model is called.

    train: whether batch norms take the batch's statistics, and move the running ones.
    dropout: key of the units that are dropped; None: none are.
    """

    train: bool
    dropout: Key | None = None


class ModelLoss:
    """The loss of an adapted model, `(params, batch) -> []`, a function.

    Attributes:
      known: lines of the threat model that it fixes, such as "batch_norm".
    """

    def __init__(self, function: Loss, known: dict[str, str]):
        self._function, self.known = function, known

    def __call__(self, params: Params, batch: Batch) -> jax.Array:
        return self._function(params, batch)


class Adapted(NamedTuple):
    """A model as pure functions, with its arrays.

    Attributes:
      framework: its name, for messages.
      params: the model's own weights, what gradients are taken of.
      buffers: the model's own running statistics; a pytree without leaves if there are
        none.
      call: `(params, buffers, inputs, mode) -> (outputs, buffers)`, `inputs` a tuple of
        arrays, the first of them images `[B, H, W, C]`.
      init: `key -> (params, buffers)`: fresh ones, where the model was given as the
        function or class that makes it; else its own, whatever the key.
      fresh: whether `init` makes fresh ones.
      batch_norm: whether it has batch norms.
    """

    framework: str
    params: Params
    buffers: Buffers
    call: Callable[[Params, Buffers, tuple[Any, ...], Mode], tuple[Any, Buffers]]
    init: Callable[[Key], tuple[Params, Buffers]]
    fresh: bool = False
    batch_norm: bool = False

    def apply(
        self, params: Params, buffers: Buffers, images: jax.Array, train: bool
    ) -> tuple[Any, Buffers]:
        """Returns the outputs `[B, K]` and the buffers afterwards, nothing dropped.

        Args:
          params, buffers: as those of `init`.
          images: `[B, H, W, C]`, whatever layout the framework has.
          train: a Python bool; see `Mode`.
        """
        return self.call(params, buffers, (images,), Mode(train))

    def loss(
        self,
        loss: Callable[[Any, Any], jax.Array] = losses.cross_entropy,
        *,
        train: bool | None = None,
        dropout: Key | None = None,
        inputs: Sequence[str] = ("image",),
        target: str = "label",
        has_aux: bool = False,
    ) -> tuple[ModelLoss, Params]:
        """Returns the client's loss `(params, batch) -> []`, and the model's params.

        Args:
          loss: `(outputs, labels) -> []`, e.g. one of `invertjax.losses`.
          train: whether the client's batch norms took the statistics of the batch. An
            attack on an update needs to know, so that a model that has batch norms
            asks; others ignore it.
          dropout: key of the units that the client dropped; by default it drops none.
          inputs: the entries of the batch that the model takes, in its order.
          target: the entry of the batch that `loss` compares with.
          has_aux: whether the model returns `(outputs, auxiliary)`; the loss does not
            see the latter.

        Raises:
          ValueError: if the model has batch norms and `train` is not given.
        """
        if self.batch_norm and train is None:
            raise ValueError(
                f"This {self.framework} model has batch norms: expected train=True, if "
                "the client trained on the statistics of its batch (what frameworks do "
                "in training), or train=False, if on the running statistics."
            )

        def loss_fn(params: Params, batch: Batch) -> jax.Array:
            # The same units at every call, on purpose.
            drops = None if dropout is None else jax.random.clone(keys.typed(dropout))
            mode = Mode(bool(train), drops)
            given = tuple(jnp.asarray(batch[name]) for name in inputs)
            outputs, _ = self.call(params, self.buffers, given, mode)
            return loss(outputs[0] if has_aux else outputs, batch[target])

        known = {}
        if self.batch_norm:
            known["batch_norm"] = TRAIN if train else EVAL
        if dropout is not None:
            known["dropout"] = "the units that the client dropped are known"
        return ModelLoss(loss_fn, known), self.params

    def chain(self, batch: Batch, **options: Any) -> Chain:
        """Returns the model in blocks, from images to outputs, and its loss of them.

        Args:
          batch: as the loss takes it, or its shapes; see `rewrites.blocks.cut`.
          options: of `loss`; the blocks are those of the mode that it is given.

        Raises:
          ValueError: as `loss` does; with the reason, if the model has no blocks.
        """
        return cut(*self.loss(**options), batch)


def own(params: Params, buffers: Buffers) -> Callable[[Key], tuple[Params, Buffers]]:
    """Returns an `init` that gives the model's own arrays."""
    return lambda key: (params, buffers)

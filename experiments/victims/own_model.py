"""A model of the reader's own code as a network, whatever framework it is of.

What `--model=package.module:name` names may also return a `models.Network`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import models
from invertjax.adapters import Adapted
from invertjax.base import Key
from invertjax.cli import own_model
from invertjax.cli.own_model import in_a_line

Shape = tuple[int, ...]
_ALSO = (models.Network,)


class OwnModel(NamedTuple):
    """net: the network. fresh: whether its `init` makes new weights of a key.
    batch_norm: whether it has batch norms."""

    net: models.Network
    fresh: bool
    batch_norm: bool


def imported(text: str) -> Callable[..., Any]:
    """Returns the class or function that `--model` names.

    Raises:
      ValueError: if it cannot be imported, or is no such thing.
    """
    return own_model.imported(text, _ALSO)


def build(text: str, image_shape: Shape, num_classes: int) -> OwnModel:
    """Makes the model for the images and classes of a data set.

    Args:
      text: `package.module:name`.
      image_shape: (H, W, C).
      num_classes: K.

    Raises:
      ValueError: naming --model, if it cannot be made for such images.
    """
    maker = own_model.maker(text, image_shape, num_classes, _ALSO)
    try:
        first = maker.make(jax.random.key(0))
        made = _own(first, maker.make if maker.fresh else None, image_shape[2])
        jax.eval_shape(made.net.init, jax.random.key(0))
    except Exception as error:  # the reader's own code may raise anything
        raise own_model.cannot(text, maker, error) from None
    return made


def check(
    text: str, net: models.Network, image_shape: Shape, num_classes: int | None
) -> None:
    """Refuses a model that cannot be called, or whose outputs are no logits.

    Args:
      text: `package.module:name`.
      net: of `build`.
      image_shape: (H, W, C).
      num_classes: K; None: its outputs are what a loss of the reader's own takes.

    Raises:
      ValueError: naming --model and what it returns.
    """
    named = f"--model={text}"
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)  # as `init` has it

    def outputs(params: Any, buffers: Any, images: jax.Array) -> Any:
        return net.apply(params, buffers, images, True)[0]

    params, buffers = jax.eval_shape(net.init, jax.random.key(0))
    try:
        found = jax.eval_shape(outputs, params, buffers, images)
    except Exception as error:
        raise ValueError(
            f"{named} fails on images of shape {images.shape}: {in_a_line(error)}"
        ) from None
    shape = getattr(found, "shape", None)
    if num_classes is not None and shape != (2, num_classes):
        said = f"shape {shape}" if shape is not None else f"a {type(found).__name__}"
        raise ValueError(
            f"{named} returns {said} for images of shape {images.shape}: expected "
            f"logits of shape {(2, num_classes)}, or --loss=module:function of its "
            "outputs and labels."
        )


def _own(
    first: Adapted | models.Network, again: Callable[[Key], Any] | None, channels: int
) -> OwnModel:
    """Returns a model as a network of pure functions.

    Args:
      first: what was made.
      again: makes another of a key; None: it would be the same.
      channels: of its images.
    """
    if isinstance(first, models.Network):
        buffers = jax.eval_shape(first.init, jax.random.key(0))[1]
        return OwnModel(first, True, bool(jax.tree.leaves(buffers)))
    # The arrays of a PyTorch module are made outside of JAX, and from no key.
    if first.framework == "PyTorch":
        again = None

    def init(key: Key) -> tuple[Any, Any]:
        if first.fresh or again is None:
            return first.init(key)
        made = again(key)
        # Modules of Equinox that were made one after the other differ in structure.
        return _like(first.params, made.params), _like(first.buffers, made.buffers)

    net = models.Network(
        init=init,
        apply=first.apply,
        statistics=None,
        features=None,
        head=None,
        last="",
        blocks=(),  # found in the loss
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
    return OwnModel(net, first.fresh or again is not None, first.batch_norm)


def _like(first: Any, other: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(first), jax.tree.leaves(other))

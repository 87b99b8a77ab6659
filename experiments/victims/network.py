"""Our own networks as targets: the architecture, its losses and its params."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import models
from experiments.settings.victim import Victim
from invertjax import losses
from invertjax.base import Loss
from invertjax.defenses import protection
from invertjax.defenses.protection import Drawn, Parts, Protection, Rebuilt
from invertjax.driver import Cache

Progress = Callable[[Any, str], Any]  # `(iterable, name) -> iterable`


class Network(NamedTuple):
    """An architecture, with what a defense adds to it.

    key: what is equal for equal networks. net: from `models`; where a defense puts a
    layer before the last one its params are `{"model", NAME}`, and it is applied
    without noise. init: `key -> (params, buffers)`, compiled.
    parts: `(buffers, train) -> Parts`, for defenses of the client.
    loss: `(buffers, train) -> (loss_fn, drawn)`.
    """

    key: tuple
    net: models.Network
    init: Callable
    parts: Callable[[Any, bool], Parts]
    loss: Callable[[Any, bool], tuple[Loss, Drawn | None]]


def network(
    victim: Victim,
    defense: tuple[Protection, ...],
    image_shape: tuple[int, ...],
    num_classes: int,
    *,
    cache: Cache,
) -> Network:
    """Returns the network of `--model`, as a defense may have changed it.

    Raises:
      ValueError: where sizes do not fit, naming the model.
    """
    change = protection.network_change(defense)
    names = victim.model, victim.activation, victim.norm, victim.init, victim.width
    key = ("network", names, change, tuple(image_shape), num_classes)
    return cache(key, lambda: _network(key, victim, change, image_shape, num_classes))


def denormaliser(net: models.Network, image_shape: tuple[int, ...]) -> Callable:
    """Returns `[H*W*C] -> [H*W*C]` that undoes (image - mean) / std."""
    mean, std = jnp.asarray(net.mean), jnp.asarray(net.std)

    def from_input(flat: jax.Array) -> jax.Array:
        image = flat.reshape(image_shape)
        return (image * std[None, None] + mean[None, None]).reshape(-1)

    return from_input


def _network(
    key: tuple,
    victim: Victim,
    change: Protection | None,
    image_shape: tuple[int, ...],
    num_classes: int,
) -> Network:
    net = _architecture(victim, image_shape, num_classes)

    def parts_of(net: models.Network, size: int) -> Callable[[Any, bool], Parts]:
        def parts(buffers: Any, train: bool) -> Parts:
            def features(params: Any, images: jax.Array) -> jax.Array:
                return net.features(params, buffers, images, train)[0]

            return Parts(num_classes, features, net.head, net.last, size)

        return parts

    def plain_loss(buffers: Any, train: bool) -> tuple[Loss, Drawn | None]:
        def logits(params: Any, images: jax.Array) -> jax.Array:
            return net.apply(params, buffers, images, train)[0]

        return losses.classification(logits), None

    if change is None or change.network is None:
        return Network(key, net, jax.jit(net.init), parts_of(net, 0), plain_loss)
    plain_parts, rebuild = parts_of(net, _size(net, image_shape)), change.network

    def loss(buffers: Any, train: bool) -> tuple[Loss, Drawn | None]:
        made = rebuild(plain_parts(buffers, train), change.value)
        return made.loss_fn, made.drawn

    extended = _extended(net, rebuild(plain_parts({}, True), change.value))
    init = jax.jit(extended.init)
    return Network(key, extended, init, parts_of(extended, 0), loss)


def _extended(net: models.Network, made: Rebuilt) -> models.Network:
    """Returns the network with what a defense puts before its last layer."""
    net = net._replace(blocks=())  # what is drawn acts between them
    if made.init is None or made.logits is None:
        return net
    added, behind = made.init, made.logits

    def init(key: jax.Array) -> tuple[Any, Any]:
        params, buffers = net.init(key)
        own = jax.random.fold_in(jax.random.clone(key), 1)
        return {"model": params, made.name: added(own)}, buffers

    def features(params: Any, buffers: Any, images: Any, train: bool) -> Any:
        return net.features(params["model"], buffers, images, train)

    def apply(params: Any, buffers: Any, images: Any, train: bool) -> Any:
        hidden, buffers = features(params, buffers, images, train)
        return behind(params, hidden), buffers

    return net._replace(
        init=init,
        apply=apply,
        statistics=lambda params, images: net.statistics(params["model"], images),
        features=features,
        head=behind,
        last=f"model/{net.last}",
    )


def _architecture(
    victim: Victim, image_shape: tuple[int, ...], num_classes: int
) -> models.Network:
    try:
        return models.build(
            victim.model,
            image_shape=(image_shape[0], image_shape[1], image_shape[2]),
            num_classes=num_classes,
            activation=victim.activation,
            norm=victim.norm,
            init=victim.init,
            width=victim.width,
        )
    except ValueError as error:
        raise ValueError(f"--model={victim.model}: {error}") from None


def _size(net: models.Network, image_shape: tuple[int, ...]) -> int:
    """Returns F, the units of the representation."""

    def features(key: jax.Array, images: jax.Array) -> jax.Array:
        return net.features(*net.init(key), images, True)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(features, key, images).shape[1]

"""Networks as targets: the architecture, its losses and its params."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import models
from experiments.settings.victim import OURS, Victim, has_batch_norm, is_own
from experiments.victims import own_loss, own_model
from experiments.victims.own_model import OwnModel
from invertjax import driver
from invertjax.base import Block, Loss
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
    compared: `(logits, labels) -> []`, by which it is trained.
    fresh: whether `init` makes new weights of a key. batch_norm: whether it has batch
    norms.
    """

    key: tuple
    net: models.Network
    init: Callable
    parts: Callable[[Any, bool], Parts]
    loss: Callable[[Any, bool], tuple[Loss, Drawn | None]]
    compared: Callable[[Any, Any], jax.Array]
    fresh: bool
    batch_norm: bool


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
      ValueError: where sizes do not fit, naming the model; where settings, or a
        defense, do not fit a model of the reader's own.
    """
    change = protection.network_change(defense)
    names = victim.model, *(getattr(victim, name) for name in OURS)
    sizes = tuple(image_shape), num_classes
    model = cache(
        ("architecture", names, victim.loss is None, *sizes),
        lambda: architecture(victim, image_shape, num_classes),
    )
    check_features(victim.named, model.net.features is not None, defense)
    _check(victim, model, change)
    key = ("network", names, victim.loss, change, *sizes)
    return cache(
        key, lambda: _network(key, victim, model, change, image_shape, num_classes)
    )


def architecture(
    victim: Victim, image_shape: tuple[int, ...], num_classes: int
) -> OwnModel:
    """Returns the network of `--model` itself, one of `models` or the reader's own.

    Raises:
      ValueError: naming --model, if it cannot be made for such images.
    """
    assert victim.model is not None  # else there is a loss instead
    if not is_own(victim.model):
        net = _architecture(victim, image_shape, num_classes)
        norms = has_batch_norm(victim.model, victim.norm)
        return OwnModel(net, fresh=True, batch_norm=norms)
    made = own_model.build(victim.model, image_shape, num_classes)
    classes = None if victim.loss else num_classes
    own_model.check(victim.model, made.net, image_shape, classes)
    return made


def check_code(victim: Victim) -> None:
    """Refuses code of the reader's own that cannot be imported.

    Raises:
      ValueError: naming --model or --loss.
    """
    if victim.model is not None and is_own(victim.model):
        own_model.imported(victim.model)
    own_loss.compared(victim)


def check_model(victim: Victim, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Makes a model of the reader's own, to see whether it fits.

    Raises:
      ValueError: as `network`, whatever the defense is.
    """
    _check(victim, architecture(victim, image_shape, num_classes), None)


def check_features(named: str, known: bool, defense: tuple[Protection, ...]) -> None:
    """Refuses defenses that need to know of a network what is not known of it.

    Args:
      named: the flags of the network.
      known: whether its features and its last layer are.
      defense: settings.

    Raises:
      ValueError: naming the first.
    """
    for one in defense:
        if one.features and not known:
            raise ValueError(
                f"--defense={one} does not go with {named}: it needs to know the last "
                "layer, and what enters it; expected one of "
                f"--model={', '.join(models.NAMES)}, or another defense."
            )


def _check(victim: Victim, model: OwnModel, change: Protection | None) -> None:
    """Refuses settings that do not fit what has been made."""
    if victim.loss is not None and change is not None:
        raise ValueError(
            f"--loss={victim.loss} does not go with --defense={change}, which trains "
            "on cross-entropy: expected no --loss."
        )
    if not is_own(victim.model):
        return
    named, mode = f"--model={victim.model}", victim.norm_mode
    if model.batch_norm and mode is None:
        raise ValueError(
            f"{named} has batch norms: expected --norm_mode=train, if the client "
            "trained on the statistics of its batch (what frameworks do in training), "
            "or --norm_mode=eval, if on the running statistics."
        )
    if mode is not None and not model.batch_norm:
        raise ValueError(
            f"--norm_mode={mode} does not apply here: {named} has no batch norm."
        )
    if victim.networks == "per_target" and not model.fresh:
        raise ValueError(
            f"--networks=per_target does not apply here: {named} is one network, and "
            "makes no fresh weights of rngs or key; expected shared."
        )


def blocks(made: Network, victim: Victim) -> tuple[Block, ...]:
    """Returns the blocks that are known of a network: in training, and of its
    cross-entropy. Of any other loss () is returned: they are found in it."""
    known = victim.loss is None and victim.norm_mode != "eval"
    return made.net.blocks if known else ()


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
    model: OwnModel,
    change: Protection | None,
    image_shape: tuple[int, ...],
    num_classes: int,
) -> Network:
    net, compared = model.net, own_loss.compared(victim)

    def parts_of(net: models.Network, size: int) -> Callable[[Any, bool], Parts]:
        def parts(buffers: Any, train: bool) -> Parts:
            if net.features is None:
                return Parts(num_classes)
            known = net.features

            def features(params: Any, images: jax.Array) -> jax.Array:
                return known(params, buffers, images, train)[0]

            return Parts(num_classes, features, net.head, net.last, size)

        return parts

    def plain_loss(buffers: Any, train: bool) -> tuple[Loss, Drawn | None]:
        def loss_fn(params: Any, batch: Any) -> jax.Array:
            logits = net.apply(params, buffers, batch["image"], train)[0]
            return compared(logits, batch["label"])

        return loss_fn, None

    # Arrays that are there already are no part of a program.
    init = driver.quick.jit(net.init) if model.fresh else net.init
    more = compared, model.fresh, model.batch_norm
    if change is None or change.network is None:
        return Network(key, net, init, parts_of(net, 0), plain_loss, *more)
    plain_parts, rebuild = parts_of(net, _size(net, image_shape)), change.network

    def loss(buffers: Any, train: bool) -> tuple[Loss, Drawn | None]:
        made = rebuild(plain_parts(buffers, train), change.value)
        return made.loss_fn, made.drawn

    extended = _extended(net, rebuild(plain_parts({}, True), change.value))
    init = driver.quick.jit(extended.init)
    return Network(key, extended, init, parts_of(extended, 0), loss, *more)


def _extended(net: models.Network, made: Rebuilt) -> models.Network:
    """Returns the network with what a defense puts before its last layer."""
    net = net._replace(blocks=())  # what is drawn acts between them
    if made.init is None or made.logits is None:
        return net
    added, behind, before, moved = made.init, made.logits, net.features, net.statistics
    assert before is not None  # `check_features`

    def init(key: jax.Array) -> tuple[Any, Any]:
        params, buffers = net.init(key)
        own = jax.random.fold_in(jax.random.clone(key), 1)
        return {"model": params, made.name: added(own)}, buffers

    def features(params: Any, buffers: Any, images: Any, train: bool) -> Any:
        return before(params["model"], buffers, images, train)

    def apply(params: Any, buffers: Any, images: Any, train: bool) -> Any:
        hidden, buffers = features(params, buffers, images, train)
        return behind(params, hidden), buffers

    def statistics(params: Any, images: jax.Array) -> Any:
        return moved(params["model"], images) if moved else {}

    return net._replace(
        init=init,
        apply=apply,
        statistics=statistics if moved else None,
        features=features,
        head=behind,
        last=f"model/{net.last}",
    )


def _architecture(
    victim: Victim, image_shape: tuple[int, ...], num_classes: int
) -> models.Network:
    assert victim.model is not None
    channels = image_shape[2]
    plain: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    if victim.normalise != "none":
        plain = {}
    try:
        return models.build(
            victim.model,
            image_shape=(image_shape[0], image_shape[1], image_shape[2]),
            num_classes=num_classes,
            activation=victim.activation,
            norm=victim.norm,
            init=victim.init,
            width=victim.width,
            hidden=victim.hidden,
            **plain,
        )
    except ValueError as error:
        raise ValueError(f"--model={victim.model}: {error}") from None


def _size(net: models.Network, image_shape: tuple[int, ...]) -> int:
    """Returns F, the units of the representation."""
    known = net.features
    assert known is not None  # `check_features`

    def features(key: jax.Array, images: jax.Array) -> jax.Array:
        return known(*net.init(key), images, True)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(features, key, images).shape[1]

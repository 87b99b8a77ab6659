"""Networks that draw: `--defense=precode:WIDTH` and `dropout:SHARE` change the victim.

What they draw is an entry of the batch (`clients.randomised`). An attacker who does not
adapt simulates them with a draw of his own; one who does optimises it with the images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import models
from experiments.settings import defense_flags
from experiments.settings.config import Config
from invertjax import candidates, clients, defenses, losses
from invertjax.base import Candidate, Client, Loss


class Drawn(NamedTuple):
    """An entry of the batch that a network draws, `[B, size]`.

    draw: `(key, batch) -> {name: array}`.
    start: `(key, shape) -> array`, where an attacker starts who optimises it.
    project: back into its range.
    behind: paths of the layers that an attacker who knows of it leaves out.
    """

    name: str
    size: int
    draw: Callable
    start: Callable
    project: Callable
    behind: tuple[str, ...] = ()


def extended(config: Config, net: models.Network, image_shape) -> models.Network:
    """The network, with a bottleneck before its last layer if the config has one.

    Its params are then `{"model", "bottleneck"}`, and it is applied without noise.
    """
    spec = _spec(config)
    if spec is None:
        return net
    net = net._replace(blocks=())  # what is drawn acts between them
    if spec.name != "precode":
        return net
    behind = defenses.precode(_same, net.head, _size(net, image_shape), spec.value)

    def init(key):
        params, buffers = net.init(key)
        own = jax.random.fold_in(jax.random.clone(key), 1)
        return {"model": params, "bottleneck": behind.init(own)}, buffers

    def features(params, buffers, images, train):
        return net.features(params["model"], buffers, images, train)

    def apply(params, buffers, images, train):
        hidden, buffers = features(params, buffers, images, train)
        return behind.apply(params, hidden), buffers

    return net._replace(
        init=init,
        apply=apply,
        statistics=lambda params, images: net.statistics(params["model"], images),
        features=features,
        head=behind.apply,
        last=f"model/{net.last}",
    )


def loss(
    config: Config, net: models.Network, buffers: Any, train: bool, image_shape
) -> tuple[Loss, Drawn | None]:
    """The loss that clients minimise, and what it draws; buffers stay as they are.

    Args:
      net: from `models.build`, not `extended`.
    """
    spec = _spec(config)
    if spec is None:

        def logits(params, images):
            return net.apply(params, buffers, images, train)[0]

        return losses.classification(logits), None

    def features(params, images):
        return net.features(params, buffers, images, train)[0]

    size = _size(net, image_shape)
    if spec.name == "precode":
        made = defenses.precode(features, net.head, size, spec.value)
        behind = ("bottleneck", f"model/{net.last}")
        start = jax.random.normal
        drawn = Drawn("noise", spec.value, made.draw, start, _same_entry, behind)
        return made.loss_fn, drawn
    made = defenses.dropout(features, net.head, size, spec.value)
    drawn = Drawn("kept", size, made.draw, jax.random.uniform, _clipped)
    return made.loss_fn, drawn


def drawing(client: Client, drawn: Drawn | None) -> Client:
    """The client of a loss that reads what it draws."""
    return client if drawn is None else clients.randomised(client, drawn.draw)


def guessed(candidate: Candidate, drawn: Drawn, batch_size: int) -> Candidate:
    """The candidate of an attacker who also looks for what was drawn."""
    return candidates.with_entry(
        candidate,
        drawn.name,
        lambda key: drawn.start(key, (batch_size, drawn.size)),
        drawn.project,
    )


def _spec(config):
    """The one defense that changes the network, or None."""
    specs = defense_flags.specs(config.defense)
    found = [spec for spec in specs if spec.kind.network]
    if len(found) > 1:
        raise ValueError(
            f"--defense={found[1].name} does not go with --defense={found[0].name}: "
            "expected one of them."
        )
    return found[0] if found else None


def _size(net, image_shape):
    """F, the units of the representation."""

    def features(key, images):
        return net.features(*net.init(key), images, True)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(features, key, images).shape[1]


def _same(params, hidden):
    del params
    return hidden


def _same_entry(entry):
    return entry


def _clipped(entry):
    return jnp.clip(entry, 0, 1)

"""The clients of a run: what one really does, and what the attacker takes it for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from experiments.settings import defense_flags
from experiments.settings.config import Config
from experiments.settings.defense_kinds import Parts
from experiments.victims import drawn_layers
from invertjax import clients
from invertjax.base import Client, Loss
from invertjax.rewrites import smoothing


class Roles(NamedTuple):
    """A client, and how the attacker simulates it; by the run's config, whose numbers
    may be traced.

    share: its gradient on one batch. client: what it shares.
    simulate: what the attacker takes that for.
    soften: the same with softplus for relu, by the sharpness; None where the attack, or
      the loss, does without.
    """

    share: Client
    client: Callable[[Config], Client]
    simulate: Callable[[Config], Client]
    soften: Callable[[Config, Any], Client] | None


def roles(
    config: Config,
    loss_fn: Loss,
    params: Any,
    batch: Any,
    parts: Parts,
    drawn: drawn_layers.Drawn | None = None,
) -> Roles:
    """The clients on a loss.

    Args:
      config: resolved.
      loss_fn: `(params, batch) -> []`.
      params: of one network, or their shapes.
      batch: of one client, or its shapes.
      parts: of the network.
      drawn: what the loss draws.

    Raises:
      ValueError: if the attack takes derivatives that the loss does not have.
    """

    def made(config, loss_fn=loss_fn):
        return _clients(config, loss_fn, parts, drawn)

    share = made(config)[0]

    def client(config):
        return made(config)[1]

    def simulate(config):
        return made(config)[2]

    def soften(config, sharpness):
        return made(config, smoothing.softened(loss_fn, sharpness))[2]

    if config.attack != "gauss_newton":
        return Roles(share, client, simulate, None)
    if config.loss is not None:  # those of our own models are known to be there
        _check_forward_mode(config, simulate(config), params, batch)
    if drawn is not None:
        key = jax.eval_shape(lambda: jax.random.key(0))
        batch = {**batch, **jax.eval_shape(drawn.draw, key, batch)}
    relus = smoothing.has_relu(loss_fn, params, batch)
    return Roles(share, client, simulate, soften if relus else None)


def softened(soften: Callable[[Config, Any], Client] | None, config, params: Any):
    """`(batch, sharpness) -> update` at the params, or None, from `Roles.soften`."""
    if soften is None:
        return None

    def share(batch, sharpness):
        return clients.at(soften(config, sharpness), params, jax.random.key(0))(batch)

    return share


def _clients(config, loss_fn, parts, drawn):
    """The gradient, the client, and the client as the attacker simulates it."""
    # Least squares differentiates clients in forward mode as well; many steps are
    # simulated without keeping their activations.
    rule = "recomputed" if config.local_steps else "linearised"
    rule = "plain" if config.attack in ("gauss_newton", "recursive") else rule
    share = drawn_layers.drawing(clients.gradient(loss_fn, rule=rule), drawn)
    specs = defense_flags.specs(config.defense)
    defended = defense_flags.wrapped(share, specs, parts)
    known = share
    if config.defense_known:
        known = defense_flags.simulated(share, specs, parts)
    if not config.local_steps:
        return share, defended, known

    def local(client, shuffle):
        return clients.local(
            client,
            optax.sgd(config.local_lr),
            steps=config.local_steps,
            batch_size=config.local_batch,
            shuffle=shuffle,
        )

    client = local(defended, config.local_shuffle)
    # Without the order an attacker simulates the batch's; without steps, a gradient.
    return share, client, local(known, False) if config.local_known else known


def _check_forward_mode(config, simulate, params, batch):
    def derivative(params, batch, key):
        def share(image):
            return simulate(params, {**batch, "image": image}, key)

        _, push = jax.linearize(share, batch["image"])
        return jax.vmap(push)(batch["image"][None])  # alone it may pass as it is

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(derivative, params, batch, key)
    except Exception as error:  # the reader's own code may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"--attack=gauss_newton does not fit --loss={config.loss}: expected a loss "
            f"with forward-mode derivatives ({type(error).__name__}: {reason})."
        ) from None

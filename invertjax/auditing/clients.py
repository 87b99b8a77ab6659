"""The clients of an audit: what one does, and what an attacker believes it to do."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax  # pyright: ignore[reportMissingTypeStubs]  # optax has no types

from invertjax import clients, derivatives, losses
from invertjax.auditing.situations import Target, Threat, shapes_of_batch
from invertjax.base import Batch, Client, Key, Loss, Params, Update
from invertjax.defenses import defend, protection
from invertjax.federated.as_one_client import averaged
from invertjax.rewrites import blocks, smoothing

ANEW = 1  # folded into a key of which the attacker may not know what came
_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown


def gradient(target: Target, rule: str | None = None) -> Client:
    """Returns the client that shares its gradient on one batch, undefended.

    Args:
      target: its client.
      rule: of derivatives, see `clients.gradient`; None: the one that fits.
    """
    if target.client is not None:
        return target.client
    return _of_loss(target, target.loss_fn, rule)


def actual(target: Target, rule: str | None = None) -> Client:
    """Returns what the client does, up to the update before `shared` defends it."""
    return _mean(target, _undefended(target, rule))


def shared(target: Target, rule: str | None = None) -> Client:
    """Returns what the client does, with all its defenses."""
    client = _undefended(target, rule)
    if target.protections:
        client = defend(client, protection.chained(target.protections))
    return _mean(target, client)


def simulated(target: Target, *, knows: bool, rule: str | None = None) -> Client:
    """Returns the client as an attacker simulates it.

    Args:
      target: as the attacker takes it (`situations.as_attacked`), with its numbers.
      knows: whether he knows of its defenses.
      rule: see `gradient`.
    """
    return _simulated(target, gradient(_drawing_anew(target), rule), knows)


def softened(
    target: Target, *, knows: bool, params: Params, batch: Batch
) -> Callable[[Target, Any], Client] | None:
    """Returns `(target, sharpness) -> client`, `simulated` with softplus for relu, or
    None where the loss has no relus.

    Args:
      target: as the attacker takes it.
      knows: whether he knows of its defenses.
      params, batch: of the loss, or their shapes.
    """
    loss_fn = target.loss_fn
    if target.client is not None or not smoothing.has_relu(
        loss_fn, params, with_drawn(target, batch)
    ):
        return None

    def soften(target: Target, sharpness: Any) -> Client:
        made = smoothing.softened(loss_fn, sharpness)
        share = _of_loss(_drawing_anew(target), made, "plain")
        return _simulated(target, share, knows)

    return soften


def with_drawn(target: Target, batch: Batch) -> Batch:
    """Returns a batch, or its shapes, with the shapes of what the network draws."""
    if target.drawn is None:
        return batch
    key = _jax.eval_shape(lambda: jax.random.key(0))
    return {**batch, **_jax.eval_shape(target.drawn.draw, key, batch)}


def chain(target: Target, params: Params, threat: Threat) -> blocks.Chain:
    """Returns the network in blocks, as it was given or else as its loss is cut.

    Args:
      target: as the attacker takes it.
      params: of its loss, or their shapes.
      threat: says which labels the loss gets.

    Raises:
      ValueError: with the reason, where the loss cannot be cut.
    """
    if target.blocks:
        return blocks.Chain(target.blocks, losses.cross_entropy)
    batch = with_drawn(target, shapes_of_batch(target, threat))
    return blocks.cut(target.loss_fn, params, batch)


def refuses_blocks(target: Target, params: Params, threat: Threat) -> str | None:
    """Returns why a network has no blocks, None where it has them; see `chain`."""
    try:
        chain(target, params, threat)
    except Exception as error:  # the reader's own code may raise anything
        reason = (str(error).splitlines() or [""])[0]
        return reason[:1].lower() + reason[1:]
    return None


def refuses_forward_mode(
    target: Target, *, knows: bool, params: Params, batch: Batch
) -> str | None:
    """Returns why a client has no forward-mode derivatives, None where it has them."""
    simulate = simulated(target, knows=knows, rule="plain")

    def derivative(params: Params, batch: Batch, key: Key) -> Update:
        def share(image: jax.Array) -> Update:
            return simulate(params, {**batch, "image": image}, key)

        _, push = _jax.linearize(share, batch["image"])
        return jax.vmap(push)(batch["image"][None])  # alone it may pass as it is

    key = _jax.eval_shape(lambda: jax.random.key(0))
    try:
        _jax.eval_shape(derivative, params, batch, key)
    except Exception as error:  # the reader's own code may raise anything
        reason = (str(error).splitlines() or [""])[0]
        return (
            "expected a loss with forward-mode derivatives "
            f"({type(error).__name__}: {reason})"
        )
    return None


def said_of_derivatives(target: Target, params: Params, batch: Batch) -> str:
    """Returns which derivatives an attack has taken in the place of the usual ones, in
    words; "" where it has taken those.

    Args:
      target: with its numbers.
      params, batch: of its loss, or their shapes.
    """
    if target.client is not None:  # nothing is known of it
        return ""
    if not derivatives.falls_back(target.loss_fn, params, with_drawn(target, batch)):
        return ""
    return (
        "reverse over reverse (rule='plain'), slower than the usual ones: the loss has "
        "no forward-mode derivatives, as a function with a custom_vjp has none"
    )


def _of_loss(target: Target, loss_fn: Loss, rule: str | None) -> Client:
    # Many steps are simulated without keeping their activations.
    rule = rule or ("linearised" if target.local is None else "recomputed")
    share = clients.gradient(loss_fn, rule=rule)
    if target.drawn is None:
        return share
    return clients.randomised(share, target.drawn.draw)


def _drawing_anew(target: Target) -> Target:
    """Returns the target for an attacker who does not know what its network has drawn.

    He may have the client's key, for what a defense of which he is told has drawn
    from it: what the network draws comes of another key, independent of that one.
    """
    drawn = target.drawn
    if drawn is None:
        return target

    def draw(key: Key, batch: Batch) -> dict[str, jax.Array]:
        return drawn.draw(jax.random.fold_in(key, ANEW), batch)

    return target._replace(drawn=drawn._replace(draw=draw))


def _undefended(target: Target, rule: str | None) -> Client:
    """Returns what one client computes, before the update itself is defended."""
    share = protection.wrapped(gradient(target, rule), target.protections, target.parts)
    return _trained(target, share, bool(target.local and target.local.shuffle))


def _simulated(target: Target, share: Client, knows: bool) -> Client:
    if knows:
        share = protection.simulated(share, target.protections, target.parts)
    # Who does not know the order of the images simulates that of the batch.
    return _mean(target, _trained(target, share, shuffle=False))


def _mean(target: Target, client: Client) -> Client:
    """Returns the members of a mean as one client, if the server sees only that."""
    if target.members is None:
        return client
    return averaged(client, len(target.members), np.asarray(target.members))


def _trained(target: Target, share: Client, shuffle: bool) -> Client:
    local = target.local
    if local is None:
        return share
    return clients.local(
        share,
        optax.sgd(local.learning_rate),
        steps=local.steps,
        batch_size=local.batch_size,
        shuffle=shuffle,
    )

"""Clients: functions from a batch to the update that a participant shares."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from invertjax import convolutions
from invertjax.base import Batch, Client, Key, Loss, Params, Update


def gradient(
    loss_fn: Loss, *, two_pass: bool = True, matrix_products: bool | None = None
) -> Client:
    """A client that shares the gradient of its loss on one batch (FedSGD).

    With G the shared gradient and v the cotangent that an attack sends back, the
    derivative of <G(params, batch), v> is taken as the gradient of the directional
    derivative `jvp(loss, v)`. That is one reverse pass over one forward-mode pass,
    equal to reverse-over-reverse to rounding (Pearlmutter 1994, section 3) and cheaper.

    Args:
      loss_fn: `(params, batch) -> []`, any JAX function; twice differentiable.
      two_pass: use the rule above. Forward-mode differentiation of the client
        (`jax.jvp`, `jax.jacfwd`) needs False.
      matrix_products: rewrite convolutions as matrix products; default: where that is
        the faster form (`convolutions.preferred`).

    Returns:
      `client(params, batch, key) -> gradient`; the key is not used.

    Raises:
      ValueError: when called, if the loss is not a scalar.
    """
    if convolutions.preferred() if matrix_products is None else matrix_products:
        loss_fn = convolutions.as_matrix_products(loss_fn)
    share = _two_pass(loss_fn) if two_pass else jax.grad(loss_fn)

    def client(params: Params, batch: Batch, key: Key) -> Update:
        del key
        _check_scalar(loss_fn, params, batch)
        return share(params, batch)

    return client


def local_sgd(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    two_pass: bool = True,
    matrix_products: bool | None = None,
) -> Client:
    """A client that trains locally and shares `params_before - params_after`.

    FedAvg (McMahan et al. 2017, Algorithm 1). Step i uses rows `i*b ... i*b + b - 1`
    of the batch, modulo its size, so that one step of plain SGD on the whole batch
    shares exactly `learning_rate * gradient`. The loop is a `scan`: compile time does
    not grow with the number of steps.

    Args:
      loss_fn: `(params, batch) -> []`.
      optimizer: any optax optimiser; its state starts afresh and is not shared.
      steps: optimiser steps; exactly one of `steps` and `epochs` is given.
      epochs: passes over the batch, of `ceil(B / batch_size)` steps each.
      batch_size: b, rows a step; default: the whole batch.
      shuffle: draw a new order of the rows every epoch from the client's key;
        otherwise the order is that of the batch, and the key is not used.
      two_pass, matrix_products: see `gradient`.

    Raises:
      ValueError: on a budget or batch size that cannot be (when called, if it
        depends on the batch).
    """
    if (steps is None) == (epochs is None):
        raise ValueError(
            f"Expected one of steps={steps} and epochs={epochs}, got both or none."
        )
    for name, value in (
        ("steps", steps),
        ("epochs", epochs),
        ("batch_size", batch_size),
    ):
        if value is not None and value < 1:
            raise ValueError(f"Expected {name}={value} >= 1.")
    share = gradient(loss_fn, two_pass=two_pass, matrix_products=matrix_products)

    def client(params: Params, batch: Batch, key: Key) -> Update:
        size = jax.tree.leaves(batch)[0].shape[0]
        rows = size if batch_size is None else batch_size
        if rows > size:
            raise ValueError(
                f"Expected batch_size={rows} <= {size}, the rows there are."
            )
        count = steps if steps is not None else epochs * -(-size // rows)
        order = _order(key, size, count * rows, shuffle).reshape(count, rows)

        def step(carry, chosen):
            params, state = carry
            mini = jax.tree.map(lambda leaf: leaf[chosen], batch)
            grads = share(params, mini, key)
            delta, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, delta), state), None

        start = (params, optimizer.init(params))
        (after, _), _ = jax.lax.scan(step, start, order)
        return jax.tree.map(jnp.subtract, params, after)

    return client


def at(client: Client, params: Params, key: Key) -> Callable[[Batch], Update]:
    """The client at fixed params and key: the function an attack runs backwards.

    Every call draws the same from the key; no call consumes it.
    """
    # Closed over as bits: JAX's check for reused keys does not see through loops.
    data, impl = jax.random.key_data(key), jax.random.key_impl(key)

    def share(batch):
        return client(params, batch, jax.random.wrap_key_data(data, impl=impl))

    return share


def _two_pass(loss_fn):
    @jax.custom_vjp
    def share(params, batch):
        return jax.grad(loss_fn)(params, batch)

    def forward(params, batch):
        return share(params, batch), (params, batch)

    def backward(saved, cotangent):
        def along(params, batch):
            return jax.jvp(lambda p: loss_fn(p, batch), (params,), (cotangent,))[1]

        return jax.grad(along, argnums=(0, 1), allow_int=True)(*saved)

    share.defvjp(forward, backward)
    return share


def _order(key, size, length, shuffle):
    """`[length]` row numbers: position p is row `p % size` of epoch `p // size`."""
    position = jnp.arange(length)
    if not shuffle:
        return position % size
    keys = jax.random.split(key, -(-length // size))
    epochs = jax.vmap(lambda epoch_key: jax.random.permutation(epoch_key, size))(keys)
    return epochs.reshape(-1)[:length]


def _check_scalar(loss_fn, params, batch):
    value = jax.eval_shape(loss_fn, params, batch)
    if getattr(value, "shape", None) != ():
        shapes = jax.tree.map(lambda leaf: leaf.shape, value)
        raise ValueError(f"Expected loss_fn to return a scalar, got shape {shapes}.")

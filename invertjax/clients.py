"""Clients: functions from a batch to the update that a participant shares."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from invertjax import derivatives, leaves
from invertjax.base import Batch, Client, Key, Loss, Params, Share, Update
from invertjax.rewrites import convolutions, slopes

AnyClient = TypeVar("AnyClient", Client, Share)
Maker = TypeVar("Maker", bound=Callable[..., Any])


def plain(function: AnyClient) -> AnyClient:
    """Returns the same client or share under the rule "plain" (see `gradient`).

    A client under another rule has this twin as its attribute `plain`, and so has what
    `at`, `local`, `defenses.defend` and the like make of it. A function without a twin
    is returned itself.
    """
    # `functools.wraps` copies attributes, but a wrapper may share something else.
    if hasattr(function, "__wrapped__"):
        return function
    return getattr(function, "plain", function)


def keeps_plain(make: Maker) -> Maker:
    """Decorates `make(client, ...)` so that its result has a twin if the client has."""

    @functools.wraps(make)
    def made(client: Client, *args: Any, **options: Any) -> Any:
        twin = plain(client)
        result = make(client, *args, **options)
        if twin is not client:
            result.plain = make(twin, *args, **options)
        return result

    return cast(Maker, made)


def gradient(
    loss_fn: Loss, *, rule: str = "linearised", matrix_products: bool | None = None
) -> Client:
    """Makes a client that shares the gradient of its loss on one batch (FedSGD).

    An attack sends a cotangent v back through the shared gradient G. The derivative of
    <G(params, batch), v> needs no reverse pass over a reverse pass: the Hessian is
    symmetric, so it is the directional derivative along v, in params, of the gradient
    with respect to (params, batch) (Pearlmutter 1994, section 3). The rules are equal
    to rounding, and differ in cost, with F the cost of one forward pass:

    | rule | the derivative is | a step costs | keeps |
    |---|---|---|---|
    | "linearised" | `jax.linearize` of the gradient, at v | 7 F | every activation |
    | "recomputed" | `jax.grad` of `jvp(loss, v)` | up to 9 F | params and batch |
    | "plain" | as `jax.grad` has it: reverse over reverse | 7 F | every activation |

    "plain" is slower than its count, since XLA fuses less of what it transposes twice.
    A loss without forward-mode derivatives gets it under any rule, with a warning.

    Args:
      loss_fn: `(params, batch) -> []`, any JAX function; twice differentiable.
      rule: see above. Forward-mode differentiation of the client (`jax.jvp`,
        `jax.jacfwd`) needs "plain"; the function `plain` gives such a twin.
      matrix_products: rewrite convolutions as matrix products; default: where that is
        the faster form (`convolutions.preferred`).

    Returns:
      `client(params, batch, key) -> gradient`; the key is not used. Params that are no
      floats, such as counters, have None for a gradient.

    Raises:
      ValueError: on an unknown rule; when called, if the loss is not a scalar, or the
        images are integers.
    """
    if rule not in derivatives.RULES:
        known = ", ".join(derivatives.RULES)
        raise ValueError(f"Expected rule={rule!r} to be one of {known}.")
    if convolutions.preferred() if matrix_products is None else matrix_products:
        loss_fn = convolutions.as_matrix_products(loss_fn)
    loss_fn = _scalar(loss_fn)

    def under(rule: str) -> Any:
        grad = derivatives.gradient(loss_fn, rule)

        def client(params: Params, batch: Batch, key: Key) -> Update:
            del key
            _check_batch(batch)
            return grad(params, batch)

        return client

    client = under(rule)
    if rule != "plain":
        client.plain = under("plain")
    return client


def local_sgd(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    rule: str = "recomputed",
    matrix_products: bool | None = None,
) -> Client:
    """Makes a client that trains locally and shares `params_before - params_after`.

    FedAvg (McMahan et al. 2017, Algorithm 1): `local` on the gradient of a loss.

    Args:
      loss_fn: `(params, batch) -> []`.
      optimizer, steps, epochs, batch_size, shuffle: see `local`.
      rule, matrix_products: see `gradient`. The default keeps no activations of the
        steps: memory does not grow with their number.

    Raises:
      ValueError: on a budget or batch size that cannot be (when called, if it
        depends on the batch).
    """
    client = gradient(loss_fn, rule=rule, matrix_products=matrix_products)
    return local(
        client,
        optimizer,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        shuffle=shuffle,
    )


@keeps_plain
def local(
    client: Client,
    optimizer: optax.GradientTransformation,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = False,
) -> Client:
    """Makes a client that trains locally by the gradients of another client.

    It shares `params_before - params_after`. Derivatives through the optimiser are
    finite also where it takes the root of a gradient of zero (`rewrites.slopes`).

    Step i uses rows `i*b ... i*b + b - 1` of the batch, modulo its size, so that one
    step of plain SGD on the whole batch shares exactly `learning_rate * gradient`. The
    loop is a `scan`: compile time does not grow with the number of steps.

    Args:
      client: shares a gradient, e.g. `gradient(loss_fn)`, or that with a defense that
        acts at every step, as `defenses.dp_sgd` does. Every step has a key of its own.
      optimizer: any optax optimiser; its state starts afresh and is not shared.
      steps: optimiser steps; exactly one of `steps` and `epochs` is given.
      epochs: passes over the batch, of `ceil(B / batch_size)` steps each.
      batch_size: b, rows a step; default: the whole batch.
      shuffle: draw a new order of the rows every epoch from the client's key;
        otherwise the order is that of the batch.

    Raises:
      ValueError: as `local_sgd`.
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

    finite_update = slopes.finite(optimizer.update)

    def trained(params: Params, batch: Batch, key: Key) -> Update:
        _check_batch(batch)
        # NumPy's arrays cannot be read at rows that are traced.
        params, batch = jax.tree.map(jnp.asarray, (params, batch))
        size = jax.tree.leaves(batch)[0].shape[0]
        rows = size if batch_size is None else batch_size
        if rows > size:
            raise ValueError(
                f"Expected batch_size={rows} <= {size}, the rows there are."
            )
        count = steps if steps is not None else epochs * -(-size // rows)
        order_key, step_key = jax.random.split(key)
        order = _order(order_key, size, count * rows, shuffle).reshape(count, rows)
        keys = jax.random.split(step_key, count)

        def step(carry: Any, chosen: tuple[jax.Array, Key]) -> tuple[Any, None]:
            floats, state = carry
            rows, key = chosen
            mini = jax.tree.map(lambda leaf: leaf[rows], batch)
            grads = client(leaves.merged(floats, params), mini, key)
            with jax.numpy_dtype_promotion("standard"):  # optax needs it
                delta, state = finite_update(leaves.floats(grads), state, floats)
                return (optax.apply_updates(floats, delta), state), None

        before = leaves.floats(params)
        start = (before, optimizer.init(before))
        (after, _), _ = jax.lax.scan(step, start, (order, keys))
        return jax.tree.map(jnp.subtract, before, after)

    return trained


@keeps_plain
def randomised(client: Client, draw: Callable[[Key, Batch], dict[str, Any]]) -> Client:
    """Makes a client whose batch has further entries, drawn from its key.

    What a model or a defense draws (the noise of a bottleneck, the units that dropout
    leaves out, who is mixed with whom) is an entry of the batch that the client reads.
    An entry that the batch already has is not drawn: an attacker who knows it puts it
    there, and one who does not optimises it with the images.

    Args:
      client: `(params, batch, key) -> update`; reads the entries from its batch.
      draw: `(key, batch) -> {name: array}`; the key is consumed.
    """

    def drawing(params: Params, batch: Batch, key: Key) -> Update:
        client_key, draw_key = jax.random.split(key)
        return client(params, {**draw(draw_key, batch), **batch}, client_key)

    return drawing


@keeps_plain
def at(client: Client, params: Params, key: Key) -> Share:
    """Fixes params and key of a client: an attack runs the result backwards.

    Every call draws the same from the key, and none consumes it.
    """
    # The key is closed over as bits: JAX's check for reused keys fails in loops.
    data, impl = jax.random.key_data(key), jax.random.key_impl(key)

    def share(batch: Batch) -> Update:
        _check_batch(batch)
        return client(params, batch, jax.random.wrap_key_data(data, impl=impl))

    return share


def _order(key: Key, size: int, length: int, shuffle: bool) -> jax.Array:
    """Returns `[length]` rows: position p is entry `p % size` of epoch `p // size`."""
    position = jnp.arange(length)
    if not shuffle:
        return position % size
    keys = jax.random.split(key, -(-length // size))
    epochs = jax.vmap(lambda epoch_key: jax.random.permutation(epoch_key, size))(keys)
    return epochs.reshape(-1)[:length]


def _check_batch(batch: Batch) -> None:
    """Refuses images of integers: an attack guesses floats in [0, 1]."""
    image = batch.get("image") if isinstance(batch, dict) else None
    if image is not None and not leaves.all_floats(image):
        raise ValueError(
            f"Expected batch['image'] of type {jnp.result_type(image)} to be floats in "
            "[0, 1]: divide images of 0 to 255 by 255."
        )


def _scalar(loss_fn: Loss) -> Loss:
    """Makes a loss check its value as it is traced, not in a trace of its own."""

    @functools.wraps(loss_fn)
    def checked(params: Params, batch: Batch) -> jax.Array:
        value = loss_fn(params, batch)
        _check_scalar(value)
        return value

    return checked


def _check_scalar(value: Any) -> None:
    shapes = jax.tree.map(jnp.shape, value)
    if shapes == () and not isinstance(value, tuple):
        return
    if isinstance(value, tuple) and shapes[:1] == ((),):
        raise ValueError(
            f"Expected loss_fn to return a scalar, got a tuple of {len(value)}: leave "
            "out what it returns beside the loss, as in "
            "lambda params, batch: loss_fn(params, batch)[0]."
        )
    raise ValueError(f"Expected loss_fn to return a scalar, got shape {shapes}.")

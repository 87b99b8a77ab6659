"""Gradients of a loss that an attack can differentiate once more, by several rules."""

import warnings
from collections.abc import Callable
from typing import Any

import jax

from invertjax import leaves
from invertjax.base import Batch, Loss, Params, Update
from invertjax.rewrites import equations

# What JAX says where a custom_vjp function is differentiated forwards: the first as it
# stands, the second once it was traced.
_NO_FORWARD_MODE = ("forward-mode", "'custom_lin'")
NO_FORWARD_MODE = (TypeError, NotImplementedError)


def gradient(loss_fn: Loss, rule: str) -> Callable[[Params, Batch], Update]:
    """Returns the gradient of a loss, with derivatives by one of RULES.

    It has None in the place of params that are no floats. Where the loss has no
    forward-mode derivatives it says so once and takes the rule "plain".
    """
    of_floats = RULES[rule](loss_fn)

    def grad(params: Params, batch: Batch) -> Update:
        if leaves.all_floats(params):
            return of_floats(params, batch)

        def of_whole(floats: Params, batch: Batch) -> jax.Array:
            return loss_fn(leaves.merged(floats, params), batch)

        return RULES[rule](of_whole)(leaves.floats(params), batch)

    return grad


def falls_back(loss_fn: Loss, params: Params, batch: Batch) -> bool:
    """Returns whether `gradient` takes the rule "plain" under any rule, since the loss
    has no forward-mode derivatives.

    Args:
      loss_fn: `(params, batch) -> []`.
      params, batch: of the loss, or their shapes.
    """

    def of_floats(floats: Params, batch: Batch) -> jax.Array:
        return loss_fn(leaves.merged(floats, params), batch)

    def along(floats: Params, batch: Batch) -> Update:
        return _linearisation(of_floats, floats, batch)[0]

    floats = leaves.floats(params)
    traced = jax.make_jaxpr(of_floats)(floats, batch)
    if not equations.contains(traced, _has_own_derivative):  # the usual case, and cheap
        return False
    try:
        jax.eval_shape(along, floats, batch)
    except NO_FORWARD_MODE as error:
        return lacks_forward_mode(error)
    return False


def _has_own_derivative(eqn: Any) -> bool:
    return eqn.primitive.name.startswith("custom_vjp")


def _linearised(loss_fn: Loss) -> Callable[[Params, Batch], Update]:
    @jax.custom_vjp
    def share(params: Params, batch: Batch) -> Update:
        return jax.grad(loss_fn)(params, batch)

    def forward(params: Params, batch: Batch) -> tuple[Update, Any]:
        try:
            return _linearisation(loss_fn, params, batch)
        except NO_FORWARD_MODE as error:
            _fall_back("linearised", error)
            return jax.vjp(jax.grad(loss_fn), params, batch)

    def backward(along: Callable[[Update], Any], cotangent: Update) -> Any:
        return jax.tree.map(_none_if_integer, along(cotangent))

    share.defvjp(forward, backward)
    return share


def _recomputed(loss_fn: Loss) -> Callable[[Params, Batch], Update]:
    @jax.custom_vjp
    def share(params: Params, batch: Batch) -> Update:
        return jax.grad(loss_fn)(params, batch)

    def forward(params: Params, batch: Batch) -> tuple[Update, Any]:
        return share(params, batch), (params, batch)

    def backward(saved: tuple[Params, Batch], cotangent: Update) -> Any:
        def along(params: Params, batch: Batch) -> jax.Array:
            return jax.jvp(lambda p: loss_fn(p, batch), (params,), (cotangent,))[1]

        try:
            return jax.grad(along, argnums=(0, 1), allow_int=True)(*saved)
        except NO_FORWARD_MODE as error:
            _fall_back("recomputed", error)
            return jax.vjp(jax.grad(loss_fn), *saved)[1](cotangent)

    share.defvjp(forward, backward)
    return share


def _linearisation(
    loss_fn: Loss, params: Params, batch: Batch
) -> tuple[Update, Callable[[Update], Any]]:
    """Returns a gradient, and the derivative along an update of it and of that with
    respect to the batch."""

    def gradients(params: Params) -> Any:
        found = jax.grad(loss_fn, argnums=(0, 1), allow_int=True)(params, batch)
        return jax.tree.map(_none_if_integer, found)

    (shared, _), along = jax.linearize(gradients, params)
    _check_forward_mode(along, shared)
    return shared, along


def _check_forward_mode(along: Callable[[Update], Any], shared: Update) -> None:
    """Raises at once what JAX would say of a custom_vjp only when it compiles."""
    body = jax.make_jaxpr(along)(shared)
    if equations.contains(body, lambda eqn: eqn.primitive.name == "custom_lin"):
        raise TypeError("There are no forward-mode derivatives.")


def lacks_forward_mode(error: Exception) -> bool:
    """Returns whether an error says that there are no forward-mode derivatives."""
    return any(words in str(error) for words in _NO_FORWARD_MODE)


def _fall_back(rule: str, error: Exception) -> None:
    """Says that another rule is taken, or raises the error if none would help."""
    if not lacks_forward_mode(error):
        raise error
    warnings.warn(
        "The loss has no forward-mode derivatives, as a function with a custom_vjp of "
        f"its own has none: rule='plain' is taken in the place of rule={rule!r}.",
        stacklevel=2,
    )


def _none_if_integer(gradient: jax.Array) -> jax.Array | None:
    """Puts None, zero in `custom_vjp`, for the gradient of integers such as labels."""
    return None if gradient.dtype == jax.dtypes.float0 else gradient


RULES = {"linearised": _linearised, "recomputed": _recomputed, "plain": jax.grad}

"""Closed form for a dense first layer with bias: Phong et al. (2018), section 3;
Geiping et al. (2020), proposition 3.1."""

import jax
import jax.numpy as jnp

from invertjax import distances, layers
from invertjax.base import Attack, Candidate, Result, Stop, Update


def analytic(
    client,
    observed: Update,
    candidate: Candidate,
    *,
    layer: str | None = None,
    from_input=lambda flat: flat,
) -> Attack:
    """Reads the one image of a batch off the gradient of the first dense layer.

    For y = x W + c: dL/dW = x (dL/dc)^T, so x = dW[:, j] / dc[j] for any j with
    dc[j] != 0; the largest is taken. Exact to rounding (about 150 dB in float32) for a
    batch of one and one gradient step, at any positive scale of the update.

    Args:
      client: `batch -> update`; scores the answer (`Result.loss` is the cosine
        distance of its update from the observed one).
      observed: the shared update.
      candidate: says the shape of the image and holds the label.
      layer: path of the dense layer; default: the one with H*W*C inputs.
      from_input: `[H*W*C] -> [H*W*C]`, from the layer's input to pixels, where layers
        such as a normalisation come first.

    Raises:
      ValueError: for a batch of more than one, or if there is no such layer.
    """
    start = jax.eval_shape(candidate.init, jax.eval_shape(lambda: jax.random.key(0)))
    shape = start["image"].shape
    if shape[0] != 1:
        raise ValueError(
            f"Expected batch_size={shape[0]} to be 1: the closed form mixes the images "
            "of a larger batch. Use inverting_gradients."
        )
    dense = _first(observed, shape, layer)

    def init(key):
        z = candidate.init(key)
        flat = from_input(_ratio(dense))
        return {**z, "image": flat.reshape(shape).astype(z["image"].dtype)}

    def result(z):
        batch = candidate.decode(z)
        loss = distances.cosine(client(batch), observed)
        finite = jnp.isfinite(loss)
        stopped = jnp.where(finite, Stop.BUDGET, Stop.NON_FINITE)
        loss = jnp.where(finite, loss, jnp.inf)
        return Result(batch, loss, jnp.zeros(0), jnp.array(0, jnp.int32), stopped)

    return Attack(init, lambda z, n: z, result, 0)


def admits(
    observed: Update,
    shape: tuple[int, ...],
    *,
    layer: str | None = None,
    tolerance: float = 1e-3,
) -> bool:
    """Whether an update has the closed form: one image, one step, nothing added.

    Then, and only then, dW of the first dense layer is the outer product of the ratio
    and dc. Checks |dW - x dc^T| <= tolerance |dW|; needs concrete arrays.
    """
    if shape[0] != 1:
        return False
    try:
        dense = _first(observed, shape, layer)
    except ValueError:
        return False
    rest = dense.weight - jnp.outer(_ratio(dense), jnp.asarray(dense.bias))
    return bool(jnp.linalg.norm(rest) <= tolerance * jnp.linalg.norm(dense.weight))


def _first(observed, shape, layer):
    dense = layers.first(observed, shape[1] * shape[2] * shape[3], path=layer)
    if dense.bias is None:
        raise ValueError(f"Expected layer={dense.path!r} to have a bias.")
    return dense


def _ratio(dense):
    index = jnp.argmax(jnp.abs(dense.bias))
    return dense.weight[:, index] / dense.bias[index]

"""The closed form for a dense first layer with bias: Phong et al. (2018), section 3;
Geiping et al. (2020), proposition 3.1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from invertjax import candidates, distances, layers, leaves, trees
from invertjax.base import (
    Attack,
    Candidate,
    Key,
    Params,
    Point,
    Result,
    Share,
    Stop,
    Update,
)


def analytic(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    path: str | None = None,
    from_input: Callable[[jax.Array], jax.Array] = lambda flat: flat,
) -> Attack:
    """Reads the one image of a batch off the gradient of the first dense layer.

    For y = x W + c: dL/dW = x (dL/dc)^T, so x = dW[:, j] / dc[j] for any j with
    dc[j] != 0; the largest is taken. Exact to rounding (about 150 dB in float32) for a
    batch of one and one gradient step, at any positive scale of the update.

    The image is certified where at least two units agree, dW is the outer product of
    x and dc to 1e-3 of its size, and the whole update of the image is the observed
    one, up to its scale, to 1e-3 as well: a wrong label or another network's update
    fails the second, noise, pruning and a second image the first.

    Args:
      share: `batch -> update`; scores the answer (`Result.loss` is the cosine
        distance of its update from the observed one).
      observed: the shared update.
      candidate: says the shape of the image and holds the label.
      path: of the dense layer; default: the one with H*W*C inputs.
      from_input: `[H*W*C] -> [H*W*C]`, from the layer's input to pixels, where layers
        such as a normalisation come first.

    Raises:
      ValueError: for a batch of more than one, or if there is no such layer.
    """
    shape = candidates.shapes(candidate)["image"].shape
    if shape[0] != 1:
        raise ValueError(
            f"Expected batch_size={shape[0]} to be 1: the closed form mixes the images "
            "of a larger batch. Use inverting_gradients."
        )
    observed = leaves.floats(observed)
    weight, bias = map(jnp.asarray, _first(observed, shape, path))

    def init(key: Key) -> Point:
        z = candidate.init(key)
        flat = from_input(_ratio(weight, bias))
        return {**z, "image": flat.reshape(shape).astype(z["image"].dtype)}

    def result(z: Point) -> Result:
        batch = candidate.decode(z)
        loss = distances.cosine(share(batch), observed)
        finite = jnp.isfinite(loss)
        stopped = jnp.where(finite, Stop.BUDGET, Stop.NON_FINITE)
        loss = jnp.where(finite, loss, jnp.inf)
        proven = _proven(weight, bias, share(batch), observed) & finite
        steps = jnp.array(0, jnp.int32)
        return Result(batch, loss, jnp.zeros(0), steps, stopped, proven[None])

    return Attack(init, lambda z, n: z, result, 0)


def admits(
    observed: Update,
    shape: tuple[int, ...],
    *,
    path: str | None = None,
    tolerance: float = 1e-3,
) -> bool:
    """Says whether an update has the closed form: one image, one step, nothing added.

    Then, and only then, dW of the first dense layer is the outer product of the ratio
    and dc. Checks |dW - x dc^T| <= tolerance |dW|; needs concrete arrays.
    """
    if shape[0] != 1:
        return False
    try:
        dense = _first(observed, shape, path)
    except ValueError:
        return False
    weight, bias = map(jnp.asarray, dense)  # whose 0 / 0 is no warning, as NumPy's is
    return bool(_is_outer(weight, bias, tolerance))


def _is_outer(weight: jax.Array, bias: jax.Array, tolerance: float) -> jax.Array:
    rest = weight - jnp.outer(_ratio(weight, bias), bias)
    return trees.norm(rest) <= tolerance * trees.norm(weight)


def _proven(
    weight: jax.Array, bias: jax.Array, found: Update, observed: Update
) -> jax.Array:
    """Says whether the image is certified, `[]` bool; see `analytic`."""
    moved = jnp.abs(bias) > 1e-3 * jnp.max(jnp.abs(bias))
    (found, _), (observed, _) = trees.scaled(found), trees.scaled(observed)

    def dot(a: Update, b: Update) -> jax.Array:
        return trees.total(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))

    scale = dot(found, observed) / dot(found, found)
    rest = jax.tree.map(lambda a, b: scale * a - b, found, observed)
    same = (scale > 0) & (trees.norm(rest) <= 1e-3 * trees.norm(observed))
    return (jnp.sum(moved) > 1) & _is_outer(weight, bias, 1e-3) & same


def refuses_closed_form(params: Params, shape: tuple[int, ...]) -> str | None:
    """Returns why a network's updates have no closed form, None where they have one.

    Args:
      params: of the network, or their shapes.
      shape: `(B, H, W, C)`.
    """
    try:
        _first(params, shape, None)
    except ValueError as error:
        return str(error)
    return None


def _first(
    observed: Update, shape: tuple[int, ...], path: str | None
) -> tuple[jax.Array, jax.Array]:
    dense = layers.first(observed, shape[1] * shape[2] * shape[3], path=path)
    if dense.bias is None:
        raise ValueError(f"Expected path={dense.path!r} to have a bias.")
    return dense.weight, dense.bias


def _ratio(weight: jax.Array, bias: jax.Array) -> jax.Array:
    index = jnp.argmax(jnp.abs(bias))
    return weight[:, index] / bias[index]

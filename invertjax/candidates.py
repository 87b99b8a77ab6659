"""Candidates: what is optimised, how it starts, and how it becomes a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from invertjax.base import Attack, Candidate, Key

Initialisation = Callable[[Key, tuple[int, ...]], jax.Array]


def normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Grey plus Gaussian noise, N(1/2, 1/4^2): about the spread of natural images."""
    return 0.5 + 0.25 * jax.random.normal(key, shape)


def uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Uniform on [0, 1]."""
    return jax.random.uniform(key, shape)


def grey(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """A constant 1/2; every restart starts alike."""
    del key
    return jnp.full(shape, 0.5)


def nearly_grey(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """N(1/2, 1/20^2): grey, but images of one label and restarts can part."""
    return 0.5 + 0.05 * jax.random.normal(key, shape)


def patterned(tile: int) -> Initialisation:
    """A random `tile x tile` patch repeated over the image (Wei et al. 2020, 4.2)."""

    def init(key, shape):
        *lead, height, width, channels = shape
        patch = uniform(key, (*lead, tile, tile, channels))
        reps = (1,) * len(lead) + (-(-height // tile), -(-width // tile), 1)
        return jnp.tile(patch, reps)[..., :height, :width, :]

    return init


def pixels(
    shape: tuple[int, ...],
    labels: jax.Array | None = None,
    *,
    num_classes: int | None = None,
    init: Initialisation = normal,
) -> Candidate:
    """The pixels themselves; labels fixed, or optimised as logits.

    Args:
      shape: `(B, H, W, C)` of the batch's images.
      labels: `[B]` int or `[B, K]` probabilities, where the attacker has them.
      num_classes: K, instead of `labels`: logits start at N(0, 1) and decode to their
        softmax (Zhu et al. 2019, section 3.2).
      init: `(key, shape) -> image`.

    Returns:
      A candidate without bounds (see `box`), z = {"image"} or {"image", "logits"}.

    Raises:
      ValueError: on a shape, or unless exactly one of labels and num_classes is given.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"Expected shape={shape} to be (B, H, W, C), all >= 1.")
    if (labels is None) == (num_classes is None):
        raise ValueError("Expected exactly one of labels and num_classes.")
    if labels is not None and jnp.shape(labels)[:1] != shape[:1]:
        raise ValueError(
            f"Expected labels of shape {jnp.shape(labels)} to have {shape[0]} rows, "
            f"as shape={shape} has."
        )

    def start(key):
        image_key, label_key = jax.random.split(key)
        z = {"image": init(image_key, shape)}
        if num_classes is not None:
            z["logits"] = jax.random.normal(label_key, (shape[0], num_classes))
        return z

    def decode(z):
        label = labels if labels is not None else jax.nn.softmax(z["logits"])
        return {"image": z["image"], "label": label}

    return Candidate(start, decode, lambda z: z)


def box(candidate: Candidate, low: float = 0.0, high: float = 1.0) -> Candidate:
    """`candidate` with its image kept in [low, high] by projection after every step."""

    def project(z):
        z = candidate.project(z)
        return {**z, "image": jnp.clip(z["image"], low, high)}

    return candidate._replace(project=project)


def warm(candidate: Candidate, attack: Attack) -> Candidate:
    """`candidate` that starts from the images that another attack ends with.

    Where those are not finite it starts as it did.

    Args:
      candidate: whose z is a dict.
      attack: on the same batch; all its steps are taken in `init`.
    """

    def start(key):
        own, first = jax.random.split(key)
        z = candidate.init(own)
        state = attack.advance(attack.init(first), jnp.array(attack.steps))
        image = attack.result(state).batch["image"]
        usable = jnp.all(jnp.isfinite(image))
        return {**z, "image": jnp.where(usable, image, z["image"])}

    return candidate._replace(init=start)


def with_entry(
    candidate: Candidate,
    name: str,
    init: Callable[[Key], jax.Array],
    project: Callable[[jax.Array], jax.Array] = lambda entry: entry,
) -> Candidate:
    """`candidate` that also optimises another entry of the batch, z[name].

    What `clients.randomised` would draw, such as a bottleneck's noise or a dropout
    mask, and the attacker does not know.

    Args:
      candidate: any whose z and batch are dicts.
      name: of the entry, in z and in the batch.
      init: `key -> entry`; the key is consumed.
      project: `entry -> entry`, back into the valid set after every step.

    Raises:
      ValueError: when started, if z has an entry of that name.
    """

    def inner(z):
        return {other: leaf for other, leaf in z.items() if other != name}

    def start(key):
        inner_key, entry_key = jax.random.split(key)
        z = candidate.init(inner_key)
        if name in z:
            raise ValueError(f"Expected name={name!r} not to be one of {sorted(z)}.")
        return {**z, name: init(entry_key)}

    def decode(z):
        return {**candidate.decode(inner(z)), name: z[name]}

    def back(z):
        return {**candidate.project(inner(z)), name: project(z[name])}

    return Candidate(start, decode, back)

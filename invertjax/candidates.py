"""Candidates: what is optimised, how it starts, and how it becomes a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from invertjax.base import Attack, Batch, Candidate, Key, Point

Initialisation = Callable[[Key, tuple[int, ...]], jax.Array]


def normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws pixels from N(1/2, 1/4^2), which has about the spread of natural images."""
    return 0.5 + 0.25 * jax.random.normal(key, shape)


def uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws pixels uniformly from [0, 1]."""
    return jax.random.uniform(key, shape)


def grey(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Returns pixels of 1/2, so that every restart starts alike."""
    del key
    return jnp.full(shape, 0.5)


def nearly_grey(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws pixels from N(1/2, 1/20^2): nearly grey, but no two images are equal."""
    return 0.5 + 0.05 * jax.random.normal(key, shape)


def patterned(tile: int) -> Initialisation:
    """Repeats a random `tile x tile` patch over the image (Wei et al. 2020, 4.2)."""

    def init(key: Key, shape: tuple[int, ...]) -> jax.Array:
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
    """Optimises the pixels themselves; labels are fixed, or optimised as logits.

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

    def start(key: Key) -> Point:
        image_key, label_key = jax.random.split(key)
        z = {"image": init(image_key, shape)}
        if num_classes is not None:
            z["logits"] = jax.random.normal(label_key, (shape[0], num_classes))
        return z

    def decode(z: Point) -> Batch:
        label = labels if labels is not None else jax.nn.softmax(z["logits"])
        return {"image": z["image"], "label": label}

    return Candidate(start, decode, lambda z: z)


def shapes(candidate: Candidate) -> Point:
    """Returns the shapes of what a candidate optimises, without computing anything."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(candidate.init, key)


def with_labels(candidate: Candidate, labels: jax.Array) -> Candidate:
    """Puts these labels in the place of the candidate's own, known or optimised.

    Args:
      candidate: whose z and batch are dicts; logits are taken out of its z.
      labels: `[B]` int or `[B, K]` probabilities.
    """
    start = shapes(candidate)
    dropped = {name: start[name] for name in ("logits",) if name in start}
    # The candidate itself still reads logits, so it is given zeros.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), dropped)

    def without(z: Point) -> Point:
        return {name: leaf for name, leaf in z.items() if name not in dropped}

    def decode(z: Point) -> Batch:
        return {**candidate.decode({**z, **zeros}), "label": labels}

    return Candidate(
        lambda key: without(candidate.init(key)),
        decode,
        lambda z: without(candidate.project({**z, **zeros})),
        candidate.bounds,
    )


def box(candidate: Candidate, low: float = 0.0, high: float = 1.0) -> Candidate:
    """Keeps the image of a candidate in [low, high], by projection after every step."""

    def project(z: Point) -> Point:
        z = candidate.project(z)
        return {**z, "image": jnp.clip(z["image"], low, high)}

    if candidate.bounds is not None:
        low, high = max(low, candidate.bounds[0]), min(high, candidate.bounds[1])
    return candidate._replace(project=project, bounds=(low, high))


def boxed(candidate: Candidate) -> Candidate:
    """Keeps the image of a candidate in its own bounds, or in [0, 1] if it has none."""
    return box(candidate) if candidate.bounds is None else candidate


def warm(candidate: Candidate, attack: Attack) -> Candidate:
    """Lets a candidate start from the images that another attack ends with.

    Where those are not finite it starts as it would have done.

    Args:
      candidate: whose z is a dict.
      attack: on the same batch; all its steps are taken in `init`.
    """

    def start(key: Key) -> Point:
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
    """Lets a candidate also optimise another entry of the batch, z[name].

    Such an entry is what `clients.randomised` would draw, a bottleneck's noise or a
    dropout mask, and what the attacker does not know.

    Args:
      candidate: any whose z and batch are dicts.
      name: of the entry, in z and in the batch.
      init: `key -> entry`; the key is consumed.
      project: `entry -> entry`, back into the valid set after every step.

    Raises:
      ValueError: when started, if z has an entry of that name.
    """

    def inner(z: Point) -> Point:
        return {other: leaf for other, leaf in z.items() if other != name}

    def start(key: Key) -> Point:
        inner_key, entry_key = jax.random.split(key)
        z = candidate.init(inner_key)
        if name in z:
            raise ValueError(f"Expected name={name!r} not to be one of {sorted(z)}.")
        return {**z, name: init(entry_key)}

    def decode(z: Point) -> Batch:
        return {**candidate.decode(inner(z)), name: z[name]}

    def back(z: Point) -> Point:
        return {**candidate.project(inner(z)), name: project(z[name])}

    return Candidate(start, decode, back, candidate.bounds)

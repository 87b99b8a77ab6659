"""Transforms images by searched policies of augmentations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from invertjax import clients
from invertjax.base import Batch, Client, Key
from invertjax.defenses.transformed import transformed

# `(image [H, W, C], strength, direction) -> image`
Operation = Callable[[jax.Array, float, jax.Array], jax.Array]

# The authors' 50 transformations: an operation and its level, 0 to 9. A policy is a
# list of their numbers, counted from 0.
_LIBRARY = [
    (name, int(level))
    for name, level in (
        entry.split()
        for entry in """
invert 7, contrast 6, rotate 2, translate_x 9, sharpness 1,
sharpness 3, shear_y 2, translate_y 2, autocontrast 5, equalize 2,
shear_y 5, posterize 5, colour 3, brightness 5, sharpness 9,
brightness 9, equalize 5, equalize 1, contrast 7, sharpness 5,
colour 5, translate_x 5, equalize 7, autocontrast 8, translate_y 3,
sharpness 6, brightness 6, colour 8, solarize 0, invert 0,
equalize 0, autocontrast 0, equalize 8, equalize 4, colour 5,
equalize 5, autocontrast 4, solarize 4, brightness 3, colour 0,
solarize 1, autocontrast 0, translate_y 3, translate_y 3, autocontrast 1,
solarize 1, equalize 5, invert 0, translate_y 3, autocontrast 1
""".split(",")
    )
]


def ats(client: Client, policy: str = "3-1-7+43-18-18") -> Client:
    """Makes a client that trains on images transformed by a policy of its choice.

    Gao et al. (2021), "Privacy-preserving Collaborative Learning with Automatic
    Transformation Search". A search finds the policies for a data set; the default is
    theirs for CIFAR-100. The transformations are those of their code, where an image
    is an 8-bit one of Pillow.

    Every image follows one policy, drawn among those given; each of its steps goes one
    of two ways (left or right, up or down, more or less), drawn likewise. These are the
    entries "policy" `[B]` (its number) and "directions" `[B, steps]` (-1 or 1) of the
    batch (`clients.randomised`): few enough for an attacker to try them all.

    Every step is differentiable almost everywhere in the image. No attacker can find
    what it moves out of the image or clips.

    Deviations: pixels are not rounded to 8 bits; shears are bilinear, theirs bicubic.
    Equalisation and posterisation, whose derivatives are zero, are not offered.

    Args:
      client: `(params, batch, key) -> update`.
      policy: numbers of the authors' 50 transformations joined by "-"; several
        policies joined by "+".

    Raises:
      ValueError: on a number that is not that of a transformation offered.
    """
    policies = [_steps(part) for part in policy.split("+")]
    longest = max(map(len, policies))

    def draw(key: Key, batch: Batch) -> dict:
        size = len(batch["image"])
        policy_key, direction_key = jax.random.split(key)
        return {
            "policy": jax.random.randint(policy_key, (size,), 0, len(policies)),
            "directions": jax.random.rademacher(
                direction_key, (size, longest), jnp.float32
            ),
        }

    def one(image: jax.Array, policy: jax.Array, directions: jax.Array) -> jax.Array:
        branches = [_following(steps) for steps in policies]
        image_after = jax.lax.switch(policy, branches, image, directions)
        return image_after.astype(image.dtype)

    def transform(batch: Batch) -> Batch:
        rest = dict(batch)
        choices = rest.pop("policy"), rest.pop("directions")
        return {**rest, "image": jax.vmap(one)(batch["image"], *choices)}

    return clients.randomised(transformed(client, transform), draw)


def _steps(policy: str) -> list[tuple[Operation, float]]:
    """Returns `[(operation, strength)]`; the directions are drawn later."""
    steps = []
    for number in policy.split("-"):
        known = number.isdecimal() and int(number) < len(_LIBRARY)
        name, level = _LIBRARY[int(number)] if known else ("unknown", 0)
        if name not in _OPERATIONS:
            offered = [i for i, (name, _) in enumerate(_LIBRARY) if name in _OPERATIONS]
            raise ValueError(
                f"Expected policy={policy!r} without {number!r} ({name}): the "
                f"transformations are {', '.join(map(str, offered))}."
            )
        operation, greatest = _OPERATIONS[name]
        steps.append((operation, greatest * level / 9))
    return steps


def _following(
    steps: list[tuple[Operation, float]],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def follow(image: jax.Array, directions: jax.Array) -> jax.Array:
        image = image.astype(jnp.promote_types(image.dtype, jnp.float32))
        for (operation, strength), direction in zip(steps, directions, strict=False):
            image = operation(image, strength, direction)
        return image

    return follow


def _sampled(
    image: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    *,
    order: int,
    fill: float = 0.0,
) -> jax.Array:
    """Reads the image at real rows and columns `[H, W]`; `fill` outside of it."""
    height, width, _ = image.shape
    inside = (rows >= -0.5) & (rows < height - 0.5)
    inside &= (columns >= -0.5) & (columns < width - 0.5)

    def channel(plane: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(
            plane, [rows, columns], order=order, mode="nearest"
        )

    sampled = jax.vmap(channel, in_axes=-1, out_axes=-1)(image)
    return jnp.where(inside[..., None], sampled, fill)


def _grid(image: jax.Array) -> list[jax.Array]:
    height, width, _ = image.shape
    rows, columns = jnp.arange(height, dtype=jnp.float32), jnp.arange(width)
    return jnp.meshgrid(rows, columns.astype(jnp.float32), indexing="ij")


def _translate_x(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    rows, columns = _grid(image)
    moved = columns + direction * strength * image.shape[1]
    return _sampled(image, rows, moved, order=0)


def _translate_y(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    rows, columns = _grid(image)
    moved = rows + direction * strength * image.shape[0]
    return _sampled(image, moved, columns, order=0)


def _shear_y(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    rows, columns = _grid(image)
    moved = rows + direction * strength * (columns + 0.5)
    return _sampled(image, moved, columns, order=1)


def _rotate(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    """Rotates by `strength` degrees, always anticlockwise; fills up with grey 128."""
    del direction
    rows, columns = _grid(image)
    middle_row, middle_column = ((side - 1) / 2 for side in image.shape[:2])
    down, right = rows - middle_row, columns - middle_column
    cos, sin = jnp.cos(jnp.deg2rad(strength)), jnp.sin(jnp.deg2rad(strength))
    rows = middle_row + cos * down + sin * right
    columns = middle_column + cos * right - sin * down
    return _sampled(image, rows, columns, order=0, fill=128 / 255)


def _enhanced(
    image: jax.Array, plain: jax.typing.ArrayLike, strength: float, direction: jax.Array
) -> jax.Array:
    """Moves the image away from a plainer one, or towards it."""
    return jnp.clip(plain + (1 + direction * strength) * (image - plain), 0, 1)


def _luma(image: jax.Array) -> jax.Array:
    """Returns the luma `[H, W, 1]`: ITU-R BT.601 of three channels, else their mean."""
    if image.shape[-1] != 3:
        return image.mean(-1, keepdims=True)
    return jnp.sum(image * jnp.array([[[0.299, 0.587, 0.114]]]), -1, keepdims=True)


def _brightness(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    return _enhanced(image, 0.0, strength, direction)


def _contrast(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    return _enhanced(image, _luma(image).mean(), strength, direction)


def _colour(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    return _enhanced(image, _luma(image), strength, direction)


def _sharpness(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    around = [
        image[i : i + height - 2, j : j + width - 2] for i in range(3) for j in range(3)
    ]
    smooth = (sum(around) + 4 * image[1:-1, 1:-1]) / 13
    plain = image.at[1:-1, 1:-1].set(smooth)
    return _enhanced(image, plain, strength, direction)


def _solarize(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    """Inverts the bright pixels: none at strength 0, all at strength 1."""
    del direction
    return jnp.where(255 * image < 256 * (1 - strength), image, 1 - image)


def _invert(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    del strength, direction
    return 1 - image


def _autocontrast(image: jax.Array, strength: float, direction: jax.Array) -> jax.Array:
    """Stretches every channel to [0, 1]; a constant one stays as it is."""
    del strength, direction
    low, high = (f(image, (0, 1), keepdims=True) for f in (jnp.min, jnp.max))
    flat = high <= low
    return jnp.where(flat, image, (image - low) / jnp.where(flat, 1, high - low))


# name: (operation, its strength at level 9)
_OPERATIONS = {
    "translate_x": (_translate_x, 150 / 331),
    "translate_y": (_translate_y, 150 / 331),
    "shear_y": (_shear_y, 0.3),
    "rotate": (_rotate, 30.0),
    "brightness": (_brightness, 0.5),
    "contrast": (_contrast, 0.5),
    "colour": (_colour, 0.5),
    "sharpness": (_sharpness, 0.5),
    "solarize": (_solarize, 1.0),
    "invert": (_invert, 0.0),
    "autocontrast": (_autocontrast, 0.0),
}

"""Small real images for tests: crops of the photographs that scikit-image ships."""

import functools

import jax.numpy as jnp
import numpy as np
from skimage import data

_NAMES = ("brick", "camera", "cell", "clock", "coins", "grass", "gravel", "moon")
_NAMES += ("page", "text")
CLASSES = len(_NAMES)  # the photograph is the class
SIDE = 12
EACH = 60  # crops of a class; those of class c start at row EACH * c


def public():
    """600 crops `[600, 12, 12, 1]` in [0, 1] of the left halves, with labels."""
    return _halves()[0]


def private():
    """As many of the right halves."""
    return _halves()[1]


def batches(photos, seed, *shape):
    """Random rows, as a batch of leading axes `shape`."""
    rows = np.random.default_rng(seed).integers(0, len(photos["label"]), shape)
    return {name: jnp.asarray(leaf[rows]) for name, leaf in photos.items()}


@functools.cache
def _halves():
    rng = np.random.default_rng(0)
    left, right = [], []
    for name in _NAMES:
        photo = getattr(data, name)().astype(np.float32) / 255
        middle = photo.shape[1] // 2
        left.append(_crops(rng, photo[:, :middle]))
        right.append(_crops(rng, photo[:, middle:]))
    label = np.repeat(np.arange(CLASSES), EACH)
    return [{"image": np.concatenate(half), "label": label} for half in (left, right)]


def _crops(rng, photo):
    corners = rng.integers(0, np.array(photo.shape) - SIDE, (EACH, 2))
    crops = [photo[y : y + SIDE, x : x + SIDE] for y, x in corners]
    return np.stack(crops)[..., None]

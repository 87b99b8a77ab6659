"""ATS: every operation against Pillow and closed forms; what is drawn and shared."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from support import toy

from invertjax import clients, defenses

# The function in `defenses` has the name of its file.
OPERATIONS = importlib.import_module("invertjax.defenses.ats")._OPERATIONS
PUBLISHED = ("3-1-7+43-18-18", "21-13-3+7-4-15")


def echo(params, batch, key):
    """A client that shares its batch: what a transform leaves is what comes out."""
    del params, key
    return batch


def transform(policy, images, directions, chosen=None):
    """The images of a batch after a policy, whose every choice is given."""
    batch = {
        "image": jnp.asarray(images, jnp.float32),
        "label": jnp.zeros(len(images), jnp.int32),
        "policy": jnp.zeros(len(images), jnp.int32) if chosen is None else chosen,
        "directions": jnp.asarray(directions, jnp.float32),
    }
    shared = defenses.ats(echo, policy)(None, batch, jax.random.key(0))
    assert shared.keys() == {"image", "label"}  # the entries are spent
    return np.asarray(shared["image"])


def ramp(side=12, channels=3):
    """`[1, side, side, channels]` in [0, 1], of another value at every pixel."""
    size = side * side * channels
    return np.linspace(0.1, 0.9, size).reshape(1, side, side, channels)


# Operations


def _affine(image, matrix, resample=Image.Resampling.NEAREST):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=(0, 0, 0)
    )


def _rotated(image, strength, direction):
    del direction
    turned = image.convert("RGBA").rotate(strength)
    grey = Image.new("RGBA", image.size, (128,) * 4)
    return Image.composite(turned, grey, turned).convert(image.mode)


def _enhanced(enhancer):
    return lambda image, s, way: enhancer(image).enhance(1 + way * s)


PILLOW = {
    "translate_x": lambda i, s, way: _affine(i, (1, 0, way * s * i.width, 0, 1, 0)),
    "translate_y": lambda i, s, way: _affine(i, (1, 0, 0, 0, 1, way * s * i.height)),
    "shear_y": lambda i, s, way: _affine(
        i, (1, 0, 0, way * s, 1, 0), Image.Resampling.BILINEAR
    ),
    "rotate": _rotated,
    "brightness": _enhanced(ImageEnhance.Brightness),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "colour": _enhanced(ImageEnhance.Color),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "solarize": lambda i, s, way: ImageOps.solarize(i, 256 * (1 - s)),
    "invert": lambda i, s, way: ImageOps.invert(i),
    "autocontrast": lambda i, s, way: ImageOps.autocontrast(i),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_that_of_pillow(name):
    operation, greatest = OPERATIONS[name]
    image = np.random.default_rng(0).integers(20, 230, (12, 17, 3)).astype(np.uint8)
    ours = jax.jit(operation)
    for level in (0, 2, 5, 9):
        for way in (-1.0, 1.0):
            strength = greatest * level / 9
            theirs = PILLOW[name](Image.fromarray(image), strength, way)
            found = 255 * ours(toy.floats(image / 255), strength, way)
            # Pillow rounds once or twice, to whole numbers.
            np.testing.assert_allclose(found, np.asarray(theirs), atol=1.6)


def test_inverting_twice_is_nothing():
    once = transform("0", ramp(), [[1.0]])
    np.testing.assert_allclose(once, 1 - ramp(), atol=1e-6)
    twice = transform("0-47", ramp(), [[1.0, -1.0]])
    np.testing.assert_allclose(twice, ramp(), atol=1e-6)


def test_translations_move_by_whole_pixels_and_leave_black():
    # 150 / 331 * 9 / 9 of 12 pixels are 5.4: 5 pixels
    left = transform("3", ramp(), [[1.0]])
    np.testing.assert_allclose(left[:, :, :7], ramp()[:, :, 5:], atol=1e-6)
    assert (left[:, :, 7:] == 0).all()
    right = transform("3", ramp(), [[-1.0]])
    np.testing.assert_allclose(right[:, :, 5:], ramp()[:, :, :7], atol=1e-6)
    # level 2 of 9: 1.2 pixels, then back
    up_and_down = transform("7-7", ramp(), [[1.0, -1.0]])
    np.testing.assert_allclose(up_and_down[:, 1:], ramp()[:, 1:], atol=1e-6)
    assert (up_and_down[:, 0] == 0).all()


def test_enhancements_in_numbers():
    # brightness 9 is a factor of 1 -+ .5, clipped; contrast 7 of 1 -+ .5 * 7 / 9
    image = ramp(channels=1)
    np.testing.assert_allclose(transform("15", image, [[-1.0]]), image / 2, atol=1e-6)
    brighter = np.minimum(1.5 * image, 1)
    np.testing.assert_allclose(transform("15", image, [[1.0]]), brighter, atol=1e-6)
    flatter = 0.5 + (1 - 3.5 / 9) * (image - 0.5)
    np.testing.assert_allclose(transform("18", image, [[-1.0]]), flatter, atol=1e-6)
    stretched = (image - 0.1) / 0.8
    np.testing.assert_allclose(transform("8", image, [[1.0]]), stretched, atol=1e-6)


def test_a_flat_image_has_no_contrast_to_stretch():
    flat = np.full((1, 6, 6, 3), 0.3)
    np.testing.assert_allclose(transform("8", flat, [[1.0]]), flat, rtol=1e-6)

    def total(image):
        return transform_traced("8", image).sum()

    assert jnp.isfinite(jax.grad(total)(toy.floats(flat))).all()


def transform_traced(policy, image):
    choices = {"policy": jnp.zeros(1, jnp.int32), "directions": jnp.ones((1, 5))}
    batch = {"image": image, "label": jnp.zeros(1, jnp.int32), **choices}
    return defenses.ats(echo, policy)(None, batch, jax.random.key(0))["image"]


# Policies


def test_every_image_follows_its_own_policy_and_ways():
    images = np.concatenate([ramp(), ramp(), ramp()])
    ways = [[1.0, 1, 1], [-1.0, 1, 1], [1.0, -1, 1]]
    policy = jnp.array([0, 0, 1])
    found = transform("3-1-7+43-18-18", images, ways, policy)
    alone = [("3-1-7", ways[0]), ("3-1-7", ways[1]), ("43-18-18", ways[2])]
    for image, (name, way) in zip(found, alone, strict=True):
        np.testing.assert_allclose(image, transform(name, ramp(), [way])[0], atol=1e-6)


def test_a_shorter_policy_takes_the_first_ways():
    found = transform("3-1-7+0", ramp(), [[1.0, -1, 1]], jnp.array([1]))
    np.testing.assert_allclose(found, 1 - ramp(), atol=1e-6)


def test_choices_are_drawn_evenly_and_afresh():
    client = defenses.ats(echo, "3+15")  # a shift, or a change of brightness
    image = jnp.full((64, 6, 6, 1), 0.5)

    def share(key):
        return client(None, {"image": image, "label": jnp.zeros(64)}, key)["image"]

    first, second = jax.jit(jax.vmap(share))(jax.random.split(jax.random.key(0)))
    # middle pixels: black on one side (2 of 6), or 1/4 or 3/4 of all
    kinds = np.stack([first[:, 3, 0, 0], first[:, 3, 5, 0]])
    counts = np.unique(kinds.T.round(2), axis=0, return_counts=True)[1]
    # four outcomes of 16 +- 3.5 each
    assert len(counts) == 4 and counts.min() > 4
    assert not np.array_equal(first, second)
    again = share(jax.random.split(jax.random.key(0))[0])
    np.testing.assert_allclose(again, first, atol=1e-6)  # not compiled as one


@pytest.mark.parametrize("policy", [*PUBLISHED, "1-2-5-8-10+28-37-40-12"])
def test_one_program_differentiates_every_step(policy):
    """Shared gradients can be differentiated in the images before the policy."""
    client = defenses.ats(clients.gradient(toy.loss_fn), policy)
    params, batch = toy.init(0), toy.batch(0, 2)

    def size(image, key):
        update = client(params, {**batch, "image": image}, key)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(update))

    keys = jax.random.split(jax.random.key(0), 3)
    slopes = jax.jit(jax.vmap(jax.grad(size), in_axes=(None, 0)))(batch["image"], keys)
    assert jnp.isfinite(slopes).all()
    assert (jnp.abs(slopes).max((1, 2, 3, 4)) > 0).all()


def test_images_keep_their_type():
    image = jnp.asarray(ramp(), jnp.bfloat16)
    for policy in PUBLISHED:
        found = transform_traced(policy, image)
        assert (found.dtype, found.shape) == (image.dtype, image.shape)
        expected = transform_traced(policy, image.astype(jnp.float32))
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=2**-6)


@pytest.mark.parametrize("policy", ["3-9", "11", "50", "3-", "left", "-1"])
def test_transformations_that_are_not_offered(policy):
    with pytest.raises(ValueError, match="the transformations are 0, 1, 2, 3, 4, 5, 6"):
        defenses.ats(echo, policy)

"""Candidates: starts, boxes, and what z decodes to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax import candidates

SHAPE = (2, 5, 7, 3)


@pytest.mark.parametrize(
    "init",
    [
        candidates.normal,
        candidates.uniform,
        candidates.grey,
        candidates.nearly_grey,
        candidates.patterned(2),
        candidates.patterned(9),
    ],
    ids=["normal", "uniform", "grey", "nearly grey", "patterned", "one tile"],
)
def test_starts_have_the_shape_of_the_images(init):
    labels = jnp.array([1, 0])
    candidate = candidates.pixels(SHAPE, labels, init=init)
    z = candidate.init(jax.random.key(0))
    assert set(z) == {"image"}
    batch = candidate.decode(z)
    assert batch["image"].shape == SHAPE
    assert batch["image"].dtype == jnp.float32
    np.testing.assert_array_equal(batch["label"], labels)
    other = candidate.init(jax.random.key(1))
    assert (init is candidates.grey) == bool(
        jnp.array_equal(z["image"], other["image"])
    )


def test_statistics_of_the_starts():
    key, shape = jax.random.key(0), (1, 64, 64, 3)
    normal = candidates.normal(key, shape)
    # 12288 draws: the standard error of mean and deviation is below 0.0023.
    np.testing.assert_allclose(normal.mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(normal.std(), 0.25, atol=0.01)
    uniform = candidates.uniform(jax.random.key(1), shape)
    assert 0 <= uniform.min() < 0.01 < 0.99 < uniform.max() <= 1
    np.testing.assert_array_equal(candidates.grey(jax.random.key(0), shape), 0.5)


def test_patterned_repeats_a_tile():
    image = candidates.patterned(2)(jax.random.key(0), SHAPE)
    np.testing.assert_array_equal(image[:, 2:], image[:, :-2])
    np.testing.assert_array_equal(image[:, :, 2:], image[:, :, :-2])
    tile = image[:, :2, :2]
    assert len(np.unique(tile)) == tile.size  # one tile an image and channel


def test_joint_labels_decode_to_probabilities():
    candidate = candidates.pixels(SHAPE, num_classes=4)
    z = candidate.init(jax.random.key(0))
    assert z["logits"].shape == (2, 4)
    label = candidate.decode(z)["label"]
    assert (label > 0).all()
    np.testing.assert_allclose(label.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(label.argmax(1), z["logits"].argmax(1))


@pytest.mark.parametrize(
    "candidate",
    [
        candidates.pixels(SHAPE, num_classes=4),
        candidates.pixels(SHAPE, jnp.array([0, 1])),
    ],
    ids=["joint", "known"],
)
def test_other_labels_take_the_place_of_those_of_the_candidate(candidate):
    other = candidates.with_labels(candidates.box(candidate), jnp.array([3, 2]))
    key = jax.random.key(0)
    z = other.project(other.init(key))
    assert set(z) == {"image"} == set(candidates.shapes(other))
    own = candidate.init(jax.random.clone(key))["image"]
    np.testing.assert_array_equal(z["image"], own.clip(0, 1))
    batch = other.decode(z)
    np.testing.assert_array_equal(batch["image"], z["image"])
    np.testing.assert_array_equal(batch["label"], [3, 2])


def test_box_projects_the_image_alone():
    free = candidates.pixels((1, 1, 3, 1), num_classes=2)
    z = {"image": jnp.array([-0.5, 0.25, 1.5]).reshape(1, 1, 3, 1)}
    z["logits"] = jnp.array([[-7.0, 7.0]])
    np.testing.assert_array_equal(free.project(z)["image"], z["image"])
    boxed = candidates.box(free).project(z)
    np.testing.assert_array_equal(boxed["image"].ravel(), [0, 0.25, 1])
    np.testing.assert_array_equal(boxed["logits"], z["logits"])
    narrow = candidates.box(free, 0.5, 0.75).project(z)
    np.testing.assert_array_equal(narrow["image"].ravel(), [0.5, 0.5, 0.75])


def test_boxes_nest():
    free = candidates.pixels((1, 1, 3, 1), num_classes=2)
    z = {"image": jnp.array([-0.5, 0.25, 1.5]).reshape(1, 1, 3, 1)}
    nested = candidates.box(candidates.box(free, high=0.5))
    np.testing.assert_array_equal(nested.project(z)["image"].ravel(), [0, 0.25, 0.5])


@pytest.mark.parametrize(
    "shape, labels, classes, message",
    [
        ((5, 7, 3), jnp.zeros(5, int), None, r"shape=\(5, 7, 3\)"),
        ((0, 5, 7, 3), jnp.zeros(0, int), None, r"shape=\(0, 5, 7, 3\)"),
        (SHAPE, None, None, "exactly one of labels and num_classes"),
        (SHAPE, jnp.zeros(2, int), 3, "exactly one of labels and num_classes"),
        (SHAPE, jnp.zeros(3, int), None, r"labels of shape \(3,\) to have 2 rows"),
        (SHAPE, jnp.zeros(()), None, r"labels of shape \(\) to have 2 rows"),
    ],
)
def test_impossible_candidates(shape, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        candidates.pixels(shape, labels, num_classes=classes)

"""Soteria: which units it hides, and that it changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from invertjax import clients, defenses, distances
from invertjax.defenses.soteria import scores

UNITS = 40  # more than one block, and not a whole number of them
PLAIN = clients.gradient(toy.loss_fn)
KEY = jax.random.key(0)


def features(params, images):
    return jnp.tanh(toy.dense(params["first"], images.reshape(len(images), -1)))


@pytest.fixture(scope="module")
def params():
    return toy.init(0, hidden=UNITS)


def share_update(params, batch, share):
    return defenses.soteria(PLAIN, features, "last", share)(params, batch, KEY)


def closed_form(params, batch):
    """r = tanh(x W + c) has |d r_i / d x| = (1 - r_i^2) |W_i|: `[F]` in float64."""
    weight = np.asarray(params["first"]["kernel"], np.float64)
    flat = np.asarray(batch["image"], np.float64).reshape(len(batch["image"]), -1)
    units = np.tanh(flat @ weight + np.asarray(params["first"]["bias"]))
    slopes = (1 - units**2) * np.linalg.norm(weight, axis=0)
    return (slopes / (np.abs(units) + 0.1)).mean(0)


def test_scores_are_those_of_the_closed_form(params):
    batch = toy.batch(0, 3)
    found = jax.jit(lambda p, x: scores(features, p, x))(params, batch["image"])
    np.testing.assert_allclose(found, closed_form(params, batch), rtol=1e-4)


def test_exactly_a_share_of_the_rows_of_one_layer_is_hidden(params):
    """The units with the least scores; strengths are an axis."""
    batch = toy.batch(1, 2)
    shares = jnp.array([0.0, 0.33, 0.7, 0.8, 1.0])

    @jax.jit
    def run(params, batch):
        update = jax.vmap(lambda share: share_update(params, batch, share))(shares)
        return PLAIN(params, batch, KEY), update

    plain, updates = jax.tree.map(np.asarray, run(params, batch))
    score = closed_form(params, batch)
    ascending = np.argsort(score)
    for i, count in enumerate([0, 13, 28, 32, 40]):  # round(share 40)
        plain["last"]["kernel"] = plain["last"]["kernel"].copy()
        plain["last"]["kernel"][ascending[:count]] = 0
        update = jax.tree.map(lambda leaf, row=i: leaf[row], updates)
        shown = (update["last"]["kernel"] != 0).any(1)
        assert shown.sum() == UNITS - count
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            update,
            plain,
        )
        if count == 32:  # as the authors' code: what is not below the percentile
            np.testing.assert_array_equal(shown, score >= np.percentile(score, 80))


def test_units_that_are_off_are_hidden_first():
    """A relu unit that is off has score 0, not 0 / 0."""
    params = toy.init(3, hidden=10)
    params["first"]["bias"] = params["first"]["bias"].at[jnp.array([2, 7])].set(-99.0)

    def relu(params, images):
        return jax.nn.relu(toy.dense(params["first"], images.reshape(1, -1)))

    images = toy.batch(3)["image"]
    score = jax.jit(lambda images: scores(relu, params, images))(images)
    assert bool(jnp.isfinite(score).all())
    assert {2, 7} <= set(np.flatnonzero(score == 0).tolist())


def test_the_mask_has_no_derivative(params):
    """Backwards through the client, the mask is a constant."""
    batch = toy.batch(4)

    def total(client, image, kept):
        update = client(params, {**batch, "image": image}, KEY)
        return jnp.sum(jnp.where(kept, update["last"]["kernel"], 0) ** 2)

    @jax.jit
    def both(image):
        client = defenses.soteria(PLAIN, features, "last", 0.5)
        kept = client(params, batch, KEY)["last"]["kernel"] != 0
        through = jax.grad(lambda image: total(client, image, True))(image)
        return through, jax.grad(lambda image: total(PLAIN, image, kept))(image)

    through, around = both(batch["image"])
    np.testing.assert_allclose(through, around, rtol=1e-4, atol=1e-6)
    assert jnp.any(through != 0)


def test_soteria_keeps_dtypes(params):
    narrow, batch = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf,
        (params, toy.batch(5)),
    )
    update = jax.jit(share_update)(narrow, batch, 0.0)  # nothing is cut by its rank
    assert jax.tree.map(lambda leaf: leaf.dtype, update) == jax.tree.map(
        lambda leaf: leaf.dtype, narrow
    )
    wide = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf,
        (narrow, batch),
    )
    exact = jax.jit(share_update)(*wide, 0.0)
    # Three layers of products in 8 bits, whose errors are those of their largest terms.
    for found, of_wide in zip(*map(jax.tree.leaves, (update, exact)), strict=True):
        largest = float(np.abs(of_wide).max())
        np.testing.assert_allclose(
            found.astype(jnp.float32), of_wide, atol=2**-4 * largest
        )


def test_soteria_says_what_is_wrong(params):
    batch = toy.batch(0)
    with pytest.raises(ValueError, match=r"Expected share=1.5 <= 1."):
        share_update(params, batch, 1.5)
    for path, message in (
        ("nowhere", "Expected path='nowhere' to be a dense layer"),
        ("first", "Expected path='first' with 36 inputs"),
    ):
        client = defenses.soteria(PLAIN, features, path, 0.5)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(client, params, batch, KEY)


def test_a_distance_without_a_layer_is_that_of_the_others():
    guess = {"a": {"w": jnp.array([3.0, 0.0])}, "ab": jnp.array([4.0])}
    observed = {"a": {"w": jnp.array([0.0, 4.0])}, "ab": jnp.array([3.0])}
    for path in ("a", "a/w"):  # "a" is not "ab"
        left = distances.without(distances.squared, path)
        assert left(guess, observed) == 1
        # What is left is parallel: 4 and 3.
        cosine = distances.without(distances.cosine, path)(guess, observed)
        assert cosine == pytest.approx(0, abs=1e-6)
    assert distances.without(distances.squared, "ab")(guess, observed) == 25
    assert distances.without(distances.squared, "a", "ab")(guess, observed) == 0
    with pytest.raises(ValueError, match="Expected path='b' to be in the update"):
        distances.without(distances.squared, "b")(guess, observed)

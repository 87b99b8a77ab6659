"""MixUp and InstaHide: what is drawn, what is trained on, and how it is undone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from invertjax import candidates, clients, defenses, demixing

K = toy.CLASSES
SEEDS = 1000


def echo(params, batch, key):
    """A client that shares its batch: what a transform leaves is what comes out."""
    del params, key
    return batch


def shared(client, batch, seed=0):
    # Compiled, so that what a batch brings is not drawn.
    return jax.jit(lambda batch: client(None, batch, jax.random.key(seed)))(batch)


@functools.partial(jax.jit, static_argnames=("count", "size"))
def _drawn(concentration, largest, count, size):
    # The mixtures of unit vectors are the rows of the matrix.
    batch = {
        "image": jnp.eye(size).reshape(size, size, 1, 1),
        "label": jnp.arange(size),
    }
    options = {"count": count, "concentration": concentration, "largest": largest}
    client = defenses.mixup(echo, size, **options)
    images = jax.vmap(lambda seed: shared(client, batch, seed)["image"])(
        jnp.arange(SEEDS)
    )
    return images.reshape(SEEDS, size, size)


def drawn(count, size, concentration=1.0, largest=1.0):
    """`[SEEDS, size, size]` mixing matrices, one for every call."""
    alpha = jnp.broadcast_to(jnp.asarray(concentration, jnp.float32), (count,))
    found = _drawn(alpha, largest, count, size)
    return np.asarray(found)


def mixtures(mixing, images):
    return np.einsum("ij,jhwc->ihwc", mixing, images)


# What is drawn


@pytest.mark.parametrize("size, count", [(1, 1), (2, 2), (4, 3), (4, 4)])
def test_a_mixing_matrix_is_a_sum_of_weighted_permutations(size, count):
    mixing = drawn(count, size)
    np.testing.assert_allclose(mixing.sum(2), 1, rtol=1e-6)
    # Weights are positive with probability one: row i holds image i and others,
    # and image i is in as many mixtures.
    assert mixing.min() >= 0
    present = mixing > 0
    assert (present.sum(2) == count).all() and (present.sum(1) == count).all()
    assert present.diagonal(axis1=1, axis2=2).all()
    if count > 1:
        assert len(np.unique(mixing, axis=0)) == len(mixing)


def test_partners_are_drawn_evenly():
    present = drawn(3, 4) > 0
    partners = present.mean(0)[~np.eye(4, dtype=bool)]
    # two of three others, +- .015
    np.testing.assert_allclose(partners, 2 / 3, atol=0.06)


def test_a_mixture_of_one_is_the_batch():
    batch = toy.batch(0, 3)
    mixed = shared(defenses.mixup(echo, K, count=1), batch)
    np.testing.assert_array_equal(mixed["image"], batch["image"])
    np.testing.assert_array_equal(mixed["label"], jax.nn.one_hot(batch["label"], K))


def test_weights_are_dirichlet():
    def weights(concentration):
        return drawn(2, 2, concentration)[:, 0, 0]

    for concentration in (0.4, 1.0, 4.0):
        found = weights(concentration)
        # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); 1000 draws of bounded
        # support know either to a few percent.
        assert found.mean() == pytest.approx(0.5, abs=0.03)
        expected = 1 / (4 * (2 * concentration + 1))
        assert found.var() == pytest.approx(expected, rel=0.1)
    # Beta(3, 1), image i's own weight first, has mean 3/4.
    assert weights([3.0, 1.0]).mean() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("count", [2, 4])
def test_no_image_weighs_more_than_the_largest(count):
    free, bound = drawn(count, count), drawn(count, count, largest=0.65)
    assert free.max() > 0.65 >= bound.max()
    kept = free.max(2) <= 0.65  # what keeps to it at once is not drawn again
    np.testing.assert_array_equal(bound[kept], free[kept])
    # No draw keeps to it: equal weights.
    equal = drawn(count, count, largest=1 / count)
    np.testing.assert_allclose(equal[equal > 0], 1 / count)


def test_every_call_and_client_draws_afresh():
    client = defenses.instahide(echo, K, count=2)
    batch = toy.batch(0, 4)
    share = jax.jit(jax.vmap(lambda seed: shared(client, batch, seed)["image"]))
    images = share(jnp.arange(3))
    again = share(jnp.array([3, 1, 0]))[1]
    np.testing.assert_allclose(images[1], again, atol=1e-6)
    flat = np.asarray(images).reshape(3, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 0.5
    signs = np.sign(flat - 0.5)
    # 144 fair coins a client: means 0 +- .083
    assert np.abs(signs.mean(1)).max() < 0.35
    assert np.abs(signs @ signs.T / 144 - np.eye(3)).max() < 0.35


# What is trained on


def test_images_and_labels_mix_alike():
    batch = toy.batch(0, 3)
    mixing = jnp.array([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5], [0.1, 0.0, 0.9]])
    mixed = shared(defenses.mixup(echo, K), {**batch, "mixing": mixing})
    assert mixed.keys() == batch.keys()  # the entry is spent
    np.testing.assert_allclose(
        mixed["image"], mixtures(mixing, batch["image"]), rtol=1e-6
    )
    onehot = np.eye(K)[batch["label"]]
    np.testing.assert_allclose(mixed["label"], mixing @ onehot, rtol=1e-6)
    soft = toy.soft(batch)
    mixed = shared(defenses.mixup(echo, K), {**soft, "mixing": mixing})
    np.testing.assert_allclose(mixed["label"], mixing @ soft["label"], rtol=1e-6)


def test_instahide_flips_mixtures_about_grey():
    batch = toy.batch(0, 3)
    mixing, signs = jnp.eye(3), jnp.where(toy.batch(1, 3)["image"] < 0.5, -1.0, 1.0)
    client = defenses.instahide(echo, K, count=2)
    known = {"mixing": mixing, "signs": signs}
    once = shared(client, {**batch, **known})
    flipped = np.where(signs < 0, 1 - batch["image"], batch["image"])
    np.testing.assert_allclose(once["image"], flipped, atol=1e-6)
    twice = shared(client, {**once, **known})
    np.testing.assert_allclose(twice["image"], batch["image"], atol=1e-6)
    assert once.keys() == batch.keys()


def test_a_client_shares_the_gradient_of_the_mixtures():
    params, batch = toy.init(0), toy.batch(0, 2)
    mixing = jnp.array([[0.6, 0.4], [0.3, 0.7]])
    plain = clients.gradient(toy.loss_fn)
    client = defenses.mixup(plain, K)
    found = jax.jit(toy.at(params, client))({**batch, "mixing": mixing})
    by_hand = {
        "image": mixtures(mixing, batch["image"]),
        "label": mixing @ jax.nn.one_hot(batch["label"], K),
    }
    expected = jax.jit(toy.at(params))(by_hand)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("build", [defenses.mixup, defenses.instahide])
def test_one_program_differentiates_in_images_and_mixing(build):
    params = toy.init(0)
    client = build(clients.gradient(toy.loss_fn), K, count=2)
    batch = {**toy.batch(0, 2), "mixing": jnp.array([[0.6, 0.4], [0.3, 0.7]])}

    def size(image, mixing, seed):
        changed = {**batch, "image": image, "mixing": mixing}
        update = client(params, changed, jax.random.key(seed))
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(update))

    slopes = jax.jit(jax.vmap(jax.grad(size, argnums=(0, 1)), in_axes=(None, None, 0)))
    for slope in slopes(batch["image"], batch["mixing"], jnp.arange(2)):
        assert jnp.isfinite(slope).all() and jnp.abs(slope).max() > 0


@pytest.mark.parametrize("build", [defenses.mixup, defenses.instahide])
def test_images_keep_their_type(build):
    batch = toy.batch(0, 2)
    batch["image"] = batch["image"].astype(jnp.bfloat16)
    mixed = shared(build(echo, K, count=2), batch)["image"]
    assert mixed.dtype == jnp.bfloat16
    wide = {**batch, "image": batch["image"].astype(jnp.float32)}
    expected = shared(build(echo, K, count=2), wide)["image"]
    # Two products of numbers up to 1 and their sum, of 8 bits each.
    np.testing.assert_allclose(mixed.astype(jnp.float32), expected, atol=2**-6)


def test_a_batch_too_small():
    with pytest.raises(ValueError, match="count=4 <= 3"):
        shared(defenses.instahide(echo, K), toy.batch(0, 3))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"count": 0}, "count=0 >= 1"),
        ({"concentration": 0.0}, "concentration=0.0 > 0"),
        ({"largest": 0.4}, "largest=0.4 >= 0.5"),
        ({"largest": 1.1}, "largest=1.1 <= 1"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        defenses.mixup(echo, K, **options)


# How it is undone


def test_demix_solves_for_the_images():
    images = toy.batch(0, 4)["image"]
    mixing = jnp.asarray(drawn(3, 4)[0])
    found = demixing.demix(mixtures(mixing, images), mixing)
    # float32, times the condition of the matrix
    tolerance = 1e-6 * np.linalg.cond(mixing)
    assert tolerance < 1e-4
    np.testing.assert_allclose(found, images, atol=tolerance)


def test_demix_takes_the_mean_where_equal_weights_leave_no_more():
    images = toy.batch(0, 2)["image"]
    half = jnp.full((2, 2), 0.5)
    found = demixing.demix(mixtures(half, images), half)
    np.testing.assert_allclose(found, mixtures(half, images), atol=1e-6)
    # A second round with other weights tells them apart.
    rounds = np.concatenate([half, [[0.8, 0.2], [0.2, 0.8]]])
    found = demixing.demix(mixtures(rounds, images), jnp.asarray(rounds))
    np.testing.assert_allclose(found, images, atol=1e-5)


def _smooth_images(size):
    """Waves `[size, 8, 8, 1]` in [0, 1]: neighbours agree, and signs change."""
    rng = np.random.default_rng(0)
    down, right = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    waves = [
        0.5 + 0.45 * np.sin(a * down + b * right + c)[..., None]
        for a, b, c in rng.uniform(0.2, 0.6, (size, 3)) * np.array([[1, 1, 10]])
    ]
    return np.stack(waves).astype(np.float32)


def test_demix_absolute_finds_the_images_or_their_negatives():
    images = _smooth_images(4)
    # 2 B - 1 = 7 encodings determine four images; these are twelve.
    mixing = jnp.asarray(drawn(3, 4, largest=0.65)[:3].reshape(12, 4))
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (12, 8, 8, 1))
    encoded = toy.floats(0.5 + signs * (mixtures(mixing, images) - 0.5))
    solve = jax.jit(
        lambda encoded: demixing.demix_absolute(jax.random.key(0), encoded, mixing)
    )
    found = np.asarray(solve(encoded))
    assert found.min() >= 0 and found.max() <= 1
    error = [np.abs(guess - images).max() for guess in (found, 1 - found)]
    assert min(error) < 1e-3 < 0.3 < max(error)


def test_mixing_from_labels():
    mixing = drawn(3, 4)[0]
    labels = jnp.array([2, 0, 4, 1])
    soft = mixing @ np.eye(5, dtype=np.float32)[labels]
    found = demixing.mixing_from_labels(soft, labels)
    np.testing.assert_allclose(found, mixing, rtol=1e-6)
    # Two images of one class: their sum is known, not who has which part of it.
    labels = jnp.array([2, 0, 2, 1])
    soft = mixing @ np.eye(5, dtype=np.float32)[labels]
    found = demixing.mixing_from_labels(soft, labels)
    np.testing.assert_allclose(found[:, [1, 3]], mixing[:, [1, 3]], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0], mixing[:, [0, 2]].mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_unknown_mixing_decodes_to_rows_that_sum_to_one():
    pixels = candidates.pixels((3, *toy.SHAPE), jnp.array([0, 1, 2]))
    candidate = demixing.unknown_mixing(candidates.box(pixels), 3)
    z = candidate.project(candidate.init(jax.random.key(0)))
    batch = candidate.decode(z)
    assert batch["mixing"].shape == (3, 3)
    np.testing.assert_allclose(batch["mixing"].sum(1), 1, rtol=1e-6)
    assert z["image"].min() >= 0  # the inner candidate's box still holds

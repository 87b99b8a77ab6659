"""A batch comes apart image by image, and nothing false is ever certified."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import decoys, toy

from invertjax import attacks, candidates, clients, exact, losses

module = importlib.import_module("invertjax.exact.certificate")


def mse(features, truth):
    """`[B]`, of each row from the nearest image."""
    images = np.asarray(truth["image"]).reshape(len(truth["image"]), -1)
    rows = np.asarray(features)[:, None]
    return np.mean((rows - images[None]) ** 2, axis=-1)


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_a_batch_comes_apart_with_its_labels(bias):
    for seed in range(3):
        params, update = decoys.plain(seed, bias=bias)
        truth = decoys.batch(seed)
        found = decoys.peeling()(params, update)
        errors = mse(found.features, truth)
        assert np.all(found.certified) and found.complete
        assert np.max(errors.min(1)) < 1e-10  # 100 dB
        order = errors.argmin(1)
        assert sorted(order) == list(range(decoys.SIZE))
        np.testing.assert_array_equal(found.labels, truth["label"][order])
        np.testing.assert_allclose(found.weights, 1 / decoys.SIZE, rtol=1e-6)
        assert np.all(np.abs(found.left[0]) < 1e-6)
        assert np.sqrt(np.max(errors.min(1))) <= np.max(found.error)


def test_more_units_are_isolated_once_images_are_subtracted():
    """One round finds fewer: what is subtracted has the right sign."""
    params, update = decoys.plain(2)
    layer = exact.lowest(decoys.BLOCKS, params, (decoys.SIZE, *decoys.SHAPE))
    once = jax.jit(
        lambda params, update: (
            exact.peel(layer, params, update, decoys.SIZE, rounds=1).labels
        )
    )(params, update)
    assert 0 < np.sum(once >= 0) < decoys.SIZE


@functools.cache
def weighted():
    layer = exact.lowest(decoys.BLOCKS, decoys.init(0), (6, *decoys.SHAPE))
    weights = [1 / 4, 1 / 16]
    return jax.jit(lambda p, u: exact.peel(layer, p, u, 6, weights=weights))


def test_weights_of_an_aggregate_are_found_with_the_labels():
    params, truth = decoys.init(3), decoys.batch(3)
    own = np.array([1 / 4, 1 / 16, 1 / 4, 1 / 16, 1 / 16, 1 / 16])

    def loss_fn(params):
        def one(image, label):
            return decoys.loss_fn(params, {"image": image[None], "label": label[None]})

        each = jax.vmap(one)(truth["image"], truth["label"])
        return jnp.sum(decoys.floats(own) * each)

    found = weighted()(params, jax.grad(loss_fn)(params))
    assert np.all(found.certified)
    order = mse(found.features, truth).argmin(1)
    np.testing.assert_allclose(found.weights, own[order], rtol=1e-6)


def test_a_certificate_asks_for_the_label_and_the_sign():
    """The equations themselves, on one image whose units all agree."""
    params, truth = decoys.init(0), decoys.batch(0, size=1)
    update = decoys.gradient(params, truth)
    layer = exact.lowest(decoys.BLOCKS, params, (1, *decoys.SHAPE))
    behind = module.Behind(
        functools.partial(layer.behind, params),
        functools.partial(layer.behind_next, params),
        params["out"]["w"],
        losses.cross_entropy,
        jnp.arange(4),
    )
    x = truth["image"].reshape(-1)
    z, doubt = x @ params["in"]["w"] + params["in"]["b"], jnp.full(decoys.UNITS, 1e-6)
    slopes = module.slopes(behind, z, doubt)
    error = jnp.full(decoys.UNITS, 1e-6)
    seen = module.Seen(update["in"]["b"], error, update["out"]["w"], error)

    def misfit(seen, group=z > 0, weight=1.0):
        found = module.certificate(slopes, group, seen, jnp.array([weight]))
        return float(found.misfit), int(found.label)

    assert misfit(seen) == (pytest.approx(0, abs=1), int(truth["label"][0]))
    assert misfit(seen._replace(bias=-seen.bias))[0] > 100
    assert misfit(seen, weight=0.5)[0] > 100
    assert misfit(seen, group=z < 1)[0] == np.inf  # a unit that the image leaves off
    # All units of the group have to agree, not most of them.
    one = jnp.argmax(jnp.where(z > 0, jnp.abs(seen.bias), 0))
    assert misfit(seen._replace(bias=seen.bias.at[one].multiply(1.01)))[0] > 10
    assert misfit(seen._replace(following=-seen.following))[0] > 100


def test_what_is_saturated_or_has_one_free_direction_is_little_evidence():
    loud = 1e5 * jnp.ones((1, 4)) * jnp.array([[1.0], [-1.0]])
    assert float(module.evidence(loud)) < 13  # two classes: one equation
    assert float(module.evidence(1e-6 * loud)) == pytest.approx(0, abs=0.1)
    free = 1e5 * jnp.asarray(np.random.default_rng(0).standard_normal((4, 9)))
    assert float(module.evidence(free.astype(jnp.float32))) > 30


@pytest.mark.parametrize("decoy", decoys.DECOYS, ids=lambda decoy: decoy.__name__)
def test_no_decoy_is_certified(decoy, count=4):
    counts = [
        decoys.false_ones(decoys.peeling()(*decoy(seed)), decoys.batch(seed))
        for seed in range(count)
    ]
    false, looked_at = np.sum(counts, axis=0)
    assert false == 0 and looked_at > 20 * count


@pytest.mark.slow
def test_no_decoy_of_thousands_is_certified():
    for decoy in decoys.DECOYS:
        test_no_decoy_is_certified(decoy, count=50)


def test_updates_in_bfloat16_are_certified_as_far_as_they_go():
    found = 0
    for seed in range(6):
        params, update = decoys.narrow(seed)
        peeled = decoys.peeling()(params, update)
        assert decoys.false_ones(peeled, decoys.batch(seed))[0] == 0
        found += int(np.sum(peeled.certified))
    assert found > 0


def test_two_classes_are_certain_only_together():
    """One equation is no proof; that nothing at all is left is."""
    params, truth = decoys.init(0, 2), decoys.batch(0, 2)
    found = decoys.peeling(2)(params, decoys.gradient(params, truth))
    assert found.complete and np.all(found.certified)
    shrunk = {**truth, "image": truth["image"].at[:3].set(truth["image"][:3] * 0.01)}
    found = decoys.peeling(2)(params, decoys.gradient(params, shrunk))
    assert found.complete or not np.any(found.certified)


# What cannot be peeled is refused, with the reason


def block(activation=lambda z: jnp.maximum(z, 0), bias=True, normal=False):
    def first(params, images):
        z = images.reshape(len(images), -1) @ params["in"]["w"]
        z = z + params["in"]["b"][None] if bias else z
        z = (z - z.mean(1, keepdims=True)) if normal else z
        return activation(z)

    return first


def batch_norm(params, features):
    centred = features - features.mean(0, keepdims=True)
    return decoys.logits(params, centred)


def convolution(params, images):
    return images[..., None, :] @ params["in"]["w"][:1]


@pytest.mark.parametrize(
    "blocks, why",
    [
        ((), "block by block"),
        ((block(jnp.tanh), decoys.logits), "in/w is followed by tanh, not by a relu"),
        ((block(bias=False), decoys.logits), "in/w has no bias.*up to scale only"),
        ((block(normal=True), decoys.logits), "in/w is followed by .*not by a relu"),
        ((decoys.hidden, batch_norm), "in/w is followed by a layer that mixes the"),
        ((lambda p, x: x.reshape(len(x), -1)[:, :1] @ p["out"]["w"][:1],), "no hidden"),
    ],
    ids=["no blocks", "tanh", "no bias", "norm", "batch norm", "linear"],
)
def test_what_cannot_be_peeled_is_refused_with_the_reason(blocks, why):
    with pytest.raises(ValueError, match=why):
        exact.lowest(blocks, decoys.init(0), (2, *decoys.SHAPE))
    shape = (2, *decoys.SHAPE)
    assert attacks.refuses_peeling(blocks, decoys.init(0), shape) is not None


def test_a_layer_with_an_unusual_weight_and_input_is_found():
    """Stored the other way round, behind a normalisation, pixels in another order."""

    def first(params, images):
        flat = jnp.transpose((images - 0.5) / 0.25, (0, 3, 2, 1)).reshape(
            len(images), -1
        )
        return jax.nn.relu(flat @ params["in"]["w"].T + params["in"]["b"][None])

    params = decoys.init(0)
    params["in"]["w"] = params["in"]["w"].T
    shape = (3, *decoys.SHAPE)
    layer = exact.lowest((first, decoys.logits), params, shape)
    assert layer.pixelwise and layer.inputs == 36 and layer.units == decoys.UNITS
    images = decoys.batch(0, size=3)["image"]
    x = layer.enter(params, images)
    np.testing.assert_allclose(layer.pixels(params, x, shape), images, atol=1e-6)
    logits = layer.behind(params, first(params, images))
    wanted = decoys.logits(params, first(params, images))
    np.testing.assert_allclose(logits, wanted, rtol=1e-6)


# The attack


def attack(size, labels, blocks=decoys.BLOCKS, params=None):
    params = decoys.init(0) if params is None else params
    share = clients.at(clients.gradient(decoys.loss_fn), params, jax.random.key(0))
    shape = (size, *decoys.SHAPE)
    guess = candidates.pixels(shape, **labels)
    update = decoys.gradient(params, decoys.batch(0, size=size))
    return attacks.peeling(share, update, guess, params=params, blocks=blocks)


@pytest.mark.parametrize(
    "labels",
    [{"num_classes": 4}, {"labels": jnp.arange(6) % 4}],
    ids=["joint", "other labels"],
)
def test_the_attack_finds_labels_that_nobody_gave(labels):
    peel = attack(6, labels)
    result = jax.jit(lambda key: peel.result(peel.init(key)))(jax.random.key(0))
    truth = decoys.batch(0)
    assert result.certified.shape == (6,) and np.all(result.certified)
    order = mse(result.batch["image"].reshape(6, -1), truth).argmin(1)
    found = result.batch["label"]
    found = found if found.ndim == 1 else found.argmax(1)
    np.testing.assert_array_equal(found, truth["label"][order])
    assert result.loss < 1e-8


def test_other_attacks_certify_nothing():
    params, update = toy.init(0), toy.at(toy.init(0))(toy.batch(0, size=2))
    guess = candidates.pixels((2, *toy.SHAPE), jnp.array([0, 1]))
    found = attacks.inverting_gradients(toy.at(params), update, guess, steps=1)
    result = found.result(found.init(jax.random.key(0)))
    assert result.certified.shape == (2,) and not np.any(result.certified)


@pytest.mark.parametrize(
    "spoiled, certain",
    [(lambda u: u, True), (lambda u: jax.tree.map(lambda x: 3 * x, u), True),
     (lambda u: {**u, "last": jax.tree.map(jnp.negative, u["last"])}, False),
     (lambda u: {**u, "first": {**u["first"], "kernel": u["first"]["kernel"]
                                .at[3, 2].add(0.1)}}, False)],
    ids=["as it is", "scaled", "another head", "not of one image"],
)  # fmt: skip
def test_the_closed_form_certifies_what_the_whole_update_confirms(spoiled, certain):
    client, truth = toy.at(toy.init(0)), toy.batch(1)
    guess = candidates.pixels((1, *toy.SHAPE), truth["label"])
    found = attacks.analytic(client, spoiled(client(truth)), guess)
    result = found.result(found.init(jax.random.key(0)))
    assert result.certified.shape == (1,) and bool(result.certified[0]) == certain

"""Soteria, PRECODE and dropout against attackers who know them, and who do not.

Every target has an untrained network of its own; images are crops of photographs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import photos, toy

import models
from invertjax import (
    attacks,
    candidates,
    clients,
    defenses,
    distances,
    driver,
    layers,
    losses,
)
from invertjax.base import Batch, Params, Update

SHAPE = (1, photos.SIDE, photos.SIDE, 1)
TARGETS = 4
STEPS = 400
GAIN = 5.0  # dB of the mean that an attacker must gain by knowing
WIDTH = 64  # of the bottleneck
SHARE = 0.5  # of the features that dropout leaves out


class Target(NamedTuple):
    """What was shared, and what the attacker knows; number: for draws of its own."""

    observed: Update
    params: Params
    label: jax.Array
    number: jax.Array


def network(name="cnn", width=8):
    """A network, its params for every target, and the size of its features."""
    net = models.build(
        name,
        image_shape=SHAPE[1:],
        num_classes=photos.CLASSES,
        width=width,
        activation="gelu",
    )
    keys = jax.random.split(jax.random.key(0), TARGETS)
    params, _ = jax.jit(jax.vmap(net.init))(keys)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    return net, params, layers.get(one, net.last).weight.shape[0]


def features_of(net):
    return lambda params, images: net.features(params, {}, images, True)[0]


def loss_of(net):
    return losses.classification(lambda params, x: net.apply(params, {}, x, True)[0])


def victims() -> Batch:
    """One image for every target."""
    return photos.batches(photos.private(), 0, TARGETS, 1)


def observe(client, params):
    """What every target shares, with a key that the attacker does not have."""
    batch, keys = victims(), jax.random.split(jax.random.key(7), TARGETS)
    observed = jax.jit(jax.vmap(client))(params, batch, keys)
    return Target(observed, params, batch["label"], jnp.arange(TARGETS))


def attacker(client, target):
    """The client as the attacker runs it, with a draw of its own."""
    key = jax.random.fold_in(jax.random.key(99), target.number)
    return clients.at(client, target.params, key)


def images_of(target):
    return candidates.pixels(SHAPE, target.label, init=candidates.nearly_grey)


def match(client, target, candidate, distance=distances.cosine):
    return attacks.inverting_gradients(
        attacker(client, target),
        target.observed,
        candidate,
        steps=STEPS,
        total_variation=1e-2,
        distance=distance,
    )


def reconstruct(make_attack, targets):
    """PSNR in dB of every target."""
    keys = jax.random.split(jax.random.key(1), (TARGETS, 1))
    program = driver.build(lambda _, target: make_attack(target), None, targets, keys)
    results = driver.best(driver.run(program, None, targets, keys).results)
    return psnr(results.batch["image"])


def psnr(images):
    error = np.asarray(images, np.float64) - victims()["image"]
    return -10 * np.log10(np.mean(error**2, axis=(1, 2, 3, 4)))


def test_soteria_hides_the_truth_from_those_who_do_not_know():
    """At the true image the plain distance is not zero, and others are."""
    params, batch = toy.init(0), toy.batch(0)

    def features(params, images):
        return jnp.tanh(toy.dense(params["first"], images.reshape(1, -1)))

    plain = clients.gradient(toy.loss_fn)
    client = defenses.soteria(plain, features, "last", 0.8)
    aware = (
        distances.masked(distances.cosine),
        distances.without(distances.cosine, "last/kernel"),
        distances.without(distances.cosine, "last"),
    )

    @jax.jit
    def apart(batch):
        true, observed = (toy.at(params, c)(batch) for c in (plain, client))
        return [distance(true, observed) for distance in (distances.cosine, *aware)]

    unaware, *others = apart(batch)
    assert unaware > 0.01
    assert max(others) < 1e-12


def test_precode_does_not_hide_what_a_dense_first_layer_saw():
    """Any noise: the closed form is exact (Balunovic et al. 2022, section 5)."""
    net, model, size = network("mlp", 16)
    made = defenses.precode(features_of(net), net.head, size, WIDTH)
    inner = jax.jit(jax.vmap(made.init))(jax.random.split(jax.random.key(3), TARGETS))
    client = clients.randomised(clients.gradient(made.loss_fn), made.draw)
    targets = observe(client, {"model": model, "bottleneck": inner})

    @jax.jit
    @jax.vmap
    def read(target):
        attack = attacks.analytic(
            attacker(client, target),
            target.observed,
            images_of(target),
            path="model/layers/0",
            from_input=lambda flat: flat * net.std[0] + net.mean[0],
        )
        return attack.result(attack.init(jax.random.key(0))).batch["image"]

    assert psnr(read(targets)).min() > 100


@pytest.mark.slow
def test_soteria_costs_only_those_who_do_not_know():
    """Sun et al. (2021) at share 0.8, on the layer before the logits."""
    net, params, _ = network()
    plain = clients.gradient(loss_of(net))
    client = defenses.soteria(plain, features_of(net), net.last, 0.8)
    targets = observe(client, params)

    def unaware(target):
        return match(plain, target, images_of(target))

    def masked(target):
        seen = distances.masked(distances.cosine)
        return match(plain, target, images_of(target), seen)

    def without(target):
        rest = distances.without(distances.cosine, net.last)
        return match(plain, target, images_of(target), rest)

    found = reconstruct(unaware, targets)
    undefended = reconstruct(unaware, observe(plain, params))
    assert undefended.mean() > found.mean() + GAIN  # so it is a defense
    for aware in (masked, without):
        known = reconstruct(aware, targets)
        assert known.mean() > found.mean() + GAIN
        # Nothing is left of it: Balunovic et al. (2022), section 5.
        assert known.mean() > undefended.mean() - 3


@pytest.mark.slow
def test_precode_costs_only_those_who_do_not_know():
    """With a noise of its own, or none, an attack fails; the noise can be found."""
    net, model, size = network()
    made = defenses.precode(features_of(net), net.head, size, WIDTH)
    inner = jax.jit(jax.vmap(made.init))(jax.random.split(jax.random.key(3), TARGETS))
    client = clients.randomised(clients.gradient(made.loss_fn), made.draw)
    targets = observe(client, {"model": model, "bottleneck": inner})
    rest = distances.without(distances.cosine, "bottleneck", f"model/{net.last}")

    def own_draw(target):
        return match(client, target, images_of(target))

    def no_noise(target):
        return match(client, target, with_fixed(target, {"noise": none}))

    def read(target):
        return match(
            client,
            target,
            with_fixed(target, made.read(target.params, target.observed)),
        )

    def joint(target):
        start = candidates.with_entry(
            images_of(target), "noise", lambda key: jax.random.normal(key, none.shape)
        )
        return match(client, target, start, rest)

    none = jnp.zeros((1, WIDTH))
    unaware = max(reconstruct(f, targets).mean() for f in (own_draw, no_noise))
    assert reconstruct(read, targets).mean() > unaware + GAIN
    assert reconstruct(joint, targets).mean() > unaware + GAIN


@pytest.mark.slow
def test_dropout_costs_only_those_who_do_not_know():
    """The mask optimised with the image: Scheliga et al. (2023)."""
    net, params, size = network()
    layer = defenses.dropout(features_of(net), net.head, size, SHARE)
    client = clients.randomised(clients.gradient(layer.loss_fn), layer.draw)
    targets = observe(client, params)
    mean = jnp.full((1, size), 1 - SHARE)

    def own_draw(target):
        return match(client, target, images_of(target))

    def mean_mask(target):
        return match(client, target, with_fixed(target, {"kept": mean}))

    def joint(target):
        candidate = candidates.with_entry(
            images_of(target), "kept", lambda _: mean, lambda kept: jnp.clip(kept, 0, 1)
        )
        return match(client, target, candidate)

    unaware = max(reconstruct(f, targets).mean() for f in (own_draw, mean_mask))
    assert reconstruct(joint, targets).mean() > unaware + GAIN


def with_fixed(target, entries):
    """Images, and further entries of the batch that the attacker holds fixed."""
    candidate = images_of(target)
    return candidate._replace(decode=lambda z: {**candidate.decode(z), **entries})

"""Attackers who know how a batch was changed, and attackers who do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import photos

import models
from invertjax import attacks, candidates, clients, defenses, driver, losses, metrics

SHAPE = (photos.SIDE, photos.SIDE, 1)
NET = models.build(
    "cnn", image_shape=SHAPE, num_classes=photos.CLASSES, activation="gelu", width=8
)
PLAIN = clients.gradient(
    losses.classification(lambda params, x: NET.apply(params, {}, x, True)[0])
)


@pytest.fixture(scope="module")
def params():
    return NET.init(jax.random.key(3))[0]


def observed(client, params, batches):
    keys = jax.random.split(jax.random.key(7), len(batches["label"]))
    share = jax.vmap(lambda batch, key: client(params, batch, key))
    return jax.jit(share)(batches, keys)


def reconstructions(client, params, update, label, known, steps=300):
    """`[T, B, H, W, C]` by a client that the attacker believes in."""

    def make_attack(params, trial):
        update, label, known = trial
        pixels = candidates.pixels(
            (len(label), *SHAPE), label, init=candidates.nearly_grey
        )
        guess = pixels._replace(decode=lambda z: {**pixels.decode(z), **known})
        return attacks.inverting_gradients(
            clients.at(client, params, jax.random.key(1)),
            update,
            guess,
            steps=steps,
            total_variation=3e-3,
        )

    keys = jax.random.split(jax.random.key(9), (len(label), 1))
    trials = update, label, known
    program = driver.build(make_attack, params, trials, keys)
    done = driver.run(program, params, trials, keys)
    return driver.best(done.results).batch["image"]


def psnr(images, batches):
    """Mean over all targets, each after assignment to the originals."""
    pairs = zip(images, batches["image"], strict=True)
    scores = [
        metrics.score({"image": found}, {"image": original})["psnr"]
        for found, original in pairs
    ]
    return np.mean(scores)


def ats_choices(batches):
    ways = np.random.default_rng(1).choice([-1.0, 1.0], (*batches["label"].shape, 3))
    policy = np.arange(batches["label"].size).reshape(batches["label"].shape) % 2
    return {
        "policy": jnp.asarray(policy, jnp.int32),
        "directions": jnp.asarray(ways, jnp.float32),
    }


def mixup_choices(batches):
    targets, size = batches["label"].shape
    weight = np.linspace(0.55, 0.95, targets)[:, None, None]
    neighbour = np.roll(np.eye(size), 1, axis=1)
    mixing = weight * np.eye(size) + (1 - weight) * neighbour
    return {"mixing": jnp.asarray(mixing, jnp.float32)}


DEFENSES = {
    "ats": (defenses.ats(PLAIN, "3-1-7+43-18-18"), ats_choices, (6, 1)),
    "mixup": (defenses.mixup(PLAIN, photos.CLASSES), mixup_choices, (6, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFENSES)
def test_who_knows_the_transform_sees_the_originals(name, params):
    """Both attacks are one, run through another client: 5 dB more, and 5 dB more than
    mid-grey, which needs no update at all."""
    client, choices, shape = DEFENSES[name]
    batches = photos.batches(photos.private(), 0, *shape)
    known = choices(batches)
    update = observed(client, params, {**batches, **known})
    label = batches["label"]
    aware = psnr(reconstructions(client, params, update, label, known), batches)
    unaware = psnr(reconstructions(PLAIN, params, update, label, {}), batches)
    grey = psnr(jnp.full((*shape, *SHAPE), 0.5), batches)
    scores = f"aware {aware:.1f}, unaware {unaware:.1f}, grey {grey:.1f} dB"
    assert aware >= unaware + 5, scores
    assert aware >= grey + 5, scores
    print(scores)

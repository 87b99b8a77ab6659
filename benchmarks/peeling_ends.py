"""What defenses and local steps leave of peeling; see `benchmarks.peeling`.

Dense networks of 1,000 relus, untrained, that see Fashion-MNIST in [0, 1], 16 images
in a batch. Beside peeling, where there is a defense, `inverting_gradients` with the
labels given: 100 steps, on the first network, adapted to the defense where it can be.
Who knows of a defense knows the size of its noise, and that images may count anything.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from experiments import data
from invertjax import attacks, candidates, clients, distances, exact, losses, metrics
from invertjax.auditing import Target, Threat, closed_forms
from invertjax.base import Batch, Client, Loss, Params, Update
from invertjax.defenses import defend, protection, protections
from invertjax.defenses.protection import Parts, Protection
from invertjax.exact import DenseRelu, Peeled

SIZE, UNITS, STEPS = 16, 1000, 100
EXACTLY = 1e-4  # of a mean squared error: 40 dB
DEFENSES: tuple[tuple[str, Any], ...] = (
    ("gaussian", 1e-7),
    ("gaussian", 1e-6),
    ("gaussian", 1e-5),
    ("gaussian", 1e-4),
    ("gaussian", 1e-3),
    ("prune", 0.5),
    ("prune", 0.9),
    ("prune", 0.99),
    ("clip", 0.1),
    ("dp_sgd", (0.0, 0.1)),
    ("dp_sgd", (1e-4, 0.1)),
    ("dp_sgd", (1e-2, 0.1)),
)
RATES, LOCAL_STEPS = (1e-1, 1e-2, 1e-3, 3e-4, 1e-4), (1, 2, 5)


class Victim(NamedTuple):
    """A network, a layer of it, and its batches, one a network."""

    net: models.Network
    loss_fn: Loss
    layer: DenseRelu
    batches: list[Batch]


def main(defenses: bool, networks: int) -> None:
    """Prints the table of defenses, or that of local steps."""
    held = data.load("fashion_mnist", "test", limit=SIZE * networks)
    shape = held.images.shape[1:]
    net = models.build("mlp", image_shape=shape, num_classes=10, width=UNITS,
                       mean=(0.0,), std=(1.0,))  # fmt: skip
    loss_fn = losses.classification(lambda p, x: net.apply(p, {}, x, True)[0])
    params = jax.eval_shape(net.init, jax.random.key(0))[0]
    layer = exact.lowest(net.blocks, params, (SIZE, *shape))
    batches = [
        {
            "image": jnp.asarray(held.images[i : i + SIZE], jnp.float32),
            "label": jnp.asarray(held.labels[i : i + SIZE]),
        }
        for i in range(0, SIZE * networks, SIZE)
    ]
    victim = Victim(net, loss_fn, layer, batches)
    (_under_defenses if defenses else _after_local_steps)(victim)


def _under_defenses(victim: Victim) -> None:
    print(
        "| defense | unaware: recovered, certified, false | who knows | dB, guessed |"
    )
    print("|---|---|---|---|")
    for name, value in DEFENSES:
        made = protections.of(name, value)
        client = clients.gradient(victim.loss_fn)
        parts = Parts(10)
        client = protection.wrapped(client, (made,), parts)
        if made.update:
            client = defend(client, protection.chained((made,)))
        target = Target(victim.loss_fn, (SIZE, *_shape(victim)), parts,
                        protections=(made,))  # fmt: skip
        told = closed_forms.told(target, Threat(protection_known=True))
        shown = [
            _shown(victim, _peeling(victim, lambda _, client=client: client, **known))
            for known in ({}, told)
        ]
        print(
            f"| {made} | {shown[0]} | {shown[1]} | {_guessed(victim, client, made)} |",
            flush=True,
        )


def _after_local_steps(victim: Victim) -> None:
    print("| steps | rate | error of the gradient | as exact | told of the error |")
    print("|---|---|---|---|---|")
    for steps in LOCAL_STEPS:
        peel = _peeling(victim, _local(victim.loss_fn, steps))
        error_of = _error(victim, _local(victim.loss_fn, steps))
        for rate in RATES:
            error = float(error_of(rate))
            shown = [
                _shown(victim, functools.partial(peel, rate=rate, noise=noise))
                for noise in (0.0, error)
            ]
            print(f"| {steps} | {rate:g} | {error:.1e} | {' | '.join(shown)} |",
                  flush=True)  # fmt: skip


def _local(loss_fn: Loss, steps: int) -> Callable[[jax.Array | float], Client]:
    """Returns `rate -> client` whose update, over steps and rate, is nearly the
    gradient: it drifts with them, and where they are small rounding is the larger."""

    def of_rate(rate: jax.Array | float) -> Client:
        train = clients.local_sgd(loss_fn, optax.sgd(rate), steps=steps)

        def share(params: Params, batch: Batch, key: jax.Array) -> Update:
            update = train(params, batch, key)
            return jax.tree.map(lambda leaf: leaf / (rate * steps), update)

        return share

    return of_rate


def _error(
    victim: Victim, of_rate: Callable[[Any], Client]
) -> Callable[[float], jax.Array]:
    """Returns how far an update is from the gradient, in the column of a typical unit:
    root mean square. A unit that local steps switch on or off is much further off."""
    gradient = clients.gradient(victim.loss_fn)

    @jax.jit
    def error(rate: jax.Array) -> jax.Array:
        params, key = victim.net.init(jax.random.key(0))[0], jax.random.key(0)
        moved = of_rate(rate)(params, victim.batches[0], key)
        exactly = gradient(params, victim.batches[0], key)
        first, other = victim.layer.of(moved), victim.layer.of(exactly)
        squares = jnp.mean(jnp.square(first[0] - other[0]), axis=0)
        return jnp.sqrt(jnp.median(squares))

    return error


def _peeling(
    victim: Victim, of_rate: Callable[[Any], Client], **told: Any
) -> Callable[..., tuple[Peeled, jax.Array]]:
    """Returns `(key, batch, rate, noise) -> (Peeled, images)`, compiled."""
    layer = victim.layer

    @jax.jit
    def peel(
        key: jax.Array, batch: Batch, rate: Any = 0.0, noise: Any = 0.0
    ) -> tuple[Peeled, jax.Array]:
        params = victim.net.init(key)[0]
        update = of_rate(rate)(params, batch, key)
        known = {"noise": noise, **told}
        found = exact.peel(layer, params, update, SIZE, **known)
        shape = (SIZE, *_shape(victim))
        return found, layer.pixels(params, found.features, shape)

    return peel


def _shown(
    victim: Victim, peel: Callable[[jax.Array, Batch], tuple[Peeled, jax.Array]]
) -> str:
    """Returns the shares recovered and certified, and how many are false."""
    counts = np.zeros(3)
    for i, batch in enumerate(victim.batches):
        found, images = peel(jax.random.key(i), batch)
        counts += _counts(found, np.asarray(images), batch)
    total = SIZE * len(victim.batches)
    return f"{counts[0] / total:.2f}, {counts[1] / total:.2f}, {counts[2]:.0f}"


def _counts(found: Peeled, images: np.ndarray, batch: Batch) -> np.ndarray:
    truth = np.asarray(batch["image"])
    errors = np.mean((images[:, None] - truth[None]) ** 2, axis=(2, 3, 4))
    there = np.asarray(found.labels) >= 0
    right = np.asarray(found.labels) == np.asarray(batch["label"])[errors.argmin(1)]
    good, sure = there & (errors.min(1) <= EXACTLY), np.asarray(found.certified)
    return np.array([len(set(errors.argmin(1)[good])), sum(sure),
                     sum(sure & ~(good & right))])  # fmt: skip


def _guessed(victim: Victim, client: Client, made: Protection) -> str:
    batch, key = victim.batches[0], jax.random.key(0)
    distance = distances.cosine
    if made.adapt:
        distance = made.adapt(distance, made.value)

    @jax.jit
    def run(key: jax.Array) -> Any:
        params = victim.net.init(key)[0]
        share = clients.at(clients.gradient(victim.loss_fn), params, key)
        attack = attacks.inverting_gradients(
            share,
            client(params, batch, key),
            candidates.pixels((SIZE, *_shape(victim)), batch["label"]),
            steps=STEPS,
            distance=distance,
        )
        state = attack.advance(attack.init(key), jnp.int32(STEPS))
        return attack.result(state).batch["image"]

    images = run(key)
    scores = metrics.by_image(images, batch["image"])["psnr"]
    return f"{float(np.mean(scores)):.1f}"


def _shape(victim: Victim) -> tuple[int, ...]:
    return victim.batches[0]["image"].shape[1:]

"""What saves iterations: learning rates, starts, resolutions, bases, stopping rules.

    python -m benchmarks.tricks [--model cnn] [--targets 6] [--restarts 8]
        [--steps 100 250] [--tricks baseline double_rate] [--rules never halving]

Changes of `inverting_gradients`, on CIFAR-10's train split (prepared for TFDS), labels
known, every target under an untrained network of its own. Prints image-iterations a
target, those of dropped restarts included, and the PSNR of the restart with the lowest
objective: mean and standard deviation over targets.
"""

import argparse
import functools
import itertools
import os

import jax
import jax.numpy as jnp
import optax

import models
from experiments import data
from invertjax import candidates, clients, driver, losses, matching, metrics, priors
from invertjax.attacks.inverting_gradients import step_decay
from invertjax.driver import stopping

SHAPE = (1, 32, 32, 3)
RULES = {
    "never": stopping.NEVER,
    "halving": stopping.halving(),
    "halving_early": stopping.halving((1 / 16, 1 / 8, 1 / 4)),
    "plateau_1e-3": stopping.plateau(1e-3),
    "plateau_1e-4": stopping.plateau(1e-4),
}


def signed_adam(steps, rate=0.02):
    """The baseline's optimiser."""
    return optax.chain(optax.scale_by_sign(), optax.adam(step_decay(rate, steps)))


def each(fun):
    """`fun` on every leaf of the gradient, or of the step."""
    return optax.stateless(lambda updates, _: jax.tree.map(fun, updates))


def halved(image):
    """Blocks of 2x2 pixels at their mean; the size stays."""
    rows = (image[:, ::2] + image[:, 1::2]) / 2
    blocks = (rows[:, :, ::2] + rows[:, :, 1::2]) / 2
    return blocks.repeat(2, axis=1).repeat(2, axis=2)


def coarse_first(steps):
    """Half the resolution for a third of the budget.

    A gradient that is constant over blocks moves an image that starts so just as it
    would move pixels of twice the size.
    """
    first = optax.conditionally_transform(
        each(halved), lambda step, **_: step < steps // 3
    )
    return optax.chain(first, signed_adam(steps))


def cosines(steps):
    """Signed Adam on the orthonormal DCT-II; the box stays one of pixels."""
    there, back = (
        each(functools.partial(transform, axes=(1, 2), norm="ortho"))
        for transform in (jax.scipy.fft.dctn, jax.scipy.fft.idctn)
    )
    return optax.chain(there, signed_adam(steps), back)


def faint(key, shape):
    """A start that is almost grey: N(1/2, 0.02^2)."""
    return 0.5 + 0.02 * jax.random.normal(key, shape)


def coarse(key, shape):
    """A start of half the resolution, with the spread of `candidates.normal`."""
    return 0.5 + 2 * (halved(candidates.normal(key, shape)) - 0.5)


TRICKS = {
    "baseline": (signed_adam, candidates.normal),
    "half_rate": (lambda steps: signed_adam(steps, 0.01), candidates.normal),
    "double_rate": (lambda steps: signed_adam(steps, 0.04), candidates.normal),
    "fourfold_rate": (lambda steps: signed_adam(steps, 0.08), candidates.normal),
    "faint_start": (signed_adam, faint),
    "coarse_first": (coarse_first, coarse),
    "cosines": (cosines, candidates.normal),
}


def problem(model, targets):
    """The client, and for every target its params and its batch."""
    net = models.build(model, image_shape=SHAPE[1:], num_classes=10)
    held = data.load("cifar10", "train", None, image_size=None, limit=targets)
    keys = jax.random.split(jax.random.key(0), targets)
    params, _ = jax.device_get(jax.jit(jax.vmap(net.init))(keys))
    buffers = net.init(keys[0])[1]
    loss_fn = losses.classification(
        lambda params, images: net.apply(params, buffers, images, True)[0]
    )
    batch = {"image": held.images[:, None], "label": held.labels[:, None]}
    return clients.gradient(loss_fn), (params, batch)


def attack(client, trick, steps, trial):
    """`inverting_gradients` of one target, changed by a trick."""
    optimizer, init = TRICKS[trick]
    params, batch = trial
    at = clients.at(client, params, jax.random.key(0))
    candidate = candidates.box(candidates.pixels(SHAPE, batch["label"], init=init))
    settings = {"steps": steps, "prior": priors.total_variation(3e-2)}
    return matching.attack(
        at, at(batch), candidate, optimizer=optimizer(steps), **settings
    )


def main():
    arguments = _parse()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    client, trials = problem(arguments.model, arguments.targets)
    shape = (arguments.targets, arguments.restarts)
    keys = jax.random.split(jax.random.key(1), shape)
    print("trick          rule           steps     work     PSNR, dB")
    for steps, trick in itertools.product(arguments.steps, arguments.tricks):
        make = functools.partial(attack, client, trick, steps)
        built = driver.build(lambda _, trial, f=make: f(trial), None, trials, keys)
        for rule in arguments.rules:
            found = driver.run(built, None, trials, keys, rule=RULES[rule]).results
            images = jnp.clip(driver.best(found).batch["image"], 0, 1)
            psnr = jax.vmap(metrics.psnr)(images, jnp.asarray(trials[-1]["image"]))
            row = f"{trick:14} {rule:14} {steps:5} {found.steps.sum(1).mean():8.0f}"
            print(f"{row}  {psnr.mean():6.2f} +- {psnr.std():.2f}", flush=True)


def _parse():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tricks")
    parser.add_argument("--model", default="cnn", choices=models.NAMES)
    parser.add_argument("--targets", type=int, default=6)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 250])
    parser.add_argument("--tricks", nargs="+", default=[*TRICKS], choices=TRICKS)
    parser.add_argument("--rules", nargs="+", default=["never"], choices=RULES)
    return parser.parse_args()


if __name__ == "__main__":
    main()

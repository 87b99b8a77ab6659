"""What an aggregate still gives away: images read off the mean of many updates.

    python -m benchmarks.aggregates [--dataset cifar10] [--targets 10]

Every client has one image; the server sees only the mean of n gradients, as under
secure aggregation. The network is dense, of 256 relus, untrained; it sees pixels in
[0, 1], and once more normalised as usual. "units": each unit of its first layer whose
gradient comes of one image alone gives that image back, weight gradient divided by bias
gradient (Phong et al. 2018; Geiping et al. 2020, proposition 3.1); an image counts if
some unit gives it with more than 20 dB. "peeled": images that `exact.peel` gives with
more than 40 dB; "certified": those that it proves. Needs no optimisation.
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from benchmarks.worker import ROOT
from experiments import data
from invertjax import clients, exact, federated, layers, losses

COUNTS = (1, 5, 10, 20, 50, 100)
LEAST, EXACTLY = 20.0, 40.0  # dB


def shares(
    dataset: str, counts: tuple[int, ...], targets: int, units: int, raw: bool
) -> dict[int, dict[str, list[float]]]:
    """`{n: {how: [targets] shares of the n images}}`, of a network that sees pixels in
    [0, 1] (`raw`) or normalised ones."""
    held = data.load(dataset, "test", limit=max(counts) * targets)
    shape = held.images.shape[1:]
    centred = {"mean": (0.0,) * shape[2], "std": (1.0,) * shape[2]} if raw else {}
    net = models.build("mlp", image_shape=shape, num_classes=10, width=units, **centred)
    found = {}
    for count in counts:
        needed = count * targets
        if len(held.images) < needed:
            print(f"{dataset}: {needed} images needed, skipped", file=sys.stderr)
            continue
        share = _share(net, count, shape)
        rows = np.arange(needed).reshape(targets, count)
        keys = jax.random.split(jax.random.key(0), targets)
        each = [
            share(key, held.images[row], held.labels[row] % 10)
            for key, row in zip(keys, rows, strict=True)
        ]
        found[count] = {how: [float(one[how]) for one in each] for how in each[0]}
    return found


def _share(
    net: models.Network, count: int, shape: tuple[int, ...]
) -> Callable[..., dict[str, jax.Array]]:
    loss_fn = losses.classification(lambda p, x: net.apply(p, {}, x, True)[0])
    seen = federated.averaged(clients.gradient(loss_fn), count)
    params = jax.eval_shape(net.init, jax.random.key(0))[0]
    layer = exact.lowest(net.blocks, params, (count, *shape))

    # Two programs: as one, it hung twice on a busy CPU, for a reason not found.
    @jax.jit
    def observed(key: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        params = net.init(key)[0]
        batch = {"image": images, "label": labels}
        return params, seen(params, batch, jax.random.key(0))

    @jax.jit
    def read_off(params: Any, update: Any, images: jax.Array) -> dict[str, jax.Array]:
        mean, std = jnp.asarray(net.mean), jnp.asarray(net.std)
        read = _read(update, images[0].size).reshape(-1, *images.shape[1:])
        peeled = exact.peel(layer, params, update, count)
        rows = layer.pixels(params, peeled.features, images.shape)
        near = _psnr(rows, images) > EXACTLY
        near &= (peeled.labels >= 0)[:, None]
        return {
            "units": jnp.mean(_psnr(read * std + mean, images).max(0) > LEAST),
            "peeled": jnp.mean(jnp.any(near, axis=0)),
            "certified": jnp.mean(peeled.certified),
            "false": jnp.mean(peeled.certified & ~jnp.any(near, axis=1)),
        }

    def share(
        key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> dict[str, jax.Array]:
        params, update = jax.block_until_ready(observed(key, images, labels))
        return jax.block_until_ready(read_off(params, update, images))

    return share


def _read(update: Any, inputs: int) -> jax.Array:
    """`[units, inputs]`, what each unit of the first layer says its input was."""
    first = layers.first(update, inputs)
    bias = jnp.asarray(first.bias)
    return (first.weight / jnp.where(bias == 0, 1, bias)).T


def _psnr(guesses: jax.Array, images: jax.Array) -> jax.Array:
    """`[guesses, images]` in dB, of guesses clipped to [0, 1]."""
    flat = [x.reshape(len(x), -1) for x in (jnp.clip(guesses, 0, 1), images)]
    squares = [jnp.mean(x**2, axis=1) for x in flat]
    products = jnp.matmul(flat[0], flat[1].T, precision="highest") / flat[0].shape[1]
    error = squares[0][:, None] + squares[1][None] - 2 * products
    return -10 * jnp.log10(jnp.maximum(error, 1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregates")
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--units", type=int, default=256)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name, raw in (("[0, 1]", True), ("normalised", False)):
        made = shares(given.dataset, COUNTS, given.targets, given.units, raw)
        found[name] = made
        for count, values in made.items():
            said = ", ".join(
                f"{how} {np.mean(each):.3f} (std {np.std(each):.2f})"
                for how, each in values.items()
            )
            print(f"{name}, {count:4d} clients: {said}", flush=True)
    out = ROOT / "benchmarks" / "results"
    out.mkdir(parents=True, exist_ok=True)
    (out / "aggregates.json").write_text(json.dumps(found, indent=1), "utf-8")


if __name__ == "__main__":
    main()

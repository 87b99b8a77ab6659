"""How much of a batch is exact and certified: the figures of docs/exact.md.

    python -m benchmarks.peeling [--networks 8] [--only TEXT]

First layers: a dense network of N relus, untrained, sees batches of test images, once
in [0, 1] and once normalised as usual. Inside: `cnn` with a hidden dense layer of N
relus behind its two convolutions; what is found there are features and labels. An image
is recovered at 40 dB or more, a row of features where its error is below a hundredth of
its size. A certificate is false where it is given for anything else, or for another
label. Seconds are those of one batch, without compilation.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import models
from benchmarks.worker import ROOT
from experiments import data
from invertjax import exact, losses, metrics
from invertjax.exact import DenseRelu, Peeled

EXACTLY = 40.0  # dB


class Setting(NamedTuple):
    """One row: a network, its data, and images in a batch."""

    model: str
    units: int
    dataset: str
    size: int
    raw: bool = False
    narrow: bool = False

    def __str__(self) -> str:
        seen = "[0, 1]" if self.raw else "normalised"
        sent = ", bfloat16" if self.narrow else ""
        return (
            f"{self.model} N={self.units}, {self.dataset}, b={self.size}, {seen}{sent}"
        )


def _both(*of: Any) -> list[Setting]:
    return [Setting("mlp", *of, raw=True), Setting("mlp", *of)]


SETTINGS = [
    *_both(1000, "fashion_mnist", 64),
    *_both(1000, "fashion_mnist", 128),
    *_both(1000, "cifar10", 64),
    *_both(1000, "cifar10", 128),
    *_both(1000, "mnist", 64),
    *_both(256, "mnist", 20),
    *_both(256, "cifar10", 20),
    *_both(256, "cifar10", 50),
    Setting("mlp", 1000, "cifar10", 8, raw=True, narrow=True),
    Setting("mlp", 1000, "cifar10", 64, raw=True, narrow=True),
    Setting("cnn", 100, "cifar10", 8),
    Setting("cnn", 256, "cifar10", 16),
    Setting("cnn", 512, "cifar10", 32),
    Setting("cnn", 512, "cifar10", 64),
]


def measured(setting: Setting, networks: int) -> dict[str, Any]:
    """Returns means over networks, each with a batch of its own."""
    held = data.load(setting.dataset, "test", limit=setting.size * networks)
    net = _network(setting, held.images.shape[1:])
    loss_fn = losses.classification(lambda p, x: net.apply(p, {}, x, True)[0])
    params = jax.eval_shape(net.init, jax.random.key(0))[0]
    layer = exact.lowest(net.blocks, params, (setting.size, *held.images.shape[1:]))
    functions = (
        jax.jit(lambda key: net.init(key)[0]),
        jax.jit(jax.grad(loss_fn)),
        jax.jit(lambda p, update: exact.peel(layer, p, update, setting.size)),
        jax.jit(layer.enter),
    )
    rows = []
    for i in range(networks):
        of = slice(i * setting.size, (i + 1) * setting.size)
        images = jnp.asarray(held.images[of], jnp.float32)
        batch = {"image": images, "label": jnp.asarray(held.labels[of])}
        rows.append(_one(functions, setting, layer, jax.random.key(i), batch))
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    means["false"] = int(sum(row["false"] for row in rows))
    means["seconds"] = float(np.median([row["seconds"] for row in rows]))
    return means


def _network(setting: Setting, shape: tuple[int, ...]) -> models.Network:
    which = "width" if setting.model == "mlp" else "hidden"
    options: dict[str, Any] = {which: setting.units}
    if setting.raw:
        options |= {"mean": (0.0,) * shape[2], "std": (1.0,) * shape[2]}
    size = shape[0], shape[1], shape[2]
    return models.build(setting.model, image_shape=size, num_classes=10, **options)


def _one(
    functions: tuple[Callable[..., Any], ...],
    setting: Setting,
    layer: DenseRelu,
    key: jax.Array,
    batch: dict[str, jax.Array],
) -> dict[str, float]:
    init, gradient, peel, enter = functions
    params = init(key)
    update = gradient(params, batch)
    if setting.narrow:
        update = jax.tree.map(
            lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), update
        )
    jax.block_until_ready(peel(params, update))
    start = time.perf_counter()
    found = jax.block_until_ready(peel(params, update))
    seconds = time.perf_counter() - start
    errors, exactly = _errors(
        layer, params, found, batch, enter(params, batch["image"])
    )
    order = errors.argmin(1)
    labels = np.asarray(found.labels) == np.asarray(batch["label"])[order]
    there = np.asarray(found.labels) >= 0
    good = there & exactly
    certified = np.asarray(found.certified)
    found_psnr = np.minimum(-10 * np.log10(errors.min(1) + 1e-30), metrics.EXACT)
    return {
        "recovered": len(set(order[good])) / setting.size,
        "certified": float(np.mean(certified)),
        "false": float(np.sum(certified & ~(good & labels))),
        "labels": float(np.mean(labels[good])) if good.any() else np.nan,
        "psnr": float(np.mean(found_psnr[good])) if good.any() else np.nan,
        "psnr_min": float(np.min(found_psnr[good])) if good.any() else np.nan,
        "rounds": float(found.rounds),
        "seconds": seconds,
    }


def _errors(
    layer: DenseRelu,
    params: Any,
    found: Peeled,
    batch: dict[str, jax.Array],
    features: jax.Array,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean squared error of every row from every truth, and which rows are
    exact; of features relative to their size."""
    truth, rows = np.asarray(features), np.asarray(found.features)
    if layer.pixelwise:
        shape = batch["image"].shape
        truth = np.asarray(batch["image"]).reshape(len(truth), -1)
        rows = np.asarray(layer.pixels(params, found.features, shape))
        rows = rows.reshape(len(truth), -1)
    errors = np.asarray([np.mean((truth - row) ** 2, axis=1) for row in rows])
    if not layer.pixelwise:
        errors = errors / np.mean(truth**2, axis=1)[None]
    return errors, -10 * np.log10(errors.min(1) + 1e-30) >= EXACTLY


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peeling")
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--only", default="", help="rows that have this text in them")
    given = parser.parse_args()
    found = {}
    print("| setting | recovered | certified | false | labels | dB mean, min | s |")
    print("|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        if given.only not in str(setting):
            continue
        row = found[str(setting)] = measured(setting, given.networks)
        print(
            f"| {setting} | {row['recovered']:.3f} | {row['certified']:.3f} | "
            f"{row['false']} | {row['labels']:.2f} | {row['psnr']:.0f}, "
            f"{row['psnr_min']:.0f} | {row['seconds']:.2f} |",
            flush=True,
        )
    out = ROOT / "benchmarks" / "results"
    out.mkdir(parents=True, exist_ok=True)
    (out / "peeling.json").write_text(json.dumps(found, indent=1), "utf-8")


if __name__ == "__main__":
    main()

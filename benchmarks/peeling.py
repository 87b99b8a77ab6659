"""How much of a batch is exact and certified: the figures of docs/exact.md.

    python -m benchmarks.peeling [--networks 8] [--only TEXT] [--adult FOLDER]
    python -m benchmarks.peeling --defenses
    python -m benchmarks.peeling --local

First layers: a dense network of N relus, untrained, sees batches of test images, once
in [0, 1] and once normalised as usual. Inside: `cnn` with a hidden dense layer of N
relus behind its two convolutions; what is found there are features and labels. An image
is recovered at 40 dB or more, a row of features where its error is below a hundredth of
its size. A certificate is false where it is given for anything else, or for another
label. Seconds are those of one batch, without compilation. Rows of Adult are records
with columns in [0, 1], or standardised; equal records count once. Trained networks stop
where their accuracy on held-out images first reaches what is named. --defenses and
--local: see `benchmarks.peeling_ends`.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import models
from benchmarks import adult, peeling_ends, trained
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
    accuracy: float = 0.0

    def __str__(self) -> str:
        seen = "[0, 1]" if self.raw else "normalised"
        sent = ", bfloat16" if self.narrow else ""
        sent += f", trained to {self.accuracy:.0%}" if self.accuracy else ""
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
    *_both(1000, "adult", 64),
    Setting("mlp", 256, "mnist", 20, raw=True, accuracy=0.86),
    Setting("mlp", 256, "mnist", 20, raw=True, accuracy=0.91),
    Setting("cnn", 100, "cifar10", 8),
    Setting("cnn", 256, "cifar10", 16),
    Setting("cnn", 512, "cifar10", 32),
    Setting("cnn", 512, "cifar10", 64),
]


def measured(setting: Setting, networks: int, folder: str = "") -> dict[str, Any]:
    """Returns means over networks, each with a batch of its own."""
    images, labels = _data(setting, networks, folder)
    shape, size = images.shape[1:], setting.size
    net = network(setting, shape)
    loss_fn = losses.classification(lambda p, x: net.apply(p, {}, x, True)[0])
    params = jax.eval_shape(net.init, jax.random.key(0))[0]
    layer = exact.lowest(net.blocks, params, (size, *shape))
    functions = (
        trained.trainer(net, loss_fn, setting.dataset, setting.accuracy)
        if setting.accuracy
        else jax.jit(lambda key: net.init(key)[0]),
        jax.jit(jax.grad(loss_fn)),
        jax.jit(lambda p, update: exact.peel(layer, p, update, size)),
        jax.jit(layer.enter),
    )
    rows = []
    for i in range(networks):
        of = slice(i * size, (i + 1) * size)
        batch = {"image": jnp.asarray(images[of]), "label": jnp.asarray(labels[of])}
        rows.append(_one(functions, setting, layer, jax.random.key(i), batch))
    means = {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
    means["false"] = int(sum(row["false"] for row in rows))
    means["seconds"] = float(np.median([row["seconds"] for row in rows]))
    return means


def _data(
    setting: Setting, networks: int, folder: str
) -> tuple[np.ndarray, np.ndarray]:
    count = setting.size * networks
    if setting.dataset == "adult":
        images, labels = adult.load(pathlib.Path(folder), standardised=not setting.raw)
        order = np.random.default_rng(0).permutation(len(labels))[:count]
        return images[order], labels[order]
    held = data.load(setting.dataset, "test", limit=count)
    return np.asarray(held.images, np.float32), np.asarray(held.labels)


def network(setting: Setting, shape: tuple[int, ...]) -> models.Network:
    """Returns the network of a setting."""
    which = "width" if setting.model == "mlp" else "hidden"
    options: dict[str, Any] = {which: setting.units}
    tabular = setting.dataset == "adult"
    if setting.raw or tabular:
        options |= {"mean": (0.0,) * shape[2], "std": (1.0,) * shape[2]}
    size = shape[0], shape[1], shape[2]
    classes = 2 if tabular else 10
    return models.build(setting.model, image_shape=size, num_classes=classes, **options)


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
    order = errors.argmin(1)  # of equal images the first
    distinct = len(
        np.unique(np.asarray(batch["image"]).reshape(len(order), -1), axis=0)
    )
    labels = np.asarray(found.labels) == np.asarray(batch["label"])[order]
    there = np.asarray(found.labels) >= 0
    good = there & exactly
    certified = np.asarray(found.certified)
    found_psnr = np.minimum(-10 * np.log10(errors.min(1) + 1e-30), metrics.EXACT)
    return {
        "recovered": len(set(order[good])) / distinct,
        "certified": float(np.sum(certified)) / distinct,
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
    parser.add_argument("--adult", default="", help="folder of adult.data")
    parser.add_argument("--defenses", action="store_true", help="under defenses")
    parser.add_argument("--local", action="store_true", help="after local steps")
    given = parser.parse_args()
    if given.defenses or given.local:
        peeling_ends.main(given.defenses, given.networks)
        return
    found = {}
    print("| setting | recovered | certified | false | labels | dB mean, min | s |")
    print("|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        if given.only not in str(setting):
            continue
        if setting.dataset == "adult" and not given.adult:
            print("--adult=FOLDER was not given: no rows of Adult", file=sys.stderr)
            continue
        row = found[str(setting)] = measured(setting, given.networks, given.adult)
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

"""One reconstruction run, from a resolved config to rows, arrays and a summary."""

import importlib
import platform
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import invertjax
from experiments import baselines, data, defense_flags, report, scene, updates, victim
from experiments.config import Config
from invertjax import driver, labels, metrics
from invertjax.base import Stop


PUBLIC = 512  # images outside the targets, for label counts and baselines


class Prepared(NamedTuple):
    """A run about to start: everything is read, checked and built."""

    config: Config
    scene: scene.Scene
    attack: str
    public: Any
    notes: dict
    num_classes: int


class Bars(NamedTuple):
    """How progress is shown. over: `(iterable, name) -> iterable`; steps: told a
    `driver.Progress`."""

    over: Callable[[Any, str], Iterator] = lambda items, name: iter(items)
    steps: Callable[[driver.Progress], None] = lambda progress: None


class Sources(NamedTuple):
    """What a run reads, checked and in memory, before anything is built.

    truth: `{"image": [N, B, H, W, C], "label": [N, B]}`, or None for a given update.
    public: images and labels outside the targets, or None.
    update, params: arrays of the given files, by key.
    """

    truth: Any = None
    public: Any = None
    num_classes: int = 0
    update: Any = None
    params: Any = None


def read(config: Config) -> Sources:
    """Reads the data or the given files.

    Raises:
      ValueError: naming the flag that asks for what is not there.
    """
    if config.update is not None:
        update = updates.load(config.update, "update")
        params = updates.load(config.params, "params")
        updates.check_finite(update, "update")
        updates.check_finite(params, "params")
        return Sources(None, None, config.num_classes or 0, update, params)
    count = config.targets * config.batch_size
    there = _data(config, config.split, data.check, None)
    if there < count:
        raise ValueError(
            f"--batch_size={config.batch_size} times --targets={config.targets} needs "
            f"{count} images: --dataset={config.dataset} --split={config.split} has "
            f"{there}."
        )
    limit = None if config.train_steps else PUBLIC
    _data(config, config.train_split, data.check, limit)
    held = _data(config, config.split, data.load, count)
    public = _data(config, config.train_split, data.load, limit)
    for part in (held, public):
        _check_labels(part)
    shape = (config.targets, config.batch_size)
    images, labels = held.images, held.labels
    truth = {
        "image": images.astype(_dtype(config)).reshape(*shape, *images.shape[1:]),
        "label": labels.reshape(shape),
    }
    return Sources(truth, public, held.num_classes)


def _data(config, split, read, limit):
    """`data.load` or `data.check`, whose errors then name the flags."""
    try:
        return read(
            config.dataset,
            split,
            config.data_dir,
            image_size=config.image_size,
            limit=limit,
        )
    except ValueError as error:
        named = f"--dataset={config.dataset} --split={split}"
        raise ValueError(f"{named}: {error}") from None


def _dtype(config):
    return np.float64 if config.x64 else np.float32


def prepare(config: Config, sources: Sources, bars: Bars = Bars()) -> Prepared:
    """Builds the victim, lets the clients share their updates, gathers the labels."""
    if config.update is not None:
        return _prepare_given(config, sources)
    image_shape = sources.truth["image"].shape[2:]
    classes = sources.num_classes
    built = victim.build(
        config, image_shape, classes, lambda: sources.public, bars.over
    )
    stage = scene.simulated(config, built, sources.truth, classes)
    stage = scene.with_labels(config, stage, _probes(config, sources.public))
    name = scene.chosen_attack(config, stage)
    public = sources.public.images[:256]
    return Prepared(config, stage, name, public, built.notes, classes)


def run(
    prepared: Prepared,
    *,
    first: int = 0,
    bars: Bars = Bars(),
    on_row: Callable[[dict, dict], None] = lambda row, batch: None,
) -> dict:
    """Attacks the targets from `first` on, and returns the summary's measured part.

    Args:
      prepared: from `prepare`.
      first: targets before this one are done (a resumed run).
      bars: progress.
      on_row: told each finished target: its row, and its batch of arrays.
    """
    config, stage = prepared.config, prepared.scene
    make = scene.attack_maker(config, stage, prepared.attack)
    keys = jax.random.split(jax.random.key(config.seed + 1), config.targets)
    keys = jax.vmap(lambda key: jax.random.split(key, config.restarts))(keys)
    program = driver.build(make, stage.shared, stage.trials, keys)

    def report_group(rows, results):
        picked = driver.best(results)
        for i, row in enumerate(rows):
            result = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), picked)
            on_row(*_row(prepared, first + row, result))

    rest = jax.tree.map(lambda leaf: leaf[first:], stage.trials)
    done = driver.run(
        program,
        stage.shared,
        rest,
        keys[first:],
        on_chunk=bars.steps,
        on_group=report_group,
    )
    timing = {"seconds_compile": program.seconds_compile, "seconds_run": done.seconds}
    interrupted = bool(jnp.any(done.results.stopped == Stop.INTERRUPTED))
    return {**timing, "interrupted": interrupted, "program": program}


def nulls(prepared: Prepared, program: driver.Program, interrupted: bool) -> dict:
    """Scores that need no knowledge of the update, beside which others are read."""
    config, stage = prepared.config, prepared.scene
    if stage.truth is None:
        return {}
    found = baselines.guesses(stage.truth, prepared.public, config.seed)
    if config.null_control and not interrupted:
        trial = scene.shuffled(config, stage)
        keys = jax.random.split(jax.random.key(config.seed + 2), (1, config.restarts))
        results = driver.run(program, stage.shared, trial, keys).results
        image = driver.best(results).batch["image"][0]
        score = metrics.score({"image": image}, {"image": stage.truth["image"][0]})
        found["shuffled_update"] = {"psnr_mean": float(np.mean(score["psnr"]))}
    return found


def summarise(prepared: Prepared, rows: list[dict], measured: dict, null: dict) -> dict:
    """`summary.json`: flat keys, and the threat model."""
    config = prepared.config
    summary = {
        "targets": len(rows),
        "attack": prepared.attack,
        "seconds_compile": measured["seconds_compile"],
        "seconds_run": measured["seconds_run"],
        "interrupted": measured["interrupted"],
        "failed": sum(row["loss"] is None for row in rows),
        "loss_mean": _mean([row["loss"] for row in rows if row["loss"] is not None]),
    }
    if prepared.scene.truth is not None:
        psnr = [np.mean(row["psnr"]) for row in rows]
        summary |= {
            "psnr_mean": float(np.mean(psnr)),
            "psnr_std": float(np.std(psnr)),
            "psnr_min": float(np.min(psnr)),
            "ssim_mean": _mean([v for row in rows for v in row["ssim"]]),
            "label_recall": float(np.mean([row["label_recall"] for row in rows])),
            "null": null,
        }
        floor = max(value["psnr_mean"] for value in null.values())
        summary["verdict"] = report.verdict(summary["psnr_mean"], floor, config.labels)
    else:
        summary["psnr_mean"] = None
        summary["truth"] = "not given: no PSNR can be computed"
        losses = [np.inf if row["loss"] is None else row["loss"] for row in rows]
        summary["verdict"] = report.verdict_blind(float(np.mean(losses)))
    rms = [row["update_rms"] for row in rows]
    summary["update_rms_mean"] = float(np.mean(rms))
    summary["defense_to_rms"] = {
        f"{spec.name}:{spec.value:g}": spec.value / float(np.mean(rms))
        for spec in map(defense_flags.parse, config.defense)
        if spec.name in ("gaussian", "laplace")
    }
    summary["victim"] = prepared.notes
    summary["threat_model"] = report.threat_model(config, prepared.attack)
    return summary


def versions() -> dict:
    """What a repetition needs to know of this machine."""
    device = jax.devices()[0]
    return {
        "invertjax": invertjax.__version__,
        "jax": jax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": f"{len(jax.devices())} x {device.platform} ({device.device_kind})",
    }


def _row(prepared, index, result):
    """The row of one target, and its arrays."""
    stage = prepared.scene
    label = result.batch["label"]
    guess = label.argmax(-1) if label.ndim == 2 else label
    row = {
        "target": index,
        "loss": float(result.loss) if np.isfinite(result.loss) else None,
        "steps": int(result.steps),
        "stopped": Stop.NAMES[int(result.stopped)],
        "labels": [int(value) for value in guess],
        "update_rms": float(stage.trials["rms"][index]),
    }
    images = result.batch["image"]
    if stage.truth is None:
        return row, {"image": np.clip(images, 0, 1), "label": guess}
    truth = jax.tree.map(lambda leaf: leaf[index], stage.truth)
    score = metrics.score({"image": images}, truth)
    order = score.pop("order")
    recall = metrics.label_recall(truth["label"], guess, prepared.num_classes)
    row |= {**score, "ssim": score.get("ssim", []), "label_recall": float(recall)}
    row["labels_true"] = [int(value) for value in truth["label"]]
    row["labels"] = [int(guess[i]) for i in order]
    batch = {"image": np.clip(images[order], 0, 1), "label": guess[order]}
    return row, {**batch, "original": truth["image"]}


def _prepare_given(config, sources):
    shape = tuple(config.image_shape)
    if config.loss is not None:
        params = updates.nested(sources.params)
        update = updates.as_tree(sources.update, params, "update")
        loss_fn, classes = _imported(config.loss), config.num_classes or 0
        from_input = lambda flat: flat  # noqa: E731
    else:
        classes = config.num_classes or 10
        net = victim.network(config, shape, classes)
        like, buffers = net.init(jax.random.key(0))
        params = updates.as_tree(sources.params, like, "params")
        update = updates.as_tree(sources.update, like, "update")
        loss_fn = victim.loss(net, buffers, config.norm_mode == "train")
        from_input = victim.denormaliser(net, shape)
    _check_loss(config, loss_fn, params, shape)
    stage = scene.given(config, loss_fn, params, update, classes, from_input)
    probes = labels.noise_batches(
        jax.random.key(config.seed), 8, config.batch_size, shape, classes
    )
    stage = scene.with_labels(config, stage, probes)
    name = scene.chosen_attack(config, stage)
    return Prepared(config, stage, name, None, {"given": config.update}, classes)


def _imported(text):
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--loss={text}: expected module:function that can be imported ({error})."
        ) from None


def _check_loss(config, loss_fn, params, shape):
    """Tries the loss on the shapes of a batch; computes nothing."""
    image = jax.ShapeDtypeStruct((config.batch_size, *shape), _dtype(config))
    label = jax.ShapeDtypeStruct((config.batch_size,), np.int32)
    named = f"--loss={config.loss}" if config.loss else f"--model={config.model}"
    try:
        value = jax.eval_shape(loss_fn, params, {"image": image, "label": label})
    except Exception as error:  # the reader's own code may raise anything
        raise ValueError(
            f"{named} fails on images of shape {image.shape} with these params: "
            f"{str(error).splitlines()[0]}"
        ) from None
    if getattr(value, "shape", None) != ():
        raise ValueError(
            f"{named} returns shape {getattr(value, 'shape', type(value))}: expected a "
            "scalar."
        )


def _probes(config, public):
    """Up to 8 public batches of the client's size, for label counts."""
    size = min(config.batch_size, len(public.images))
    count = max(1, min(8, len(public.images) // size))
    return {
        "image": public.images[: count * size].reshape(
            count, size, *public.images.shape[1:]
        ),
        "label": public.labels[: count * size].reshape(count, size),
    }


def _check_labels(held):
    low, high = int(held.labels.min()), int(held.labels.max())
    if low < 0 or high >= held.num_classes:
        raise ValueError(
            f"--dataset={held.name} has labels from {low} to {high}: expected 0 to "
            f"{held.num_classes - 1}."
        )


def _mean(values):
    return float(np.mean(values)) if len(values) else None

"""The network whose updates are attacked: built, trained or loaded."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from experiments.settings import checks
from experiments.settings.config import Config
from experiments.settings.defense_kinds import Parts
from experiments.victims import drawn_layers
from invertjax import layers, losses
from invertjax.cli import arrays as updates
from invertjax.cli import run_folder
from invertjax.rewrites import convolutions


class Victim(NamedTuple):
    """A loss and the params it is taken at.

    loss_fn: `(params, batch) -> []`.
    params: pytree; leading axis [N] where every target has a network of its own.
    per_target: whether it has.
    from_input: `[H*W*C] -> [H*W*C]`, undoes the normalisation of the first layer.
    notes: what the report says of it.
    net: its architecture. init: `key -> (params, buffers)`, compiled.
    parts: of the architecture, for defenses that ask for them.
    drawn: what the loss draws, None if nothing.
    blocks: of the network, from images to logits; () where it has none.
    """

    loss_fn: Callable
    params: Any
    per_target: bool
    from_input: Callable
    notes: dict
    net: models.Network
    init: Callable
    parts: Parts
    drawn: drawn_layers.Drawn | None
    blocks: tuple[Callable, ...]


def network(config: Config, image_shape, num_classes) -> models.Network:
    """The architecture of `--model`; `ValueError` where sizes do not fit."""
    try:
        return models.build(
            config.model,
            image_shape=image_shape,
            num_classes=num_classes,
            activation=config.activation,
            norm=config.norm,
            init=config.init,
            width=config.width,
        )
    except ValueError as error:
        raise ValueError(f"--model={config.model}: {error}") from None


def build(
    config: Config,
    image_shape,
    num_classes,
    train_data,
    progress,
    like: Victim | None = None,
) -> Victim:
    """The victim of a simulated run: untrained, trained now, or from a checkpoint.

    Args:
      config: resolved.
      image_shape: (H, W, C).
      num_classes: K.
      train_data: `() -> Dataset`, called only if training is needed.
      progress: `(iterable, name) -> iterable`, a progress bar.
      like: of a run that differs in numbers only; what is compiled there is used.
    """
    plain = network(config, image_shape, num_classes)
    net = like.net if like else drawn_layers.extended(config, plain, image_shape)
    init = like.init if like else jax.jit(net.init)
    shapes = jax.eval_shape(init, jax.random.key(0))
    check_attack(config, shapes[0], image_shape, net.blocks)
    loaded = _loaded(config, *shapes)
    key = jax.random.key(config.seed)
    params, buffers = _precise(config, init(key))
    notes: dict = {"trained_steps": 0}
    if config.networks == "per_target":
        params = _precise(config, _networks(init, key, config.targets))
    elif loaded is not None:
        params, buffers, notes = loaded
    elif config.train_steps:
        params, buffers, accuracy = _train(
            config, net, params, buffers, train_data(), progress
        )
        notes = {"trained_steps": config.train_steps, "train_accuracy": accuracy}
        _save(config, {"params": params, "buffers": buffers})
    per_target = config.networks == "per_target"
    if like and config.norm_mode != "eval":  # there the statistics are in the loss
        return like._replace(params=params, per_target=per_target, notes=notes)
    train = config.norm_mode != "eval"
    loss_fn, drawn = drawn_layers.loss(config, plain, buffers, train, image_shape)

    def features(params, images):
        return net.features(params, buffers, images, train)[0]

    return Victim(
        loss_fn,
        params,
        per_target,
        denormaliser(net, image_shape),
        notes,
        net,
        init,
        Parts(num_classes, features, net.last),
        drawn,
        net.blocks,
    )


# The targets too: they are left out of the training images.
_OF_TRAINING = ("train_steps", "train_lr", "train_split", "split", "data_dir")
_OF_TRAINING += ("dataset", "image_size", "batch_size", "targets")


def key(config: Config) -> tuple:
    """Equal for runs of one architecture that have the same victim."""
    names = ("seed", "networks", "checkpoint", "norm_mode", *_OF_TRAINING)
    return tuple(getattr(config, name) for name in names)


def check_checkpoint(config: Config) -> None:
    """Refuses a checkpoint that can neither be read nor, after training, be written.

    Raises:
      ValueError: naming --checkpoint and what is right.
    """
    if config.checkpoint is None:
        return
    file, named = pathlib.Path(config.checkpoint), f"--checkpoint={config.checkpoint}"
    if file.exists():
        updates.load(config.checkpoint, named)
        return
    if not config.train_steps:
        raise ValueError(f"{named}: no such file; give --train_steps to make one.")
    if file.suffix != ".safetensors":
        raise ValueError(f"{named}: expected a file named *.safetensors.")
    run_folder.check_writable(file.parent, named)


def check_attack(config: Config, params, image_shape, blocks) -> None:
    """Refuses closed forms on networks that they do not fit.

    Args:
      config: resolved.
      params: of the victim, or their shapes.
      image_shape: (H, W, C).
      blocks: of the network; () where it has none.

    Raises:
      ValueError: naming the attack and the victim.
    """
    victim = f"--model={config.model}" if config.model else f"--loss={config.loss}"
    flag = checks.recursive(config)
    if flag and not blocks:
        raise ValueError(
            f"{flag} does not fit {victim}: expected a network without shortcuts and "
            "without a defense of its own: mlp, lenet, cnn, convnet or convnet5."
        )
    if config.attack == "analytic":
        fits = f"--attack=analytic does not fit {victim}"
        try:
            first = layers.first(params, math.prod(image_shape))
        except ValueError as error:
            raise ValueError(f"{fits}: {error}") from None
        if first.bias is None:
            raise ValueError(f"{fits}: expected {first.path!r} to have a bias.")


def _precise(config, tree):
    """Flax makes float32 params whatever JAX's own precision."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, config.dtype), tree)


def _networks(init, key, count):
    """Network i from `fold_in(key, i)`, stacked on the host."""
    keys = [jax.random.fold_in(key, i) for i in range(count)]
    rows = [jax.device_get(init(one)[0]) for one in keys]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def denormaliser(net: models.Network, image_shape) -> Callable:
    """`[H*W*C] -> [H*W*C]`: undoes (image - mean) / std, the network's first layer."""
    mean, std = jnp.asarray(net.mean), jnp.asarray(net.std)

    def from_input(flat):
        image = flat.reshape(image_shape)
        return (image * std[None, None] + mean[None, None]).reshape(-1)

    return from_input


def _loaded(config, params, buffers):
    """Params, buffers and notes of an existing checkpoint, else None."""
    file, named = config.checkpoint, f"--checkpoint={config.checkpoint}"
    if file is None or not pathlib.Path(file).exists():
        return None
    arrays = updates.as_floats(updates.load(file, named), config.dtype, named)
    like = {"params": params, "buffers": buffers}
    try:
        tree = updates.as_tree(arrays, like, named)
    except ValueError as error:
        raise ValueError(
            f"{error} That is what --model={config.model} takes."
        ) from None
    steps = updates.notes(file).get("train_steps")
    if config.train_steps and steps not in (None, str(config.train_steps)):
        raise ValueError(
            f"--train_steps={config.train_steps}: {named} was trained for {steps}; "
            "expected the same, or another file."
        )
    return tree["params"], tree["buffers"], {"checkpoint": file}


def _save(config, tree):
    if config.checkpoint is not None and jax.process_index() == 0:
        pathlib.Path(config.checkpoint).parent.mkdir(parents=True, exist_ok=True)
        updates.save(config.checkpoint, tree, {"train_steps": str(config.train_steps)})


def _train(config, net, params, buffers, data, progress, batch_size=64, chunk=20):
    """SGD with momentum 0.9 on batches of 64; accuracy on the last 20 batches."""
    optimizer = optax.sgd(config.train_lr, momentum=0.9)

    def value(params, buffers, images, labels):
        logits, buffers = net.apply(params, buffers, images, True)
        hits = jnp.mean(jnp.argmax(logits, -1) == labels)
        return losses.cross_entropy(logits, labels), (buffers, hits)

    if convolutions.preferred():
        value = convolutions.as_matrix_products(value)

    def step(carry, batch):
        params, buffers, state = carry
        grads, (buffers, hits) = jax.grad(value, has_aux=True)(params, buffers, *batch)
        delta, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, delta), buffers, state), hits

    many = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches))
    random = np.random.default_rng(config.seed)
    carry = (params, buffers, optimizer.init(params))
    hits = jnp.zeros(1)
    for first in progress(range(0, config.train_steps, chunk), "training the victim"):
        count = min(chunk, config.train_steps - first)
        rows = random.integers(len(data.images), size=(count, batch_size))
        carry, hits = many(carry, (data.images[rows], data.labels[rows]))
    return carry[0], carry[1], float(jnp.mean(hits))

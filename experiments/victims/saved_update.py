"""An update from the reader's own code, with the params it was computed at."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.settings.config import Config
from experiments.victims import drawn_layers, network
from invertjax.cli import arrays as updates


class Given(NamedTuple):
    """loss_fn: `(params, batch) -> []`; params, update: pytrees of floats of one
    structure; from_input: undoes the model's normalisation; drawn: what the loss draws,
    None if nothing; blocks: of the network."""

    loss_fn: Callable
    params: Any
    update: Any
    from_input: Callable
    drawn: drawn_layers.Drawn | None = None
    blocks: tuple[Callable, ...] = ()


def read(config: Config) -> Given:
    """Reads the files, and tries the loss on their shapes; computes nothing.

    Raises:
      ValueError: naming the flag of what does not fit.
    """
    arrays = {}
    for flag in ("update", "params"):
        path = getattr(config, flag)
        loaded = updates.load(path, f"--{flag}={path}")
        arrays[flag] = updates.as_floats(loaded, config.dtype, f"--{flag}={path}")
    if not any(np.any(leaf) for leaf in arrays["update"].values()):
        raise ValueError(f"--update={config.update} holds only zeros.")
    read_as = _with_model if config.loss is None else _with_loss
    found = read_as(config, arrays)
    network.check_attack(config, found.params, config.image_shape, found.blocks)
    return found


def num_classes(config: Config) -> int:
    """K, by default that of CIFAR-10."""
    return config.num_classes or 10


def batch_shapes(config: Config) -> dict:
    """Of the batch behind the update, with labels as the attack gives them."""
    size = config.batch_size
    label = jax.ShapeDtypeStruct((size,), jnp.int32)
    if config.labels == "joint":  # probabilities are optimised
        label = jax.ShapeDtypeStruct((size, num_classes(config)), config.dtype)
    image = jax.ShapeDtypeStruct((size, *config.image_shape), config.dtype)
    return {"image": image, "label": label}


def _with_model(config, arrays):
    shape, classes = tuple(config.image_shape), num_classes(config)
    plain = network.network(config, shape, classes)
    net = drawn_layers.extended(config, plain, shape)
    like = jax.eval_shape(net.init, jax.random.key(0))[0]
    try:
        params = updates.as_tree(arrays["params"], like, f"--params={config.params}")
        update = updates.as_tree(arrays["update"], like, f"--update={config.update}")
    except ValueError as error:
        sizes = ",".join(map(str, shape))
        raise ValueError(
            f"{error} That is what --model={config.model} --image_shape={sizes} "
            f"--num_classes={classes} takes."
        ) from None
    buffers = jax.jit(net.init)(jax.random.key(0))[1]
    loss_fn, drawn = drawn_layers.loss(config, plain, buffers, True, shape)
    from_input = network.denormaliser(net, shape)
    return Given(loss_fn, params, update, from_input, drawn, net.blocks)


def _with_loss(config, arrays):
    loss_fn = _imported(config.loss)
    params = _first_form(config, loss_fn, arrays["params"])
    update = updates.as_tree(arrays["update"], params, f"--update={config.update}")
    return Given(loss_fn, params, update, lambda flat: flat)


def _imported(text):
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the reader's own module may raise anything
        raise ValueError(
            f"--loss={text}: expected module:function that can be imported "
            f"({type(error).__name__}: {error})."
        ) from None
    if not callable(found):
        raise ValueError(f"--loss={text} is no function.")
    return found


def _first_form(config, loss_fn, arrays):
    """The tree of which the loss takes the arrays; see `updates.forms`."""
    batch = batch_shapes(config)
    errors = []
    for params in updates.forms(arrays):
        try:
            value = jax.eval_shape(loss_fn, params, batch)
            _check_scalar(value)
            jax.eval_shape(jax.grad(loss_fn), params, batch)
            return params
        except Exception as error:  # the reader's own code may raise anything
            errors.append(error)
    reason = (str(errors[0]).splitlines() or [""])[0]
    raise ValueError(
        f"--loss={config.loss} fails on images of shape {batch['image'].shape}, labels "
        f"of shape {batch['label'].shape} and the arrays of --params={config.params}: "
        f"{type(errors[0]).__name__}: {reason}"
    )


def _check_scalar(value):
    if getattr(value, "shape", None) != ():
        found = jax.tree.map(lambda leaf: leaf.shape, value)
        raise ValueError(f"it returns shape {found}, expected a scalar.")

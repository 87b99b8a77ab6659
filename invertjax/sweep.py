"""A grid of settings on every target, as one compiled program.

Whatever is a number to the attack (strengths of defenses, learning rates, weights of
priors, keys) is an axis of arrays; what changes shapes or functions needs a program of
its own.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import driver
from invertjax.base import Attack, Key, Stop
from invertjax.driver import layout
from invertjax.keys import typed


def product(**axes: Iterable[Any]) -> dict[str, np.ndarray]:
    """Returns all combinations of the values of some axes.

    Args:
      axes: numbers, by name; none of them empty.

    Returns:
      Name to `[C]`, the last axis fastest.

    Raises:
      ValueError: naming the axis that is empty.
    """
    values = {name: list(axis) for name, axis in axes.items()}
    for name, axis in values.items():
        if not axis:
            raise ValueError(f"Expected {name}={axis} to hold at least one value.")
    rows = itertools.product(*values.values())
    return dict(zip(values, map(np.array, zip(*rows, strict=True)), strict=True))


def run(
    keys: Key,
    make_attack: Callable[[Any, Any, Any], Attack],
    shared: Any,
    trials: Any,
    cells: Any,
    *,
    on_chunk: Callable[[driver.Progress], None] = lambda progress: None,
    **options: Any,
) -> driver.Run:
    """Runs every cell of a grid on every target, with one compilation.

    A restart starts from the same key in every cell, so that cells compare in pairs.
    The client may be part of the sweep: what `make_attack` computes from a cell, such
    as a defended update, is computed in the program.

    Args:
      keys: `[N, R]` PRNG keys.
      make_attack: `(shared, trial, cell) -> Attack`.
      shared: pytree that all share, e.g. the params of one network.
      trials: pytree of `[N, ...]`, e.g. updates.
      cells: pytree of `[C, ...]`, e.g. from `product`.
      on_chunk: see `driver.run`.
      options: of `driver.build`.

    Returns:
      A `driver.Run` whose results have the leading axes `[C, N, R]`.

    Raises:
      ValueError: if the leading axes of trials and keys, or of the cells, disagree.
      KeyboardInterrupt: if it was interrupted.
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(cells)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"Expected cells of one leading axis [C], got {sizes}.")
    (count,) = sizes.pop()
    keys = typed(keys, "keys")
    targets, _ = layout.sides(trials, keys)
    # Rows are pairs of numbers, so that the data of cells and targets is there once.
    cell, target = np.divmod(np.arange(count * targets), targets)
    rows = {"cell": cell, "target": target}
    everything = (shared, trials, jax.tree.map(jnp.asarray, cells))

    def make(everything: tuple, row: dict[str, jax.Array]) -> Attack:
        shared, trials, cells = everything
        trial = jax.tree.map(lambda leaf: leaf[row["target"]], trials)
        return make_attack(
            shared, trial, jax.tree.map(lambda leaf: leaf[row["cell"]], cells)
        )

    keys = jnp.tile(keys, (count, 1))
    program = driver.build(make, everything, rows, keys, **options)
    done = driver.run(program, everything, rows, keys, on_chunk=on_chunk)
    cut_short = np.any(done.results.stopped == Stop.INTERRUPTED)  # the last group
    if cut_short or len(done.results.loss) < count * targets:
        raise KeyboardInterrupt
    results = jax.tree.map(
        lambda leaf: leaf.reshape(count, targets, *leaf.shape[1:]), done.results
    )
    return done._replace(results=results)

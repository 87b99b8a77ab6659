"""Where trials run: over devices, and how many side by side on each.

A group of trials is a rectangle, targets by restarts. Devices split it along both
sides; what falls to one device runs `at_once` side by side under `vmap`, the rest after
one another in the same compiled program. No trial waits for another's numbers, so that
nothing passes between devices while they work.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from invertjax.base import Key

RESTARTS = "restarts"  # the name of the vmapped axis, for priors that need it
ROWS, COLUMNS = "device_rows", "device_columns"


class Lost(ConnectionError):
    """Another process of the same computation has stopped."""


class Layout(NamedTuple):
    """One group of trials on its devices.

    mesh: devices in rows (which divide the targets) and columns (the restarts).
    targets, restarts: of a group, filled up to multiples of the mesh's sides.
    at_once: trials that a device runs side by side, a divisor of what falls to it.
    coupled: whether the restarts of a target speak to each other.
    """

    mesh: Mesh
    targets: int
    restarts: int
    at_once: int
    coupled: bool

    @property
    def local(self) -> tuple[int, int]:
        """The numbers of targets and restarts that fall to one device."""
        rows, columns = self.mesh.devices.shape
        return self.targets // rows, self.restarts // columns

    def __str__(self) -> str:
        devices = self.mesh.devices
        plural = "s" if devices.size > 1 else ""
        return (
            f"groups of {self.targets} targets x {self.restarts} restarts on "
            f"{devices.size} {devices.flat[0].platform} device{plural}, "
            f"{self.at_once} at once on each"
        )


def choose(
    devices: Sequence[Any],
    targets: int,
    restarts: int,
    at_once: int | None = None,
    coupled: bool = False,
) -> Layout:
    """Chooses the layout that leaves the fewest trials to the busiest device.

    Of equal layouts it takes the one with the fewest devices, then the one with the
    most rows, which need no copy of an update. Every process has at least one device in
    it, since all take part in a `fetch`; where there are too few trials, some run
    twice.

    Args:
      devices: to choose from; the first ones of every process are taken.
      targets, restarts: sides of the group; rounded up to multiples of the devices'.
      at_once: at most so many, rounded down to what divides; None: all of them.
      coupled: keep the restarts of a target together, side by side on one device.
    """
    devices, least = _in_turns(devices)
    shapes = [
        (rows, columns)
        for rows in range(1, min(max(targets, least), len(devices)) + 1)
        for columns in range(1, min(restarts, len(devices) // rows) + 1)
        if rows * columns >= least and (columns == 1 or not coupled)
    ]

    def cost(shape: tuple[int, int]) -> tuple[int, int, int]:
        rows, columns = shape
        longest = -(-targets // rows) * -(-restarts // columns)
        return longest, rows * columns, columns

    rows, columns = min(shapes, key=cost)
    grid = np.array(devices[: rows * columns]).reshape(rows, columns)
    lines, across = -(-targets // rows), -(-restarts // columns)
    return Layout(
        Mesh(grid, (ROWS, COLUMNS)),
        lines * rows,
        across * columns,
        _side_by_side(lines, across, at_once, coupled),
        coupled,
    )


def _in_turns(devices: Sequence[Any]) -> tuple[list[Any], int]:
    """Returns the devices, one of each process in turn, and the number of processes."""
    of_process: dict[int, list] = {}
    for device in devices:
        of_process.setdefault(device.process_index, []).append(device)
    turns = itertools.zip_longest(*of_process.values())
    in_turns = [device for turn in turns for device in turn if device is not None]
    return in_turns, len(of_process)


def _side_by_side(lines: int, across: int, most: int | None, coupled: bool) -> int:
    if most is None:
        return lines * across
    if most >= across or coupled:
        return across * _divisor(lines, most // across)
    return _divisor(across, most)


def over_trials(
    layout: Layout, one_trial: Callable[..., Any], trials: Any, args: Any
) -> Any:
    """Calls `one_trial(trial, *args)` for every trial that falls to this device.

    Args:
      layout: of the group.
      one_trial: of one row of `trials` and one entry of `args`.
      trials: pytree of `[lines, ...]`.
      args: tuple of pytrees of `[lines, across, ...]`.
    """
    lines, across = layout.local
    columns = min(layout.at_once, across)

    def one_target(trial: Any, *args: Any) -> Any:
        def one_restart(*args: Any) -> Any:
            return one_trial(trial, *args)

        if layout.coupled:
            return jax.vmap(one_restart, axis_name=RESTARTS)(*args)
        return _mapped(one_restart, args, across, columns)

    return _mapped(one_target, (trials, *args), lines, layout.at_once // columns)


def spread(fun: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """Makes `fun(shared, trials, *args)` of one device a function of all of them."""

    def spreaded(shared: Any, trials: Any, *args: Any) -> Any:
        grid = P(ROWS, COLUMNS)
        specs = (P(), P(ROWS), *[grid] * len(args))
        # Unchecked: nothing passes between devices, so nothing can be inconsistent.
        whole = jax.shard_map(
            fun, mesh=layout.mesh, in_specs=specs, out_specs=grid, check_vma=False
        )
        return whole(shared, trials, *args)

    return spreaded


def place(tree: Any, mesh: Mesh, *axes: str) -> Any:
    """Lays out arrays over the mesh along their leading axes.

    Every process holds the whole arrays, and hands its devices their part.
    """
    sharding = NamedSharding(mesh, P(*axes))

    def one(leaf: jax.Array) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])

    return jax.tree.map(one, tree)


def sides(trials: Any, keys: Key) -> tuple[int, int]:
    """Returns the numbers of targets and of restarts, N and R.

    Raises:
      ValueError: if the leading axes of trials `[N]` and keys `[N, R]` disagree.
    """
    if keys.ndim != 2 or 0 in keys.shape:
        raise ValueError(f"Expected keys of shape [N, R], both >= 1; got {keys.shape}.")
    count, restarts = keys.shape
    for leaf in jax.tree.leaves(trials):
        if np.shape(leaf)[:1] != (count,):
            raise ValueError(
                f"Expected every leaf of trials to have N={count} rows, got "
                f"shape {np.shape(leaf)}."
            )
    return count, restarts


def group(
    layout: Layout, trials: Any, keys: Key, rows: Sequence[int]
) -> tuple[Any, Key]:
    """Puts the trials and keys of some targets on their devices.

    The layout is filled up with repeats of the group's own trials.
    """
    targets = [rows[i % len(rows)] for i in range(layout.targets)]
    columns = np.arange(layout.restarts) % keys.shape[1]
    trial = jax.tree.map(lambda leaf: np.asarray(leaf)[targets], trials)
    # As bits: JAX would count a key that is not taken as used.
    bits = np.asarray(jax.random.key_data(keys))[targets][:, columns]
    return (
        place(trial, layout.mesh, ROWS),
        jax.random.wrap_key_data(
            place(bits, layout.mesh, ROWS, COLUMNS), impl=jax.random.key_impl(keys)
        ),
    )


def fetch(tree: Any) -> Any:
    """Returns the whole arrays, as NumPy's, in every process.

    Raises:
      Lost: if another process has stopped.
    """
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return _all_gathered(tree, tiled=True)


def gather(value: Any) -> np.ndarray:
    """Returns the numbers of all processes, `[processes]`, in every process.

    Raises:
      Lost: if another process has stopped.
    """
    array = np.asarray(value)
    if jax.process_count() == 1:
        return array[None]
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return _all_gathered(array.astype(dtype), tiled=False)


def _all_gathered(tree: Any, tiled: bool) -> Any:
    try:
        return multihost_utils.process_allgather(tree, tiled=tiled)
    except (ValueError, RuntimeError) as error:  # which of them depends on the backend
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise Lost(f"Another process stopped: {error}") from error


def _mapped(
    fun: Callable[..., Any], args: tuple, length: int, side_by_side: int
) -> Any:
    """Maps with `vmap` over groups of `side_by_side`, one group after another."""
    if length == 1:  # XLA's products are faster without a loop or an axis of one
        out = fun(*jax.tree.map(lambda leaf: leaf[0], args))
        return jax.tree.map(lambda leaf: leaf[None], out)
    if side_by_side == length:
        return jax.vmap(fun)(*args)
    batch_size = side_by_side if side_by_side > 1 else None
    return jax.lax.map(lambda args: fun(*args), args, batch_size=batch_size)


def _divisor(number: int, most: int) -> int:
    """Returns the largest divisor of `number` that is at most `most`."""
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(most, 1))

"""Builds problems on real photographs, in a process of its own: see `protocol`."""

import jax
import numpy as np

from benchmarks import jax_problem, problem_file, protocol
from benchmarks.cells import Cell
from experiments import data
from invertjax import clients

# Powers of two: [0, 1] and normalised units are then exact multiples of each other.
MEAN, STD = 0.5, 0.25


def build(
    cell: Cell,
    seed: int = 0,
    *,
    steps: int = 2_000,
    learning_rate: float = 0.02,
    total_variation: float = 0.03,
) -> problem_file.Problem:
    """A problem of the cell's size: untrained weights, photographs, their gradients."""
    weights_key, starts_key = jax.random.split(jax.random.key(seed))
    net = jax_problem.network(cell.model, cell.side, MEAN, STD)
    params, _ = jax.jit(net.init)(weights_key)
    images, labels = _photographs(cell)
    client = jax.jit(clients.gradient(jax_problem.loss_of(net)))
    observed = [
        jax_problem.paths(client(params, {"image": x, "label": y}, weights_key))
        for x, y in zip(images, labels, strict=True)
    ]
    shape = (cell.targets, cell.restarts, *images.shape[1:])
    # Cut off, not clipped: the slope of |dx| is a matter of taste where pixels tie.
    starts = 0.5 + 0.25 * jax.random.truncated_normal(starts_key, -2, 2, shape)
    return problem_file.Problem(
        model=cell.model,
        params=jax_problem.paths(params),
        observed={k: np.stack([tree[k] for tree in observed]) for k in observed[0]},
        images=images,
        labels=labels,
        starts=np.asarray(starts),
        mean=MEAN,
        std=STD,
        learning_rate=learning_rate,
        total_variation=total_variation,
        steps=steps,
    )


def _photographs(cell):
    """`[N, B, H, W, 3]` and `[N, B]`: test crops first, then others, then again."""
    count = cell.targets * cell.batch
    sets, missing = [], count
    for split in ("test", "train"):
        if missing > 0:
            found = data.load("photos", split, image_size=cell.side, limit=missing)
            sets.append(found)
            missing -= len(found.images)
    images = np.concatenate([found.images for found in sets])
    labels = np.concatenate([found.labels for found in sets])
    rows = np.arange(count) % len(images)
    lead = (cell.targets, cell.batch)
    return images[rows].reshape(*lead, *images.shape[1:]), labels[rows].reshape(lead)


def _save(path, cell, **settings):
    problem_file.save(path, build(Cell(*cell), **settings))
    return {}


if __name__ == "__main__":
    protocol.answer({"build": _save})

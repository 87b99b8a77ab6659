"""One problem, as every contestant reads it: a single .npz. Needs NumPy only."""

import json
import pathlib
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Problem(NamedTuple):
    """N observed updates of one network, each to be inverted from R given starts.

    The objective of all contestants, over images x in [0, 1]:

        1 - cos(gradient(x), observed) + total_variation (mean |dx| + mean |dy|)

    minimised by Adam (0.9, 0.999, 1e-8) on the sign of the gradient; the learning rate
    falls tenfold after 3/8, 5/8 and 7/8 of the steps; x is clipped after every step.
    Batch norms take the statistics of the batch.

    Attributes:
      model: a name of `models.NAMES`.
      params: path to array, e.g. `layers/0/kernel`; convolutions are HWIO, dense
        kernels `[in, out]`.
      observed: the same paths, to `[N, ...]`: the gradient of the mean cross-entropy.
      images: `[N, B, H, W, C]` float32 in [0, 1], the truth.
      labels: `[N, B]` int32, known to the attacker.
      starts: `[N, R, B, H, W, C]` float32 in [0, 1].
      mean, std: of the model's normalisation, the same for all channels.
      learning_rate: in units of pixels in [0, 1].
      total_variation: its weight.
      steps: the budget, which sets the falls of the learning rate.
      attack: whose objective and optimiser; the above are those of the default. For
        others each contestant takes its own.
    """

    model: str
    params: Arrays
    observed: Arrays
    images: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    mean: float
    std: float
    learning_rate: float
    total_variation: float
    steps: int
    attack: str = "inverting_gradients"


_TREES = ("params", "observed")
_ARRAYS = ("images", "labels", "starts")


def save(path: pathlib.Path, problem: Problem) -> None:
    """Writes a problem to `path`, uncompressed."""
    fields = problem._asdict()
    content = {name: fields.pop(name) for name in _ARRAYS}
    for tree in _TREES:
        for leaf, array in fields.pop(tree).items():
            content[f"{tree}/{leaf}"] = array
    np.savez(path, allow_pickle=False, scalars=json.dumps(fields), **content)


def load(path: pathlib.Path | str) -> Problem:
    """Reads what `save` wrote."""
    with np.load(path) as content:
        trees: dict[str, Arrays] = {
            tree: {
                name.removeprefix(f"{tree}/"): content[name]
                for name in content
                if name.startswith(f"{tree}/")
            }
            for tree in _TREES
        }
        arrays = {name: content[name] for name in _ARRAYS}
        return Problem(**trees, **arrays, **json.loads(str(content["scalars"])))


def learning_rate(problem: Problem, step: int) -> float:
    """The rate of the given step, counted from 0."""
    falls = sum(step >= problem.steps * part // 8 for part in (3, 5, 7))
    return problem.learning_rate * 0.1**falls

"""What is reached without knowing the update: the floor of every score."""

from typing import Any

import jax
import numpy as np

from invertjax import metrics
from invertjax.auditing import observed
from invertjax.auditing.situations import Situation
from invertjax.base import Batch


def guesses(truth: Batch, public: Any, seed: int) -> dict[str, dict[str, float]]:
    """Returns the PSNR of guessing the mean public image, and random public images.

    Args:
      truth: `{"image": [N, B, H, W, C], ...}`.
      public: `[P, H, W, C]`, images that are not targets.
      seed: of the choice.

    Returns:
      Mean and standard deviation over targets, in dB, for each of both.
    """
    count, size = truth["image"].shape[:2]
    random = np.random.default_rng(seed)
    mean = np.broadcast_to(public.mean(0), (size, *public.shape[1:]))
    found: dict[str, list[float]] = {"mean_image": [], "random_image": []}
    for i in range(count):
        chosen = public[random.integers(len(public), size=size)]
        for name, guess in (("mean_image", mean), ("random_image", chosen)):
            score = metrics.score({"image": guess}, {"image": truth["image"][i]})
            found[name].append(float(np.mean(score["psnr"])))
    return {
        name: {"psnr_mean": float(np.mean(values)), "psnr_std": float(np.std(values))}
        for name, values in found.items()
    }


def shuffled(situation: Situation, seed: int) -> Any:
    """Returns the first trial with the coordinates of its update permuted.

    The update keeps its values, leaf by leaf, and says nothing of the batch any more.
    """
    random = np.random.default_rng(seed)

    def permute(leaf: Any) -> np.ndarray:
        return random.permutation(np.ravel(leaf)).reshape(leaf.shape)

    trial = observed.take(situation.trials, slice(1))
    return {**trial, "update": jax.tree.map(permute, trial["update"])}

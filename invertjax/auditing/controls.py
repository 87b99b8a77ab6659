"""What is reached without knowing the update: the floor of every score."""

from typing import Any

import jax
import numpy as np

from invertjax import metrics
from invertjax.auditing import observed
from invertjax.auditing.scores import Score
from invertjax.auditing.situations import Situation
from invertjax.base import Batch


def guesses(
    truth: Batch, public: Any, seed: int, *, score: Score = metrics.score
) -> dict[str, dict[str, float]]:
    """Returns the PSNR of guesses that need no update, by name.

    They are the mean public image and random public images; without public images it is
    a grey image, so that there is always something to beat.

    Args:
      truth: `{"image": [N, B, H, W, C], ...}`.
      public: `[P, H, W, C]`, images that are not targets; None where there are none.
      seed: of the choice.
      score: from `scores.scorer`, where there are many batches to score.

    Returns:
      Mean and standard deviation over targets, in dB, for each.
    """
    count, size = truth["image"].shape[:2]
    random = np.random.default_rng(seed)
    shape = truth["image"].shape[1:]
    reached: dict[str, list[float]] = {}
    for i in range(count):
        guessed = {"grey_image": np.full(shape, 0.5, np.float32)}
        if public is not None:
            chosen = public[random.integers(len(public), size=size)]
            mean = np.broadcast_to(public.mean(0), shape)
            guessed = {"mean_image": mean, "random_image": chosen}
        for name, guess in guessed.items():
            found = score({"image": guess}, {"image": truth["image"][i]})
            reached.setdefault(name, []).append(float(np.mean(found["psnr"])))
    return {
        name: {"psnr_mean": float(np.mean(values)), "psnr_std": float(np.std(values))}
        for name, values in reached.items()
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

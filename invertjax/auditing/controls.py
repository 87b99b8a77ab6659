"""What is reached without knowing the update: the floor of every score."""

from typing import Any

import jax
import numpy as np

from invertjax import driver, metrics
from invertjax.auditing import observed
from invertjax.auditing.keys import Keys
from invertjax.auditing.scores import Score, finite, scorer
from invertjax.auditing.situations import Situation
from invertjax.auditing.watch import Watch
from invertjax.base import Batch, Stop
from invertjax.driver.cache import Cache


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


def blind_guess(truth: np.ndarray, public: Any) -> float:
    """Returns the mean PSNR of the guess that needs nothing: the mean public image, or
    a grey one where there are no public images.

    Args:
      truth: `[B, H, W, C]`, of one target.
      public: see `guesses`.
    """
    guess = 0.5 if public is None else np.mean(public, axis=0)
    errors = np.mean((truth - guess) ** 2, axis=(1, 2, 3), dtype=np.float64)
    with np.errstate(divide="ignore"):  # it may be the image itself
        return float(np.mean(np.minimum(-10 * np.log10(errors), metrics.EXACT)))


def nulls(
    keys: Keys,
    situation: Situation,
    public: Any,
    program: driver.Program | None,
    watch: Watch,
    cache: Cache,
) -> dict[str, dict[str, float]]:
    """Returns scores that need no knowledge of the update, by name.

    Args:
      keys: of the audit.
      situation: with the truth; else there are none.
      public: see `guesses`.
      program: the attack's, to be run on a shuffled update; None: that is not asked
        for. "shuffled_update" is missing then, or where it was interrupted.
      watch: who follows; its `chunk` is not told.
      cache: of compiled functions.
    """
    if situation.truth is None:
        return {}
    score = scorer(cache)
    found = guesses(situation.truth, public, keys.host, score=score)
    if program is None:
        return found
    with watch.doing("attacking a shuffled update, for comparison"):
        results = driver.run(
            program,
            situation.shared,
            shuffled(situation, keys.host),
            keys.control,
            on_chunk=lambda progress: watch.check(),
        ).results
    if not np.any(np.asarray(results.stopped) == Stop.INTERRUPTED):
        image = finite(driver.best(results).batch["image"][0])
        reached = score({"image": image}, {"image": situation.truth["image"][0]})
        found["shuffled_update"] = {"psnr_mean": float(np.mean(reached["psnr"]))}
    return found


def shuffled(situation: Situation, seed: int) -> Any:
    """Returns the first trial with the coordinates of its update permuted.

    The update keeps its values, leaf by leaf, and says nothing of the batch any more.
    """
    random = np.random.default_rng(seed)

    def permute(leaf: Any) -> np.ndarray:
        return random.permutation(np.ravel(leaf)).reshape(leaf.shape)

    trial = observed.take(situation.trials, slice(1))
    return {**trial, "update": jax.tree.map(permute, trial["update"])}

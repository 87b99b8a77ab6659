"""Scores of reconstructions, after assignment: a row an update, and its arrays."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from invertjax import metrics
from invertjax.auditing.observed import take
from invertjax.auditing.situations import Situation, Target
from invertjax.base import Arrays, Batch, Result, Row, Stop
from invertjax.driver.cache import Cache

Score = Callable[[Batch, Batch], dict[str, list[Any]]]  # see `metrics.score`

# The columns that a reconstruction has in tables, with their types.
COLUMNS = {
    "psnr": float,
    "psnr_min": float,
    "ssim": float,
    "label_recall": float,
    "loss": float,
    "steps_taken": int,
    "stopped": str,
    "update_rms": float,
}


def scorer(cache: Cache) -> Score:
    """Returns `metrics.score`, compiled once for batches of one shape."""
    return functools.partial(
        metrics.score,
        by_image=cache.jit(("by_image",), lambda: metrics.by_image),
        pairwise=cache.jit(("pairwise",), lambda: metrics.pairwise_mse),
    )


def scored(
    situation: Situation,
    index: int,
    result: Result,
    *,
    score: Score = metrics.score,
    fit: Callable[[int, Batch], float] | None = None,
) -> tuple[Row, Arrays]:
    """Returns the row of one update, and its arrays.

    Args:
      situation: that was attacked.
      index: of the update.
      result: of its best restart.
      score: from `scorer`, where there are many batches to score.
      fit: from `programs.fitter`; None: it is not asked for.
    """
    label = np.asarray(result.batch["label"])
    guess = label.argmax(-1) if label.ndim == 2 else label
    row: Row = {
        "target": index,
        "loss": float(result.loss) if np.isfinite(result.loss) else None,
        "steps": int(result.steps),
        "stopped": Stop.NAMES[int(result.stopped)],
        "labels": [int(value) for value in guess],
        "update_rms": float(situation.trials["rms"][index]),
    }
    images = finite(result.batch["image"])
    proven = certified(result)
    row["certified"] = proven.tolist()
    row["still_falling"] = still_falling(result)
    if fit is not None:
        row["fit"] = _finite(fit(index, result.batch))
    if situation.truth is None:
        seen = {"image": np.clip(images, 0, 1), "label": guess}
        return row, {"target": np.asarray(index), **seen}
    truth = take(situation.truth, index)
    if fit is not None:
        row["fit_truth"] = _finite(fit(index, truth))
    found = score({"image": images}, truth)
    order = found.pop("order")
    classes = situation.target.parts.num_classes
    recall = metrics.label_recall(truth["label"], guess, classes)
    row |= {**found, "ssim": found.get("ssim", []), "label_recall": float(recall)}
    row["labels_true"] = [int(value) for value in truth["label"]]
    row["labels"] = [int(guess[i]) for i in order]
    row["certified"] = proven[order].tolist()
    return row, {
        "target": np.asarray(index),
        "image": np.clip(images[order], 0, 1),
        "label": guess[order],
        "original": truth["image"],
    }


def certified(result: Result) -> np.ndarray:
    """Returns which images, `[B]` bool, an attack has proven."""
    if result.certified is None:
        return np.zeros(np.shape(result.batch["image"])[:1], bool)
    return np.asarray(result.certified)


def still_falling(result: Result) -> bool:
    """Returns whether the objective was falling when the steps were spent: whether the
    last tenth of them took the best so far down by a twentieth."""
    steps = int(result.steps)
    losses = np.asarray(result.losses, float)[:steps]
    if int(result.stopped) != Stop.BUDGET or len(losses) < 2:
        return False
    losses = np.where(np.isfinite(losses), losses, np.inf)
    before = losses[: -max(1, len(losses) // 10)].min()
    if np.isinf(before):
        return bool(np.isfinite(result.loss))
    return bool(float(result.loss) < before - 0.05 * abs(before))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def columns(row: Row) -> Row:
    """Returns a row of `scored` as columns of a table: one number for all images."""
    failed = row["loss"] is None
    psnr: list[float] = row["psnr"]
    ssim: list[float] = row["ssim"]
    return {
        "target": row["target"],
        "psnr": None if failed else float(np.mean(psnr)),
        "psnr_min": None if failed else float(np.min(psnr)),
        "ssim": float(np.mean(ssim)) if ssim and not failed else None,
        "label_recall": None if failed else row["label_recall"],
        "loss": row["loss"],
        "steps_taken": row["steps"],
        "stopped": row["stopped"],
        "update_rms": row["update_rms"],
    }


def finite(images: Any) -> np.ndarray:
    """Returns images in which what is not finite is mid-grey: so a trial that failed
    is scored and kept."""
    return np.where(np.isfinite(images), images, 0.5)


def noise_to_rms(target: Target, rms: float) -> dict[str, float | None]:
    """Returns the size of the noise relative to the undefended update's coordinates."""
    return {
        f"{one.name}:{one.value:g}": one.value / rms if rms else None
        for one in target.protections
        if one.law and one.update and one.value is not None
    }

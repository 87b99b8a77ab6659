"""Scores of reconstructions, after assignment: a row an update, and its arrays."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from invertjax import metrics
from invertjax.auditing.observed import take
from invertjax.auditing.situations import Situation, Target
from invertjax.base import Arrays, Result, Row, Stop

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


def scored(
    situation: Situation,
    index: int,
    result: Result,
    *,
    by_image: Callable[..., dict[str, jax.Array]] = metrics.by_image,
    fit: Callable[[int, Any], float] | None = None,
) -> tuple[Row, Arrays]:
    """Returns the row of one update, and its arrays.

    Args:
      situation: that was attacked.
      index: of the update.
      result: of its best restart.
      by_image: of `metrics`, compiled where there are many batches to score.
      fit: `(index, batch) -> the cosine distance of its update from the observed one`,
        for where there is no truth.
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
    if situation.truth is None:
        found = fit(index, result.batch) if fit else np.nan
        row["fit"] = found if np.isfinite(found) else None
        return row, {"image": np.clip(images, 0, 1), "label": guess}
    truth = take(situation.truth, index)
    score = metrics.score({"image": images}, truth, by_image=by_image)
    order = score.pop("order")
    classes = situation.target.parts.num_classes
    recall = metrics.label_recall(truth["label"], guess, classes)
    row |= {**score, "ssim": score.get("ssim", []), "label_recall": float(recall)}
    row["labels_true"] = [int(value) for value in truth["label"]]
    row["labels"] = [int(guess[i]) for i in order]
    arrays = {"image": np.clip(images[order], 0, 1), "label": guess[order]}
    return row, {**arrays, "original": truth["image"]}


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
        "label_recall": row["label_recall"],
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
    """Returns how large noise is beside the undefended update's coordinates."""
    return {
        f"{one.name}:{one.value:g}": one.value / rms if rms else None
        for one in target.protections
        if one.law and one.update and one.value is not None
    }

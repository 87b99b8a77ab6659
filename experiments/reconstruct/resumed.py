"""What the folder of a run has to hold, for another process to go on with it."""

from invertjax import metrics
from invertjax.auditing import Situation
from invertjax.base import Row, Stop
from invertjax.cli import fields, recorder
from invertjax.cli.fields import (
    COUNT,
    DECIBELS,
    FLAG,
    NUMBER,
    SHARE,
    listed,
    nullable,
    one_of,
)
from invertjax.cli.recorder import Like, Store

# Of summary.json.
SUMMARY = {
    "interrupted": FLAG,
    "targets": COUNT,
    "failed": COUNT,
    "seconds_compile": NUMBER,
    "seconds_run": NUMBER,
}


def store(situation: Situation) -> Store:
    """Returns how the rows and arrays of a run are kept, and checked when they are read
    again: each is what `scores.scored` makes of such an update."""
    needed = row_fields(situation)
    added = {"certified": listed(FLAG, situation.target.shape[0])}

    def check(row: Row) -> None:
        fields.check(row, needed, added)  # which rows of before have not

    return recorder.by_target(check, _like(situation))


def row_fields(situation: Situation) -> fields.Fields:
    """Returns the fields of a row of metrics.jsonl."""
    size, *image = situation.target.shape
    blind = {
        "target": COUNT,
        "loss": nullable(NUMBER),
        "steps": COUNT,
        "stopped": one_of(*Stop.NAMES),
        "labels": listed(COUNT, size),
        "update_rms": NUMBER,
        "still_falling": FLAG,
        "fit": nullable(NUMBER),
    }
    if situation.truth is None:
        return blind
    return {
        **blind,
        "fit_truth": nullable(NUMBER),
        "mse": listed(NUMBER, size),
        "psnr": listed(DECIBELS, size),
        "ssim": listed(NUMBER, size if metrics.has_ssim(image) else 0),
        "label_recall": SHARE,
        "labels_true": listed(COUNT, size),
    }


def _like(situation: Situation) -> Like:
    size, *image = situation.target.shape
    shape = (size, *image)
    each = {"target": ((), "iu"), "image": (shape, "f"), "label": ((size,), "iu")}
    if situation.truth is not None:
        each["original"] = (shape, "f")
    return Like(situation.updates, each)

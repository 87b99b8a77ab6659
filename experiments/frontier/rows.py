"""The JSON lines of a frontier: what their rows hold, checked when they are read."""

import pathlib

from invertjax.base import Row
from invertjax.cli import fields, run_folder
from invertjax.cli.fields import COUNT, DECIBELS, NUMBER, SHARE, TEXT, nullable

TRAININGS, LABELS = "trainings.jsonl", "labels.jsonl"

# By file: the column with the name of what a row is of, and the others; in place of
# which a row may say why there are none.
_NAMES = {TRAININGS: "training", LABELS: "cell"}
_FOUND = {
    TRAININGS: {
        "accuracy": SHARE,
        "dropped": COUNT,
        "epsilon": nullable(NUMBER),
        "delta": nullable(NUMBER),
    },
    LABELS: {"label_recall": SHARE, "guess": DECIBELS},
}


def read(folder: pathlib.Path, name: str) -> list[Row]:
    """Returns the rows of one of the files; [] where there is none.

    Raises:
      ValueError: naming the file, and the line that is damaged.
    """

    def check(row: Row) -> None:
        found = {"failed": TEXT} if "failed" in row else _FOUND[name]
        fields.check(row, {_NAMES[name]: TEXT, **found})

    return run_folder.read_rows(folder / name, check)

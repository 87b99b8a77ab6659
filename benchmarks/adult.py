"""Records of the Adult census as images `[n, 1, D, 1]` of a dense network.

Kohavi and Becker's UCI data: `adult.data` (train) and `adult.test`, a comma between
values, no header. Rows with a missing value are left out.
"""

import csv
import pathlib
from typing import NamedTuple

import numpy as np

CONTINUOUS = (0, 2, 4, 10, 11, 12)


class Records(NamedTuple):
    """images: `[n, 1, D, 1]` float32, continuous columns first. labels: `[n]`, 0 or 1,
    of an income above 50,000."""

    images: np.ndarray
    labels: np.ndarray


def load(folder: pathlib.Path, *, standardised: bool = False) -> Records:
    """Reads the train split, columns scaled by what is in it.

    Categories are one-hot; continuous columns go from 0 to 1, or, standardised, every
    column has mean 0 and standard deviation 1.

    Args:
      folder: with `adult.data`.
      standardised: see above.
    """
    with open(folder / "adult.data", encoding="utf-8") as file:
        read = csv.reader(file, skipinitialspace=True)
        rows = [row for row in read if row and "?" not in row]
    columns = list(zip(*rows, strict=True))
    label = np.asarray([value == ">50K" for value in columns.pop()], np.int32)
    numbers = np.asarray([columns[i] for i in CONTINUOUS], np.float64).T
    low, high = numbers.min(0), numbers.max(0)
    parts = [(numbers - low) / (high - low)]
    for i, column in enumerate(columns):
        if i not in CONTINUOUS:
            parts.append(np.asarray(column)[:, None] == np.unique(column)[None])
    table = np.concatenate(parts, axis=1, dtype=np.float64)
    if standardised:
        spread = table.std(0)
        table = (table - table.mean(0)) / np.where(spread > 0, spread, 1)
    images = table.astype(np.float32)
    return Records(images.reshape(len(rows), 1, -1, 1), label)

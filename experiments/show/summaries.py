"""A sweep's results: from Parquet parts to means and deviations over coordinates."""

import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas
from pandas.api import types

from experiments.settings.settings import COLUMNS
from experiments.show import parts
from experiments.show.parts import PICTURES
from invertjax import metrics
from invertjax.cli.near import near
from invertjax.reports import text as texts

Frame = Any  # of pandas, whose own annotations do not survive indexing
# Every other column is a result.
SETTINGS = {*COLUMNS.values(), "defense_name", "strength"}
EVERY = "all"  # the one value of a coordinate that is not there
_FIRST = ("defense_name", "model", "attack", "dataset")  # among equals
_DRAWS = ("seed", "target", "targets")  # averaged over, never a coordinate by default
_COORDINATES = ("cell", "target", "device")  # beside the settings


def read(workdir: pathlib.Path, needed: Iterable[str] = ()) -> Frame:
    """Returns the rows of all parts, in the order in which they were written.

    Of a target that was tried again the last row that succeeded counts.

    Args:
      workdir: of the parts.
      needed: columns besides those that every sweep has.

    Raises:
      ValueError: naming the folder or the part that is wrong.
    """
    frame = parts.read(workdir, (*parts.NEEDED, *needed))
    order = done(frame).sort_values(kind="stable").index  # a success wins
    frame = frame.loc[order].drop_duplicates(["cell", "target"], keep="last")
    return frame.sort_index().apply(_plain)


def _plain(column: Frame) -> Frame:
    """Returns a column of texts and lists, such as a shape, as texts that show what
    they hold: names may be of others, and what is grouped has to be hashable."""
    if types.is_numeric_dtype(column) or column.name in (*PICTURES, "reason"):
        return column

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | list | dict):
            value = str(value.tolist() if isinstance(value, np.ndarray) else value)
        return texts.printable(value) if isinstance(value, str) else value

    return column.map(plain)


class Choice(NamedTuple):
    """Names of columns, None where there is nothing to tell apart."""

    rows: str | None
    columns: str | None
    metric: str
    x: str | None
    curves: str | None


def choose(frame: Frame, given: Choice) -> Choice:
    """Returns the choice with what was not given filled in.

    Rows and columns: the settings with most values, words before numbers. x: the
    defense's strength, else the number with most values. Curves: the defense's name,
    else the setting with most values. Never two that leave most of a table empty.

    Raises:
      ValueError: naming a flag whose column is not there, or not of numbers.
    """
    coordinates = [*settings(frame), *_COORDINATES]
    for flag, name in given._asdict().items():
        allowed = frame.columns if flag == "metric" else coordinates
        if name is not None and name not in allowed:
            what = "column of results" if flag == "metric" else "setting"
            raise ValueError(f"--{flag}={name}: no such {what}{near(name, allowed)}.")
    rows, columns = _table(frame, given)
    x = given.x or ("strength" if _several(frame, "strength") else None)
    x = x or _most(frame, [given.curves], words=False)
    if x is not None and not is_number(frame[x]):
        raise ValueError(f"--x={x}: expected a column of numbers.")
    return Choice(rows, columns, given.metric, x, given.curves or _curves(frame, x))


def _table(frame: Frame, given: Choice) -> tuple[str | None, str | None]:
    """Returns the settings down and across the table."""
    rows, columns = given.rows, given.columns
    rows = rows or _most(frame, [columns], words=True) or _most(frame, [columns])
    columns = columns or _most(frame, [rows], words=True) or _most(frame, [rows])
    alone = rows == "defense_name" and columns is None and given.rows is None
    if alone and _several(frame, "strength"):  # each strength for itself
        rows = "defense"
    return rows, columns


def _curves(frame: Frame, x: str | None) -> str | None:
    """Returns the setting with a curve a value: defense_name, unless it only sets one
    defense apart from none along its strength; then a setting that would otherwise be
    averaged over."""
    if x == "defense_name" or not _several(frame, "defense_name"):
        return _most(frame, [x])
    names = frame["defense_name"][frame["defense_name"] != "none"]
    alone = x == "strength" and names.nunique() == 1
    return (_most(frame, [x, "defense_name"]) if alone else None) or "defense_name"


def is_number(column: Frame) -> bool:
    """Returns whether a column is one of numbers."""
    return types.is_numeric_dtype(column) and not types.is_bool_dtype(column)


def settings(frame: Frame) -> list[str]:
    """Returns the columns that are settings, in their order."""
    return [name for name in frame if name in SETTINGS]


def _several(frame: Frame, name: str) -> bool:
    return frame[name].nunique() > 1


def _most(
    frame: Frame, taken: list[str | None], words: bool | None = None
) -> str | None:
    """Returns the setting with most values, None where none has several.

    Args:
      taken: settings that are chosen already.
      words: whether it is one of words; False: of numbers; None: either.
    """
    names = [
        name
        for name in dict.fromkeys((*_FIRST, *settings(frame)))
        if name in frame
        and name not in (*_DRAWS, *taken, "defense")
        and _several(frame, name)
        and words in (None, not is_number(frame[name]))
        and not any(_tied(frame, name, other) for other in taken if other)
    ]
    return max(names, key=lambda name: frame[name].nunique(), default=None)


def _tied(frame: Frame, name: str, other: str) -> bool:
    """Returns whether at most half of the table would be filled, as where one decides
    both."""
    possible = frame[name].nunique(dropna=False) * frame[other].nunique(dropna=False)
    return 2 * len(frame[[name, other]].drop_duplicates()) <= possible


def follows(frame: Frame, name: str, others: list[str]) -> bool:
    """Returns whether the others decide the value of a column."""
    if not others:
        return frame[name].nunique(dropna=False) <= 1
    counts = frame.groupby(others, dropna=False)[name].nunique(dropna=False)
    return bool((counts <= 1).all())


def fixed(frame: Frame) -> str:
    """Returns `name=value` of all settings that do not vary; what is null everywhere
    does not apply."""
    found, hidden = [], ["targets"]
    if follows(frame, "defense", []):
        hidden += ["defense_name", "strength"]  # it says both
    for name in settings(frame):
        values = frame[name].dropna().unique()
        if len(values) == 1 and name not in hidden:
            where = " (or none)" if frame[name].isna().any() else ""
            found.append(f"{name}={text(values[0])}{where}")
    return ", ".join(found)


def averaged(frame: Frame, by: list[str | None]) -> str:
    """Returns what else varies, and so is averaged over, with its number of values."""
    named = [name for name in dict.fromkeys(by) if name]
    found = []
    for name in (*settings(frame), "target"):
        if name == "defense" or follows(frame, name, named):
            continue
        found.append(f"{name} ({frame[name].nunique(dropna=False)})")
    return ", ".join(found)


def text(value: Any) -> str:
    """Returns one value as it is shown."""
    if value is None or value is pandas.NA or value != value:
        return "none"
    if isinstance(value, float | np.floating):
        return str(int(value)) if value == int(value) else f"{value:g}"
    return str(value)


def shown(frame: Frame, name: str | None) -> Frame:
    """Returns a column as ordered text: none first, numbers ascending, defenses by
    strength."""
    if name is None:
        return pandas.Series(EVERY, frame.index, dtype="category")
    by = ["defense_name", "strength"] if name == "defense" else []
    by = [*by, name]
    values = frame[by].drop_duplicates().sort_values(by, na_position="first")[name]
    levels = sorted(dict.fromkeys(map(text, values)), key=lambda level: level != "none")
    kind = pandas.CategoricalDtype(levels, ordered=True)
    return frame[name].map(text).astype(kind)


def done(frame: Frame) -> Frame:
    """Returns for every row whether it has scores."""
    return frame["status"] == "done"


def check_values(frame: Frame, metric: str) -> None:
    """Raises ValueError where the metric is null throughout, or not a number."""
    if frame[metric].where(done(frame)).isna().all():
        raise ValueError(f"--metric={metric}: no row has a value of it.")
    if not is_number(frame[metric]):
        raise ValueError(f"--metric={metric}: expected a column of numbers.")


def guess(frame: Frame, metric: str) -> float | None:
    """Returns what a guess without the update scores, over all that is done; None where
    the metric is another, or the sweep is from before there was one."""
    if metric != "psnr" or "guess" not in frame:
        return None
    found = frame["guess"][done(frame)].mean()
    return None if pandas.isna(found) else float(found)


def summarise(frame: Frame, by: dict[str, Frame], metric: str) -> Frame:
    """Returns mean, std (of a sample), n, min and max of a metric, a row a cell.

    n counts the values: of rows that failed there is none, and a cell where all failed
    has n = 0.
    """
    values = frame[metric].where(done(frame))
    groups = pandas.DataFrame({**by, "value": values}).groupby(
        list(by), observed=True, dropna=False
    )
    found = groups["value"].agg(["mean", "std", "count", "min", "max"]).reset_index()
    found.columns = [*by, "mean", "std", "n", "min", "max"]
    return found


_DECIBELS = ("psnr", "psnr_min")
_FORMATS = {"psnr": ".2f", "psnr_min": ".2f", "ssim": ".3f", "label_recall": ".2f"}


def number(value: float, metric: str) -> str:
    """Returns a value of a metric with the digits that it is worth."""
    if metric in _DECIBELS and value >= metrics.EXACT:
        return "exact"
    return format(value, _FORMATS.get(metric, ".4g"))


def render(table: Frame, choice: Choice) -> str:
    """Returns `mean ± std (n)` as text, rows x columns."""
    head, lines = cells(table, choice)
    return texts.table(lines, head)


def cells(table: Frame, choice: Choice) -> tuple[tuple[str, ...], list[tuple]]:
    """Returns the head of the table, and its lines, `mean ± std (n)` in each field."""
    columns = list(table["column"].cat.categories)
    found = {
        (entry["row"], entry["column"]): _cell(entry, choice.metric)
        for entry in table.to_dict("records")
    }
    lines = [
        (row, *(found.get((row, column), "") for column in columns))
        for row in table["row"].cat.categories
    ]
    names = [name for name in (choice.rows, choice.columns) if name]
    heads = columns if choice.columns else [choice.metric]
    return (" \\ ".join(names), *heads), lines


def _cell(entry: dict[str, Any], metric: str) -> str:
    if not entry["n"]:
        return "- (0)"
    mean, std = number(entry["mean"], metric), entry["std"]
    alone = pandas.isna(std) or mean == "exact"
    return f"{mean}{'' if alone else f' ± {number(std, metric)}'} ({entry['n']})"


def failures(frame: Frame) -> str:
    """Says how many rows failed, and why; an empty text if none did."""
    failed = frame[~done(frame)]
    if failed.empty:
        return ""
    counts = failed["reason"].fillna("no reason given").value_counts()
    lines = [(texts.printable(" ".join(why.split())), n) for why, n in counts.items()]
    reasons = "; ".join(f"{line} ({n})" for line, n in lines)
    return f"failed: {len(failed)} of {len(frame)} rows, left out of means: {reasons}"

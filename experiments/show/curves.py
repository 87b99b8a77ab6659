"""Pictures of a sweep: curves, and a heat map."""

import pathlib
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # before pyplot: no screen is needed

from matplotlib import pyplot  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from experiments.show import summaries  # noqa: E402
from experiments.show.style import (  # noqa: E402
    axis_label,
    curve_label,
    literal,
    metric_label,
    styles,
)
from experiments.show.summaries import Choice, Frame  # noqa: E402
from invertjax.cli import run_folder  # noqa: E402

LOG_SPAN = 30  # of an axis, from which on it is logarithmic

Axes = Any  # of matplotlib, whose annotations leave out what it takes


def curves(
    table: Frame, choice: Choice, over: str, path: pathlib.Path, guess: float | None
) -> None:
    """Draws the metric against x: for each curve the mean, and a band of one standard
    deviation.

    Args:
      table: of `summaries.summarise` by curve and x; where x is null, a level line.
      choice: what is drawn; x is not None.
      over: what is averaged over, for the title.
      path: of the PNG.
      guess: of `summaries.guess`, a dashed line.
    """
    figure, axes = pyplot.subplots(figsize=(10, 5.5))
    table = table[np.isfinite(table["mean"])]
    known = styles(table["curve"].cat.categories)
    for curve, points in table.groupby("curve", observed=True):
        style = dict(known[str(curve)], label=_curve(curve, choice))
        line(axes, points[points["x"].notna()], style)
        _level(axes, points[points["x"].isna()], style, choice)
    level_of_guess(axes, guess)
    scale(axes, np.unique(table["x"].dropna()))
    axes.set_xlabel(_axis(choice.x), fontsize=12)
    axes.set_ylabel(metric(choice), fontsize=12)
    _title(axes, f"{metric(choice)}: mean ± one standard deviation (band)", over)
    axes.grid(which="major", alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=11, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)


def metric(choice: Choice) -> str:
    return literal(metric_label(choice.metric))


def _axis(name: str | None) -> str:
    return literal(axis_label(name or ""))


def _curve(curve: Any, choice: Choice) -> str:
    return literal(curve_label(str(curve), choice.curves))


def _title(axes: Axes, text: str, over: str) -> None:
    over = literal(f"\nover all values of {over}") if over else ""
    axes.set_title(f"{text}{over}", fontsize=11)


def scale(axes: Axes, xs: np.ndarray) -> None:
    """Makes x logarithmic where it helps; whole numbers have no ticks between them."""
    if not len(xs) or xs[0] <= 0 or xs[-1] <= LOG_SPAN * xs[0]:
        if len(xs) and np.all(xs % 1 == 0):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xscale("log")
    if len(xs) <= 12 and np.all(xs % 1 == 0) and np.all(xs[1:] >= 1.5 * xs[:-1]):
        axes.set_xticks(xs, [summaries.text(x) for x in xs])
        axes.set_xticks([], minor=True)


def line(axes: Axes, points: Frame, style: dict[str, Any]) -> None:
    """Draws means against x, and a band of one standard deviation."""
    if points.empty:
        return
    points = points.sort_values("x")
    x, mean, std = (points[name] for name in ("x", "mean", "std"))
    std = std.fillna(0)  # of a single value
    axes.plot(x, mean, linewidth=2, markersize=6, **style)
    axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.15)


def _level(axes: Axes, points: Frame, style: dict[str, Any], choice: Choice) -> None:
    """Draws what has no x, such as no defense, across the picture."""
    label = style["label"]
    if choice.curves != "defense_name":
        missing = "defense" if choice.x == "strength" else literal(str(choice.x))
        label += f", no {missing}"
    for mean in points["mean"]:
        color = style["color"]
        axes.axhline(mean, color=color, linestyle=":", linewidth=2, label=label)


def level_of_guess(axes: Axes, guess: float | None) -> None:
    """Draws what a guess without the update scores, across the picture."""
    if guess is not None:
        style = dict(color="0.4", linestyle="--", linewidth=1.5)
        axes.axhline(guess, label="a guess without the update", **style)


def heatmap(table: Frame, choice: Choice, over: str, path: pathlib.Path) -> None:
    """Draws the mean of the metric over rows x columns, with its values.

    Args:
      table: of `summaries.summarise` by row and column.
      choice: what is drawn.
      over: what is averaged over, for the title.
      path: of the PNG.
    """
    rows, columns = (list(table[name].cat.categories) for name in ("row", "column"))
    means = np.full((len(rows), len(columns)), np.nan)
    for entry in table.to_dict("records"):
        at = rows.index(entry["row"]), columns.index(entry["column"])
        means[at] = entry["mean"]
    width = min(4.5 + 0.12 * max(map(len, rows)) + 1.1 * len(columns), 40)
    figure, axes = pyplot.subplots(figsize=(width, min(2.5 + 0.6 * len(rows), 40)))
    image = axes.imshow(np.ma.masked_invalid(means), cmap="cividis", aspect="auto")
    axes.set_facecolor("0.9")
    _annotate(axes, means, table, choice)
    across, down = (list(map(literal, names)) for names in (columns, rows))
    axes.set_xticks(range(len(columns)), across if choice.columns else [""])
    axes.set_yticks(range(len(rows)), down if choice.rows else [""])
    axes.tick_params(labelsize=11, length=0)
    if max(map(len, columns)) > 8:
        pyplot.setp(axes.get_xticklabels(), rotation=35, ha="right")
    axes.set_xlabel(_axis(choice.columns), fontsize=12)
    axes.set_ylabel(_axis(choice.rows), fontsize=12)
    _title(axes, f"Mean {metric(choice)}", over)
    pad, share = 0.25 / width, 1.2 / width  # as wide in every picture
    label = metric(choice)
    figure.colorbar(image, ax=axes, label=label, pad=pad, fraction=share)
    save(figure, path)


def _annotate(axes: Axes, means: np.ndarray, table: Frame, choice: Choice) -> None:
    """Writes every mean into its field."""
    finite = means[np.isfinite(means)]
    middle = (finite.min() + finite.max()) / 2 if len(finite) else 0.0
    present = set(zip(table["row"].cat.codes, table["column"].cat.codes, strict=True))
    for row, column in np.ndindex(means.shape):
        mean = float(means[row, column])
        text = summaries.number(mean, choice.metric)
        if np.isnan(mean):
            text = "failed" if (row, column) in present else ""
        dark = np.isfinite(mean) and mean <= middle
        color = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=11)


def save(figure: Figure, path: pathlib.Path) -> None:
    with run_folder.replacing(path) as file:
        figure.savefig(file, dpi=120, bbox_inches="tight", format="png")
    pyplot.close(figure)

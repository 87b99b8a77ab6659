"""A panel a defense: their strengths have nothing in common but the word."""

import math
import pathlib
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from experiments.show import curves
from experiments.show.style import literal, styles, unit_of
from experiments.show.summaries import Choice, Frame

ACROSS = 3  # panels


def draw(
    table: Frame, choice: Choice, over: str, path: pathlib.Path, guess: float | None
) -> None:
    """Draws the metric against the strength of each defense, in a panel of its own.

    Args:
      table: of `summaries.summarise` by curve (the defense) and x (its strength).
      choice: what is drawn.
      over: what is averaged over, for the title.
      path: of the PNG.
      guess: of `summaries.guess`, a dashed line in every panel.
    """
    table = table[np.isfinite(table["mean"])]
    known = styles(table["curve"].cat.categories)
    present = [name for name in known if (table["curve"] == name).any()]
    shown = [name for name in present if name != "none"] or present
    none = table["mean"][table["curve"] == "none"]
    down = math.ceil(len(shown) / ACROSS)
    across = min(len(shown), ACROSS)
    figure, grid = pyplot.subplots(
        down, across, figsize=(1 + 3.6 * across, 0.9 + 3.2 * down), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for name, axes in zip(shown, grid.flat, strict=False):
        points = table[table["curve"] == name]
        # Without a strength, such as the sign, it is a level.
        strong = points[points["x"].notna()]
        curves.line(axes, strong, known[name])
        for level in points["mean"][points["x"].isna() & (name != "none")]:
            axes.axhline(level, color=known[name]["color"], linewidth=2)
        for level in none:
            axes.axhline(level, color="black", linestyle=":", label="no defense")
        curves.level_of_guess(axes, guess)
        curves.scale(axes, np.unique(strong["x"]))
        axes.set_title(literal(name), fontsize=12)
        axes.set_xlabel(literal(unit_of(name)), fontsize=11)
        axes.grid(which="major", alpha=0.3)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(curves.metric(choice), fontsize=12)
    _explain(figure, grid, over)
    curves.save(figure, path)


def _explain(figure: Figure, grid: Any, over: str) -> None:
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=11)
    rest = literal(f"\nover all values of {over}") if over else ""
    figure.suptitle(f"mean ± one standard deviation (band){rest}", fontsize=11)

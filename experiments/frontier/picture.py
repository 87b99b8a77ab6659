"""Accuracy against leakage: a picture a data set and model, a curve a defense."""

import pathlib
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

from experiments.frontier.table import PLACE, Frame, rounded  # noqa: E402
from experiments.show.style import literal, styles  # noqa: E402
from invertjax.cli import run_folder  # noqa: E402


def draw(table: Frame, threshold: float, path: pathlib.Path) -> None:
    """Writes frontier.png: to the left little leaks, at the top little is lost."""
    places = list(table.groupby(PLACE))
    columns = min(2, len(places))
    rows = -(-len(places) // columns)
    height = 4.4 * rows + 1.4
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(6.5 * columns, height), squeeze=False
    )
    names = sorted({*table["defense_name"]} - {"none"})
    known = styles(names)
    for (name, points), ax in zip(places, axes.flat, strict=False):
        _place(ax, name, points, threshold, known)
    for ax in axes.flat[len(places) :]:
        ax.axis("off")
    handles = {
        label: handle
        for ax in axes.flat
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    across = 3 * columns
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=across, fontsize=9
    )
    lines = -(-len(handles) // across)
    figure.tight_layout(rect=(0, (0.3 + 0.2 * lines) / height, 1, 1))
    with run_folder.replacing(path) as file:
        figure.savefig(file, dpi=130, format="png")
    pyplot.close(figure)


def _place(
    ax: Any, name: tuple, points: Frame, threshold: float, known: dict[str, dict]
) -> None:
    """Draws one data set and model."""
    ax.set_title(literal(", ".join(name)))
    ax.axvspan(threshold, 200, color="0.5", alpha=0.08)
    guess = points["psnr_guess"].max()
    ax.axvline(guess, color="0.4", linestyle=":", label="a guess without the update")
    for defense, style in known.items():
        curve = points[points["defense_name"] == defense].sort_values("strength")
        if not curve.empty:
            _curve(ax, curve, defense, style)
    _landmarks(ax, points)
    low = np.nanmin([points["psnr"].min(), guess])
    high = max(points["psnr"].max(), threshold)
    ax.set_xlim(low - 1, high + 1.5)
    ax.set_xlabel("PSNR of the strongest attack (dB); grey: recognisable")
    ax.set_ylabel("test accuracy (%)")
    ax.grid(alpha=0.3)


def _curve(ax: Any, curve: Frame, defense: str, style: dict[str, Any]) -> None:
    """Draws one defense by its strength, with epsilon where there is one."""
    ax.plot(
        curve["psnr"],
        100 * curve["accuracy"],
        label=literal(defense),
        **style,
        alpha=0.85,
    )
    for point in curve.dropna(subset="epsilon").itertuples():
        ax.annotate(
            f"ε {rounded(point.epsilon)}",
            (point.psnr, 100 * point.accuracy),
            textcoords="offset points",
            xytext=(5, 5),
            fontsize=8,
        )


def _landmarks(ax: Any, points: Frame) -> None:
    """Draws the network without a defense, and the Pareto front."""
    bare = points[points["defense"] == "none"]
    ax.plot(
        bare["psnr"], 100 * bare["accuracy"], "*k", markersize=15, label="no defense"
    )
    front = points[points["pareto"]].sort_values("psnr")
    ax.plot(
        front["psnr"],
        100 * front["accuracy"],
        color="0.6",
        linewidth=6,
        alpha=0.35,
        zorder=0,
        label="Pareto front",
    )

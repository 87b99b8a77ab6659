"""Pictures of a sweep: curves, a heat map, a contact sheet of reconstructions."""

import pathlib

import matplotlib
import numpy as np

matplotlib.use("Agg")  # before pyplot: no screen is needed

from matplotlib import pyplot  # noqa: E402

from experiments.show import summaries  # noqa: E402

METRICS = {
    "psnr": "PSNR (dB)",
    "psnr_min": "PSNR of the worst image (dB)",
    "ssim": "SSIM",
    "label_recall": "share of labels recovered",
    "loss": "objective of the attack",
    "seconds": "time of the attack (s)",
}
AXES = {
    "strength": "strength of the defense",
    "steps": "iterations of the attack",
    "batch_size": "images in a batch",
    "train_steps": "training steps of the network",
    "local_steps": "local training steps",
    "image_size": "side of an image (pixels)",
}
STRENGTHS = {  # of the last defense
    "clip": "norm",
    "clip_layers": "norm of a layer",
    "orthogonal": "times the norm",
    "top_k": "share zeroed",
    "top_k_feedback": "share zeroed",
    "sparsify": "share zeroed",
    "soteria": "share of units",
    "drop": "layers",
    "stochastic_quantise": "bits",
    "outpost": "base of the noise",
    "dp_sgd": "noise multiplier",
    "mixup": "images",
    "instahide": "images",
    "precode": "units",
    "dropout": "share left out",
    "gaussian": "standard deviation",
    "laplace": "scale",
    "prune": "share zeroed",
    "quantise": "bits",
}
# Okabe and Ito (2008): told apart with any colour vision. Black: no defense.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
LOG_SPAN = 30


def metric_label(metric: str) -> str:
    return METRICS.get(metric, metric.replace("_", " "))


def axis_label(name: str) -> str:
    return AXES.get(name, name.replace("_", " "))


def curve_label(value: str, name: str | None) -> str:
    """A curve as in the legend, with what the strength of its defense is."""
    if name != "defense_name":
        return "mean" if name is None else f"{axis_label(name)}: {value}"
    unit = STRENGTHS.get(value.rpartition("+")[2])
    return "no defense" if value == "none" else f"{value} ({unit})" if unit else value


def curves(
    table: summaries.Frame, choice: summaries.Choice, over: str, path: pathlib.Path
) -> None:
    """Metric against x, mean and a band of one standard deviation for each curve.

    Args:
      table: of `tables.summarise` by curve and x; where x is null, a dashed line.
      choice: what is drawn; x is not None.
      over: what is averaged over, for the title.
      path: of the PNG.
    """
    figure, axes = pyplot.subplots(figsize=(10, 5.5))
    table = table[np.isfinite(table["mean"])]
    known = styles(table["curve"].cat.categories)
    for curve, points in table.groupby("curve", observed=True):
        style = dict(known[curve], label=curve_label(str(curve), choice.curves))
        _line(axes, points[points["x"].notna()], style)
        _level(axes, points[points["x"].isna()], style, choice)
    _scale(axes, np.unique(table["x"].dropna()))
    axes.set_xlabel(axis_label(choice.x or ""), fontsize=12)
    axes.set_ylabel(_metric(choice), fontsize=12)
    _title(axes, f"{_metric(choice)}: mean ± one standard deviation (band)", over)
    axes.grid(which="major", alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=11, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, path)


def _metric(choice):
    return metric_label(choice.metric)


def _title(axes, text, over):
    over = f"\nover all values of {over}" if over else ""
    axes.set_title(f"{text}{over}", fontsize=11)


def _scale(axes, xs):
    """Log where it helps; a few whole numbers are ticks themselves."""
    if not len(xs) or xs[0] <= 0 or xs[-1] <= LOG_SPAN * xs[0]:
        return
    axes.set_xscale("log")
    if len(xs) <= 12 and np.all(xs % 1 == 0) and np.all(xs[1:] >= 1.5 * xs[:-1]):
        axes.set_xticks(xs, [summaries.text(x) for x in xs])
        axes.set_xticks([], minor=True)


def styles(names):
    """Colour, marker and line of each curve; black is for no defense alone."""
    others = [name for name in names if name not in ("none", summaries.EVERY)]
    found = {name: dict(color="black", marker="s") for name in names}
    for i, name in enumerate(others):
        dashes = ("-", "--", ":", "-.")[i // len(COLORS) % 4]
        found[name] = dict(
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle=dashes,
        )
    return found


def _line(axes, points, style):
    if points.empty:
        return
    points = points.sort_values("x")
    x, mean, std = (points[name] for name in ("x", "mean", "std"))
    std = std.fillna(0)  # of a single value
    axes.plot(x, mean, linewidth=2, markersize=6, **style)
    axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.15)


def _level(axes, points, style, choice):
    """What has no x, such as no defense, across the picture."""
    label = style["label"]
    if choice.curves != "defense_name":
        label += ", no defense" if choice.x == "strength" else f", no {choice.x}"
    for mean in points["mean"]:
        color = style["color"]
        axes.axhline(mean, color=color, linestyle="--", linewidth=2, label=label)


def heatmap(
    table: summaries.Frame, choice: summaries.Choice, over: str, path: pathlib.Path
) -> None:
    """The mean of the metric over rows x columns, with its values.

    Args:
      table: of `tables.summarise` by row and column.
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
    axes.set_xticks(range(len(columns)), columns if choice.columns else [""])
    axes.set_yticks(range(len(rows)), rows if choice.rows else [""])
    axes.tick_params(labelsize=11, length=0)
    if max(map(len, columns)) > 8:
        pyplot.setp(axes.get_xticklabels(), rotation=35, ha="right")
    axes.set_xlabel(axis_label(choice.columns or ""), fontsize=12)
    axes.set_ylabel(axis_label(choice.rows or ""), fontsize=12)
    _title(axes, f"Mean {_metric(choice)}", over)
    pad, share = 0.25 / width, 1.2 / width  # as wide in every picture
    label = _metric(choice)
    figure.colorbar(image, ax=axes, label=label, pad=pad, fraction=share)
    _save(figure, path)


def _annotate(axes, means, table, choice):
    finite = means[np.isfinite(means)]
    middle = (finite.min() + finite.max()) / 2 if len(finite) else 0.0
    present = set(zip(table["row"].cat.codes, table["column"].cat.codes, strict=True))
    for row, column in np.ndindex(means.shape):
        mean = means[row, column]
        text = summaries.number(mean, choice.metric)
        if np.isnan(mean):
            text = "failed" if (row, column) in present else ""
        dark = np.isfinite(mean) and mean <= middle
        color = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=11)


def _save(figure, path):
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)

"""The picture of a federation: accuracy and leakage by round."""

import io
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")  # before pyplot: no screen is needed

from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from experiments.federate.rows import NULLS  # noqa: E402

VERMILION = "#D55E00"  # of the palette of Okabe and Ito, for all eyes


def draw(rows: list[dict], title: str) -> Image.Image:
    """Draws accuracy above and the PSNR of reconstructed images below, if any were.

    Args:
      rows: of metrics.jsonl.
      title: of the picture.
    """
    audits = [row for row in rows if row.get("psnr_mean") is not None]
    panels = 1 + bool(audits)
    figure, axes = pyplot.subplots(
        panels, 1, figsize=(8, 3.2 * panels), sharex=True, squeeze=False
    )
    _accuracy(axes[0, 0], [row for row in rows if row["accuracy"] is not None])
    axes[0, 0].set_title(title, fontsize=11)
    if audits:
        _leakage(axes[1, 0], audits)
    axes[-1, 0].set_xlabel("rounds of training", fontsize=12)
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    content = io.BytesIO()
    figure.savefig(content, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return Image.open(content)


def _accuracy(axes: Any, rows: list[dict]) -> None:
    xs, ys = _points(rows, "accuracy")
    axes.plot(xs, ys, color="black", marker="o", markersize=3)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy on held-out images", fontsize=12)
    axes.grid(alpha=0.3)


def _leakage(axes: Any, audits: list[dict]) -> None:
    xs, means = _points(audits, "psnr_mean")
    _, low = _points(audits, "psnr_min")
    _, high = _points(audits, "psnr_max")
    spread = [
        [max(m - x, 0) for m, x in zip(means, low, strict=True)],
        [max(x - m, 0) for m, x in zip(means, high, strict=True)],
    ]
    style = dict(color=VERMILION, marker="o", capsize=4, linewidth=2)
    label = "reconstructed: mean, worst to best image"
    axes.errorbar(xs, means, yerr=spread, label=label, **style)
    floor = [max(row[name] for name in NULLS if name in row) for row in audits]
    axes.plot(xs, floor, color="grey", linestyle="--", label="best guess without it")
    axes.set_ylabel("PSNR (dB)", fontsize=12)
    place = dict(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    axes.legend(fontsize=10, ncols=2, **place)
    axes.grid(alpha=0.3)


def _points(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    return [row["round"] for row in rows], [row[name] for row in rows]

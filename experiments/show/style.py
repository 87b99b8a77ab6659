"""How results are called and drawn: labels, colours, markers."""

from collections.abc import Iterable
from typing import Any

from experiments.show import summaries
from invertjax.defenses.protections import PROTECTIONS

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
# Okabe and Ito (2008): told apart with any colour vision. Black: no defense.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")


def metric_label(metric: str) -> str:
    """Returns a metric in words, with its unit."""
    return METRICS.get(metric, metric.replace("_", " "))


def axis_label(name: str) -> str:
    """Returns a setting in words."""
    return AXES.get(name, name.replace("_", " "))


def curve_label(value: str, name: str | None) -> str:
    """Returns a curve as in the legend, with the unit of its defense's strength.

    Args:
      value: of the curve, such as the names of defenses with + between them.
      name: of the setting that tells curves apart; None where there is one curve.
    """
    if name != "defense_name":
        return "mean" if name is None else f"{axis_label(name)}: {value}"
    unit = unit_of(value, "")
    return "no defense" if value == "none" else f"{value} ({unit})" if unit else value


def unit_of(value: str, otherwise: str = "strength") -> str:
    """Returns in what the strength of a defense is measured.

    Args:
      value: names of defenses with + between them.
      otherwise: where it has no unit.
    """
    row = PROTECTIONS.get(value.rpartition("+")[2])  # strength is that of the last
    return (row.protection.unit if row else "") or otherwise


def literal(text: str) -> str:
    """Returns text that a figure shows as it is: between two dollars it would be read
    as mathematics."""
    return text.replace("$", r"\$")


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns colour, marker and line of each curve; black is for no defense alone."""
    names = list(names)
    others = [name for name in names if name not in ("none", summaries.EVERY)]
    found: dict[str, dict[str, Any]] = {
        name: {"color": "black", "marker": "s"} for name in names
    }
    for i, name in enumerate(others):
        found[name] = {
            "color": COLORS[i % len(COLORS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i // len(COLORS) % len(DASHES)],
        }
    return found

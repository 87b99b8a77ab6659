"""Throughput against trials at once, log-log, from a run's JSON.

python -m benchmarks.plot benchmarks/results/latest.json
"""

import json
import pathlib
import sys
from typing import Any

from benchmarks import cells
from benchmarks.field import MODULES

STYLES = {
    "engine": "-o",
    "torch": "--s",
    "torch_tuned": "--v",
    "naive": ":^",
    "breaching": "-.d",
}


def curves(flat: dict[str, Any]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(model, contestant) to (restarts, image-iterations a second), batch 1."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for key, rate in flat.items():
        for name in MODULES:
            suffix = f"_{name}_rate"
            if key.endswith(suffix):
                cell = cells.parse(key.removesuffix(suffix))
                if cell == cells.Cell(cell.model, restarts=cell.restarts):
                    found.setdefault((cell.model, name), []).append(
                        (cell.restarts, rate)
                    )
    return {curve: sorted(points) for curve, points in found.items()}


def draw(flat: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the picture. Raises ImportError where matplotlib is missing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    found = curves(flat)
    models = sorted({model for model, _ in found})
    for (model, name), points in found.items():
        color = f"C{models.index(model)}"
        label = f"{model}, {name}"
        axes.loglog(*zip(*points, strict=True), STYLES[name], color=color, label=label)
    axes.set_xlabel("trials at once (restarts, batch 1)")
    axes.set_ylabel("image-iterations a second")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    source = pathlib.Path(sys.argv[1])
    draw(json.loads(source.read_text("utf-8")), source.with_suffix(".png"))

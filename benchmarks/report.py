"""A run's flat results as text: one table a question, in Markdown."""

from collections.abc import Sequence
from typing import Any

from benchmarks.field import MODULES

Flat = dict[str, Any]


def text(flat: Flat, machine: Sequence[str]) -> str:
    """All tables; `machine`: the keys that say what it was measured on."""
    lines = [f"{key}: {flat[key]}" for key in machine if key in flat]
    parts = ["\n".join(f"* {line}" for line in lines)]
    for title, header, rows in (
        ("Image-iterations a second", _RATES, _rates(flat)),
        ("The engine", _ENGINE, _engine(flat)),
        ("Seconds to quality", _QUALITY, _quality(flat)),
        ("Weak scaling", _SCALING, _scaling(flat)),
    ):
        if rows:
            parts.append(f"## {title}\n\n{_table(header, rows)}")
    skipped = [f"* `{k}`: {v}" for k, v in flat.items() if "_skipped" in k]
    if skipped:
        parts.append("## Skipped, and why\n\n" + "\n".join(skipped))
    return "\n\n".join(parts) + "\n"


def names(flat: Flat) -> list[str]:
    """The cells of a run in which the engine was measured."""
    suffix = "_engine_rate"
    return [key.removesuffix(suffix) for key in flat if key.endswith(suffix)]


_RATES = ("cell", *MODULES, *(f"vs {name}" for name in list(MODULES)[1:]))


def _rates(flat):
    rows = []
    for cell in names(flat):
        row = [cell]
        for name in MODULES:
            rate, spread = (flat.get(f"{cell}_{name}_{k}") for k in ("rate", "spread"))
            row.append("" if rate is None else f"{rate:.4g} ±{50 * spread:.0f}%")
        for name in list(MODULES)[1:]:
            ratio = flat.get(f"{cell}_vs_{name}")
            row.append("" if ratio is None else f"{ratio:.2f}")
        rows.append(row)
    return rows


_ENGINE = ("cell", "compile s: cold", "warm", "GFLOP/s", "of peak", "peak MB", "torch")


def _engine(flat):
    rows = []
    for cell in names(flat):
        rows.append([
            cell,
            _number(flat, f"{cell}_engine_compile_seconds", ".1f"),
            _number(flat, f"{cell}_engine_compile_warm_seconds", ".1f"),
            _number(flat, f"{cell}_flops_per_second", ".1f", 1e-9),
            _number(flat, f"{cell}_peak_share", ".0%"),
            _number(flat, f"{cell}_engine_peak_bytes", ".0f", 1e-6),
            _number(flat, f"{cell}_torch_peak_bytes", ".0f", 1e-6),
        ])  # fmt: skip
    return rows


_QUALITY = ("model, contestant", "dB", "seconds", "with compiling")


def _quality(flat):
    rows = []
    for key, value in flat.items():
        who, found, level = key.partition("_seconds_to_")
        if found and level.isdigit():
            included = _number(flat, f"{key}_compile_included", ".2f")
            rows.append([who.replace("_", ", ", 1), level, f"{value:.2f}", included])
    return rows


_SCALING = ("host devices", "image-iterations a second", "efficiency")


def _scaling(flat):
    counts = [k.split("_")[1] for k in flat if k.startswith("scaling_") and "rate" in k]
    return [
        [
            count,
            _number(flat, f"scaling_{count}_rate", ".4g"),
            _number(flat, f"scaling_{count}_efficiency", ".0%"),
        ]
        for count in counts
    ]


# Of several restarts: by the cell's full name, and by a short one.
SHORT = {
    "lenet_r8_vs_breaching": "lenet_b1_r8_vs_breaching",
    "convnet5_vs_naive_jax": "convnet5_b1_r8_vs_naive",
}


def derived(flat: Flat) -> Flat:
    """What follows from rates, operations and the machine's peak; usual short names."""
    found: Flat = {}
    for cell in names(flat):
        flops = flat[f"{cell}_engine_flops"] * flat[f"{cell}_engine_rate"]
        found[f"{cell}_flops_per_second"] = flops
        found[f"{cell}_peak_share"] = flops / flat["matrix_peak_flops_per_second"]
    for short, key in SHORT.items():
        if key in flat:
            found[short] = flat[key]
    return found


def _number(flat, key, form, unit=1.0):
    return format(flat[key] * unit, form) if key in flat else ""


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

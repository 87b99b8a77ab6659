"""Weak scaling: eight targets a device, on devices that the host pretends to have.

    python -m benchmarks --cells lenet_b1 --devices 1 2 4 8

Host devices share the machine's cores: beyond those, the best is a constant rate.
"""

from typing import Any

from benchmarks.cells import Cell
from benchmarks.field import Field
from benchmarks.worker import Failed

TARGETS = 8
STEPS = 30


def measure(counts: tuple[int, ...], field: Field, rounds: int = 5) -> dict[str, Any]:
    """`scaling_{k}_rate`, image-iterations a second on k devices, and efficiencies.

    The efficiency of k devices is their rate over k times that of one device.
    """
    flat: dict[str, Any] = {}
    for count in counts:
        try:
            flat[f"scaling_{count}_rate"] = _rate(count, field, rounds)
        except Failed as error:
            flat[f"scaling_{count}_skipped"] = str(error)
    one = flat.get("scaling_1_rate")
    for count in counts:
        rate = flat.get(f"scaling_{count}_rate")
        if one and rate:
            flat[f"scaling_{count}_efficiency"] = rate / (count * one)
    return flat


def _rate(count, field, rounds):
    cell = Cell("lenet", targets=TARGETS * count)
    path = field.build(cell, steps=STEPS)
    env = {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
    with field.worker("engine", env) as worker:
        worker.ask("load", path=path)
        found = field.folder / "found.npy"
        worker.ask("attack", path=found)
        seconds = sorted(
            worker.ask("attack", path=found)["seconds"] for _ in range(rounds)
        )
    return cell.images * STEPS / seconds[rounds // 2]

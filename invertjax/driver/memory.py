"""Finds what fits on a device, from what the compiler says about a program."""

from collections.abc import Sequence
from typing import Any

import jax

from invertjax.driver.layout import Layout, gather

SHARE = 0.9  # of a device's memory, for one program


def limit(devices: Sequence[Any]) -> float:
    """Returns the bytes that a program may use on each of the devices.

    They are infinite on CPUs, which do not say: give `driver.build` a limit there. It
    is the smallest limit of all processes, since each can ask its own devices only.
    """
    mine = [d for d in devices if d.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in mine]
    limits = [SHARE * found.get("bytes_limit", float("inf")) for found in stats]
    return float(gather(min(limits, default=float("inf"))).min())


def used(compiled: Any) -> int:
    """Returns the bytes that a compiled program uses on a device, 0 if unknown."""
    found = compiled.memory_analysis()
    if found is None:
        return 0
    kinds = ("argument", "output", "temp")
    sizes = (getattr(found, f"{kind}_size_in_bytes") for kind in kinds)
    return sum(sizes) - found.alias_size_in_bytes


def smaller(
    layout: Layout, width: int, needed: float, allowed: float
) -> tuple[int, int] | None:
    """Returns the (width, at_once) to try in place of a layout that does not fit.

    It first takes fewer trials side by side, then fewer targets in a group.

    Returns:
      None if it fits.

    Raises:
      MemoryError: if not even one target fits.
    """
    if needed <= allowed:
        return None
    share = allowed / needed
    across = layout.local[1]
    fewest = across if layout.coupled else 1
    if layout.at_once > fewest:
        fewer = int(layout.at_once * share)
        return width, max(fewest, min(fewer, layout.at_once - 1))
    if width > 1:
        return max(1, min(int(width * share), width - 1)), layout.at_once
    raise MemoryError(
        f"One target with its {layout.restarts} restarts needs {needed / 2**30:.1f} "
        f"GiB on a device, where {allowed / 2**30:.1f} GiB may be used: expected fewer "
        "restarts, smaller batches or a smaller model."
    )

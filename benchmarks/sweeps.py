"""A sweep beside the same cells as separate commands.

    python -m benchmarks.sweeps [--grid experiments/presets/strengths.toml] [--sample 6]

Runs the whole grid as one command, then a random sample of its cells as one command
each (compiled programs cached, as users have them), and prints the ratio of the times.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from benchmarks.worker import ROOT
from experiments.settings import settings
from experiments.settings.settings import Settings
from experiments.sweep import grid


def flags(cell: Settings) -> list[str]:
    """Returns the command line of one cell, without the control of a single run."""
    found = []
    for name, value in (settings.flat(cell) | {"null_control": False}).items():
        if isinstance(value, tuple):
            found += [f"--{name}={text}" for text in value]
        elif isinstance(value, bool):
            found.append(f"--{'' if value else 'no'}{name}")
        elif value is not None:
            found.append(f"--{name}={value}")
    return found


def seconds(*command: str) -> float:
    """Returns how long a command takes, in a process of its own."""
    begin = time.perf_counter()
    full = [sys.executable, "-m", *command]
    subprocess.run(full, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps")
    preset = ROOT / "experiments" / "presets" / "strengths.toml"
    parser.add_argument("--grid", default=str(preset))
    parser.add_argument("--sample", type=int, default=6)
    given = parser.parse_args()
    cells = grid.read(given.grid).cells
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(folder, "programs"))
        workdir = f"--workdir={folder}/sweep"
        whole = seconds("experiments.sweep", f"--grid={given.grid}", workdir)
        chosen = random.Random(0).sample(cells, given.sample)
        alone = [
            seconds(
                "experiments.reconstruct",
                *flags(cell),
                f"--workdir={folder}/{i}",
            )
            for i, cell in enumerate(chosen)
        ]
    each, mean = whole / len(cells), sum(alone) / len(alone)
    found = {
        "cells": len(cells),
        "sweep_seconds": whole,
        "sweep_seconds_a_cell": each,
        "separate_seconds_a_cell": mean,
        "separate_seconds": alone,
        "ratio": mean / each,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

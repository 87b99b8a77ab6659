"""Workers: processes that answer requests, one JSON object a line.

A worker idles while others run, so that rounds can take turns, and has a peak memory
of its own. This file needs the standard library and NumPy only: some workers live in
environments without JAX.
"""

import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import problem_file


class Runner(NamedTuple):
    """A contestant with a problem loaded and everything compiled.

    facts: what it says of itself, e.g. `seconds_compile`, `flops` an iteration.
    check: `total_variation -> (objective [], gradient, iterates [K, B, H, W, C])`, of
      the last restart of the last target, on the first iterates from its start; the
      gradient `[B, H, W, C]` at the start, None where it cannot be had.
    run: `n -> (seconds, image_iterations)` of n iterations, from the start.
    attack: `() -> (seconds, images [N, B, H, W, C])`: all steps of all trials, and of
      every target the images of the restart with the lowest objective.
    memory: `() -> bytes`, the peak of this process on its device.
    """

    facts: dict[str, Any]
    check: Callable
    run: Callable
    attack: Callable
    memory: Callable[[], int]


def resident_peak() -> int:
    """Bytes of main memory that this process held at its peak.

    Not `ru_maxrss`, which counts the process that started this one, too.
    """
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("No VmHWM in /proc/self/status.")


def serve(load: Callable[[problem_file.Problem], Runner]) -> None:
    """Answers requests about the problems that `load` loads, until input ends."""
    import numpy as np

    runner: list[Runner] = []

    def load_file(path):
        runner[:] = [load(problem_file.load(path))]
        return runner[0].facts

    def check(path, total_variation):
        objective, gradient, iterates = runner[0].check(total_variation)
        arrays = {"objective": objective, "iterates": iterates}
        if gradient is not None:
            arrays["gradient"] = gradient
        np.savez(path, allow_pickle=False, **arrays)
        return {}

    def run(n):
        seconds, image_iterations = runner[0].run(n)
        return {"seconds": seconds, "image_iterations": image_iterations}

    def attack(path):
        seconds, images = runner[0].attack()
        np.save(path, images)
        return {"seconds": seconds}

    answer({
        "load": load_file,
        "check": check,
        "run": run,
        "attack": attack,
        "memory": lambda: {"bytes": runner[0].memory()},
    })  # fmt: skip


def answer(commands: dict[str, Callable[..., dict]]) -> None:
    """Reads `{"command": name, **arguments}` lines; writes what the command returns.

    An exception becomes `{"error": its last line}`; its traceback goes to stderr.
    """
    # Libraries print; only answers may go to the real standard output.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = commands[request.pop("command")](**request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), file=replies, flush=True)

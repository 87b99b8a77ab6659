"""The plain PyTorch loop in the layout and with the threads that are fastest."""
# pyright: reportMissingImports=false

import itertools
import os
import time

import torch

from benchmarks import protocol
from benchmarks.problem_file import Problem
from benchmarks.torch_loop import DEVICE, Loop, runner, timed


def load(problem: Problem) -> protocol.Runner:
    """Picks the fastest settings for a problem."""
    begin = time.perf_counter()
    loop, choice = _fastest(problem)
    tuned = runner(loop, choice)
    seconds = time.perf_counter() - begin
    return tuned._replace(facts={**tuned.facts, "seconds_compile": seconds})


def thread_counts() -> list[int]:
    """One, and all there are: small networks run best on one thread."""
    everything = len(os.sched_getaffinity(0)) if DEVICE.type == "cpu" else 1
    return sorted({1, everything})


def _fastest(problem):
    """The loop in its best layout, with threads set; a few iterations of each."""
    layouts = {"contiguous": torch.contiguous_format, "nhwc": torch.channels_last}
    tried = []
    for (name, layout), threads in itertools.product(layouts.items(), thread_counts()):
        torch.set_num_threads(threads)
        loop = Loop(problem, layout)
        timed(loop, 1)
        n = max(1, min(20, int(0.1 / timed(loop, 1))))
        seconds = min(timed(loop, n) for _ in range(2)) / n
        tried.append((seconds, threads, name, loop))
    _, threads, name, loop = min(tried, key=lambda entry: entry[0])
    torch.set_num_threads(threads)
    return loop, f"{name}, {threads} threads"


if __name__ == "__main__":
    protocol.serve(load)

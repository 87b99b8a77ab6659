"""What a run has finished, kept in memory and, soon after, on disk."""

import contextlib
import dataclasses
import time

import numpy as np

from experiments.audit import run as audit

FLUSH_SECONDS = 1.0  # results are on disk that soon, if chunks of steps are as short


class Elsewhere(contextlib.nullcontext):
    """Keeps nothing: the process is not the one that writes."""

    rows, add = (), None

    def complete(self):
        return False

    def start(self, settings):
        pass

    def flush_in_time(self):
        pass


class Keeper:
    """Rows and arrays of the finished targets, in memory and, soon after, on disk."""

    def __init__(self, out):
        self.out = out
        self.rows, self.batches = out.finished()
        self.kept, self.written = 0, time.monotonic()

    def complete(self):
        """Whether the folder holds a whole run."""
        return self.out.json("summary.json").get("interrupted") is False

    def start(self, settings):
        settings = dataclasses.asdict(settings)
        self.out.write_json("config.json", {"settings": settings, **audit.versions()})

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.flush()

    def add(self, row, batch):
        self.rows.append(row)
        self.batches.append(batch)
        self.flush_in_time()

    def flush_in_time(self):
        """Every second: a process may be killed while the next target takes hours."""
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        if (
            len(self.rows) > self.kept
        ):  # the arrays first: a row says that they are there
            self.out.write_arrays("reconstructions.npz", _stack(self.batches))
            self.out.write_rows(self.rows)
            self.kept, self.written = len(self.rows), time.monotonic()


def _stack(batches):
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

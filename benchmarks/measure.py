"""One cell: agreement first, then interleaved rounds."""

import contextlib
import itertools
import pathlib
import tempfile
from typing import Any, NamedTuple

import numpy as np

from benchmarks import agreement
from benchmarks.cells import Cell
from benchmarks.field import ONE_BY_ONE, Field
from benchmarks.worker import Failed, Worker

Flat = dict[str, Any]


class Settings(NamedTuple):
    """rounds: at least 5; round_seconds: about so long is a round of a contestant;
    limit: seconds that a contestant may take in a cell, else it is skipped."""

    rounds: int = 5
    round_seconds: float = 0.4
    limit: float = 60


class Bench:
    """Measures cells and remembers paces, to foresee what takes too long."""

    def __init__(self, field: Field, settings: Settings, total_variation: float = 0.03):
        self.field, self.settings = field, settings
        self.total_variation = total_variation
        self.paces: dict[tuple[str, int, str], float] = {}

    def cell(self, cell: Cell, names: tuple[str, ...], warm: bool = False) -> Flat:
        """Measures a cell.

        Args:
          cell: what.
          names: the contestants that are wanted; those that are not here, or would take
            too long, are skipped and say so.
          warm: compile the engine a second time, from the persistent cache.

        Returns:
          Flat results, `{cell}_{contestant}_{what}`.
        """
        flat: Flat = {}
        here = self._affordable(cell, names, flat)
        if "engine" not in here:
            return flat
        self.field.build(cell, total_variation=self.total_variation)
        with contextlib.ExitStack() as stack:
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            workers = self._load(cell, here, stack, cache, flat)
            self._drop_those_who_disagree(cell, workers, flat)
            rates = self._rounds(cell, workers, flat)
            for name in rates:
                flat[f"{cell.name}_{name}_peak_bytes"] = workers[name].ask("memory")[
                    "bytes"
                ]
            if warm and "engine" in workers:
                flat[f"{cell.name}_engine_compile_warm_seconds"] = self._warm(cache)
        return flat | _summary(cell, rates)

    def _affordable(self, cell, names, flat):
        here = []
        for name in names:
            reason = self.field.missing.get(name) or self._too_long(cell, name)
            if reason:
                flat[f"{cell.name}_{name}_skipped"] = reason
            else:
                here.append(name)
        return here

    def _too_long(self, cell, name):
        pace = self.paces.get((cell.model, cell.side, name))
        if pace is None:
            return ""
        images = cell.batch if name in ONE_BY_ONE else cell.images
        return self._over_limit(images / pace)

    def _over_limit(self, seconds):
        """Why not, if a round takes so many seconds; "" if it may."""
        total = seconds * (self.settings.rounds + 1)
        if total <= self.settings.limit:
            return ""
        return f"a round takes {seconds:.1f} s: {total:.0f} s in all"

    def _size(self, worker, fewest):
        """Iterations of a round, and its seconds."""

        def seconds(n):
            # The better of two: a stall of the machine must not skip a contestant.
            return min(worker.ask("run", n=n)["seconds"] for _ in range(2))

        n = max(fewest, 1)
        once = seconds(n)
        n = max(n, round(n * 0.1 / once))
        once = seconds(n) / n if n > fewest else once / n
        n = max(fewest, round(self.settings.round_seconds / once))
        return n, n * once

    def _load(self, cell, names, stack, cache, flat):
        workers: dict[str, Worker] = {}
        for name in names:
            env = _cached(cache) if name == "engine" else {}
            worker = stack.enter_context(self.field.worker(name, env))
            try:
                facts = worker.ask("load", path=self.field.problem)
            except Failed as error:
                flat[f"{cell.name}_{name}_skipped"] = str(error)
                continue
            workers[name] = worker
            for key, value in facts.items():
                key = "compile_seconds" if key == "seconds_compile" else key
                flat[f"{cell.name}_{name}_{key}"] = value
        return workers

    def _drop_those_who_disagree(self, cell, workers, flat):
        for name in [name for name in workers if name != "engine"]:
            # breaching's total variation is another one: compared without.
            weight = 0.0 if name == "breaching" else self.total_variation
            try:
                ours, theirs = (
                    self._check(workers[n], n, weight) for n in ("engine", name)
                )
                found = agreement.compare(ours, theirs)
                flat[f"{cell.name}_{name}_agree"] = found.holds
                flat[f"{cell.name}_{name}_agreement"] = str(found)
                reason = "" if found.holds else f"disagrees: {found}"
            except Failed as error:
                reason = str(error)
            if reason:
                flat[f"{cell.name}_{name}_skipped"] = reason
                del workers[name]

    def _check(self, worker, name, weight):
        path = self.field.folder / f"check_{name}.npz"
        worker.ask("check", path=path, total_variation=weight)
        return path

    def _rounds(self, cell, workers, flat):
        """Contestant to its image-iterations a second, one a round."""
        sizes = {}
        for name, worker in workers.items():
            n, seconds = self._size(worker, flat.get(f"{cell.name}_{name}_fewest", 1))
            reason = self._over_limit(seconds)
            if reason:
                flat[f"{cell.name}_{name}_skipped"] = reason
            else:
                sizes[name] = n
        rates = {name: [] for name in sizes}
        for turn in range(self.settings.rounds):
            order = itertools.islice(
                itertools.cycle(sizes),
                turn % len(sizes),
                turn % len(sizes) + len(sizes),
            )
            for name in order:
                done = workers[name].ask("run", n=sizes[name])
                rates[name].append(done["image_iterations"] / done["seconds"])
        for name, values in rates.items():
            self.paces[cell.model, cell.side, name] = float(np.median(values))
        return rates

    def _warm(self, cache):
        with self.field.worker("engine", _cached(cache)) as worker:
            return worker.ask("load", path=self.field.problem)["seconds_compile"]


def _cached(folder: str | pathlib.Path) -> dict[str, str]:
    """The environment of a process that keeps every compiled program in `folder`."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _summary(cell: Cell, rates: dict[str, list[float]]) -> Flat:
    """Medians, spreads, and the engine's ratio to each of the others.

    rates: contestant to image-iterations a second, one a round.
    """
    flat: Flat = {}
    for name, values in rates.items():
        median = float(np.median(values))
        flat[f"{cell.name}_{name}_rate"] = median
        flat[f"{cell.name}_{name}_spread"] = (max(values) - min(values)) / median
        if name != "engine" and "engine" in rates:
            ratios = np.divide(rates["engine"], values)
            flat[f"{cell.name}_vs_{name}"] = float(np.median(ratios))
            flat[f"{cell.name}_vs_{name}_lowest"] = float(ratios.min())
    return flat

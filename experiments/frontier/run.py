"""The two halves of a frontier: federations trained, and updates attacked."""

import contextlib
import json
import os
import pathlib
import queue
from collections import Counter
from collections.abc import (
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent import futures
from typing import Any, TypeVar

import jax
import numpy as np

from experiments.audit import prepare
from experiments.audit.prepare import Ready
from experiments.data import Dataset
from experiments.frontier import accuracy, rows
from experiments.frontier.accuracy import Setup
from experiments.frontier.rows import LABELS, TRAININGS
from experiments.settings import federation
from experiments.settings.data import Data
from experiments.settings.federation import Federation
from experiments.settings.settings import Settings, replaced
from experiments.sweep import folder as sweeps
from experiments.sweep import programs
from experiments.sweep import run as sweep
from experiments.sweep import table as table_
from experiments.sweep.grid import Grid
from experiments.sweep.recorder import in_words
from experiments.victims import inputs
from invertjax import metrics
from invertjax.auditing import controls, scores
from invertjax.cli import fields, run_folder
from invertjax.cli.progress import Bar
from invertjax.driver import Cache

ATTACKS = "attacks"
FEDERATION = "federation.json"
RESULTS = ("frontier.csv", "frontier.png")

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def open_(
    path: str,
    cells: Grid,
    plan: Federation,
    *,
    inputs: Mapping[str, str] | None = None,
    overwrite: bool,
) -> Generator[pathlib.Path, None, None]:
    """Makes the folder, or finds this very frontier in it; until the end of the `with`
    no other process may open it.

    Args:
      path: of the folder.
      cells: the grid, with all attackers.
      plan: the federation.
      inputs: digests of what attacks and federations read, by name.
      overwrite: whether a former frontier in the folder is removed.

    Raises:
      ValueError: if it cannot be written, holds other results, or if another process
        has it.
    """
    run_folder.check_writable(pathlib.Path(path), f"--workdir={path}")
    with run_folder.alone(path) as folder:
        _make(folder, f"--workdir={path}", cells, plan, inputs, overwrite)
        yield folder


def _make(
    folder: pathlib.Path,
    named: str,
    cells: Grid,
    plan: Federation,
    inputs: Mapping[str, str] | None,
    overwrite: bool,
) -> None:
    """Writes what the folder is of, or finds it there."""
    if overwrite:
        for name in (TRAININGS, LABELS, FEDERATION, *RESULTS):
            (folder / name).unlink(missing_ok=True)
    now = json.loads(json.dumps(federation.flat(plan)))
    file = folder / FEDERATION
    if os.path.lexists(file) and _read_json(file, named) != now:
        raise ValueError(
            f"{named} holds results of another federation, as its {FEDERATION} says: "
            "give --overwrite or another folder."
        )
    into = str(folder / ATTACKS)
    sweeps.open_(into, cells, inputs=inputs, overwrite=overwrite)
    for name in (TRAININGS, LABELS):  # refused before hours of work, and not after
        rows.read(folder, name)
    table_.Finished(folder / ATTACKS).look()
    run_folder.write(file, json.dumps(now, indent=1).encode())


def _read_json(file: pathlib.Path, named: str) -> Any:
    try:
        return fields.read(file)
    except ValueError as error:
        raise ValueError(
            f"{named}: its {file.name} cannot be read ({error}); give --overwrite or "
            "another folder."
        ) from None


class Run:
    """One frontier on its way into a folder; what is there already is not done again.

    Args:
      folder: from `open_`.
      plan: the federation.
      check: called between portions of work; it may raise a KeyboardInterrupt.
      bar: `(words, total=number) -> Bar`, as `progress.Bar`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        plan: Federation,
        check: Callable[[], None],
        bar: Callable[..., Bar],
    ):
        self.folder, self.plan = folder, plan
        self.check, self.bar = check, bar
        self.cache = Cache()

    def train(self, trainings: Sequence[list[Setup]]) -> None:
        """Writes a row a federation."""
        cache = Cache()  # the examples of all clients are let go of afterwards

        def load(data: Data, flag: str) -> Dataset:
            split = getattr(data, flag)
            key = ("examples", data.dataset, data.data_dir, data.image_size, split)
            return cache(key, lambda: inputs.load(data, flag))

        def work(setups: list[Setup]) -> list[dict[str, Any]]:
            return accuracy.accuracies(setups, self.plan, load, self._checked, cache)

        def name(setup: Setup) -> str:
            return accuracy.name_of(setup, self.plan)

        self._each(trainings, work, TRAININGS, "training", name, "federations")

    def read_labels(self, cells: Iterable[Settings]) -> None:
        """Writes a row a cell: the share of labels that updates give away, and what a
        guess scores."""

        def work(cells: list[Settings]) -> list[dict[str, Any]]:
            return [
                _labels(cell, self._read(cell), self.cache)
                for cell in self._checked(cells)
            ]

        plain = [cell for cell in cells if not cell.attack.defense_known]
        kinds = programs.by_client(plain)
        self._each(kinds, work, LABELS, "cell", table_.name_of, "labels")

    def attack(self, attacks: list[programs.Group]) -> None:
        """Writes a row a target, by `sweep.Sweep`."""
        total = sum(group.rows for group in attacks)
        with self.bar("attacks", total=total) as bar:

            def progress(count: int, psnr: float | None) -> None:
                del psnr
                bar.add(count)

            watch = sweep.Watch(progress=progress, check=self.check)
            into = self.folder / ATTACKS
            going = sweep.Sweep(into, attacks, self.cache, images=1, watch=watch)
            bar.skip(total - going.rows_left())
            going.run()

    def _read(self, cell: Settings) -> Ready:
        """Returns a cell with labels read off its updates, whatever it asks for."""
        # Counts need no order, which who simulates local steps would.
        cell = replaced(cell, labels="inferred", local_known=False)
        data, victim, attack, clients, _, run = cell
        found = prepare.read(data, victim, clients, run, cache=self.cache)
        return prepare.simulated(
            found, data, victim, clients, attack, run, cache=self.cache
        )

    def _each(
        self,
        kinds: Sequence[list[T]],
        work: Callable[[list[T]], list[dict[str, Any]]],
        file: str,
        column: str,
        name_of: Callable[[T], str],
        words: str,
    ) -> None:
        """Adds rows to a file for the kinds of which one member has no row there.

        Args:
          kinds: of trainings or cells.
          work: makes the rows of all members of a kind.
          file: of the rows, one of `rows`. column: of a row that has the name of its
            member.
          name_of: of a member.
          words: for the bar.
        """
        done = {row[column] for row in rows.read(self.folder, file)}
        left = [kind for kind in kinds if not {*map(name_of, kind)} <= done]

        def failed(one: T, error: Exception) -> dict[str, Any]:
            return {column: name_of(one), "failed": in_words(error)}

        def tried(kind: list[T]) -> list[dict[str, Any]]:
            return _or_failed(kind, work, failed)

        made = contextlib.closing(_on_devices(left, tried))
        with made as results, self.bar(words, total=len(left)) as bar:
            for new in bar.over(results):
                run_folder.append_rows(self.folder / file, new)

    def _checked(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            self.check()
            yield item


def failures(folder: pathlib.Path) -> Counter[str]:
    """Returns why federations failed, or the reading of labels, and how often."""
    every = (rows.read(folder, name) for name in (TRAININGS, LABELS))
    return Counter(row["failed"] for kept in every for row in kept if "failed" in row)


def _or_failed(
    kind: list[T],
    work: Callable[[list[T]], list[dict[str, Any]]],
    failed: Callable[[T, Exception], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Returns the rows of a kind; of each member by itself where one of them fails, and
    of that one why."""
    try:
        return work(kind)
    except OSError:  # no room, or no data: that is not one member's
        raise
    except Exception as error:
        if len(kind) == 1:
            return [failed(kind[0], error)]
    return [row for one in kind for row in _or_failed([one], work, failed)]


def _on_devices(items: Sequence[T], work: Callable[[T], R]) -> Generator[R, None, None]:
    """Yields what work makes of each item, as it comes: on CPUs with an item on every
    device at a time."""
    on_cpu = jax.default_backend() == "cpu"
    devices = jax.local_devices() if on_cpu else jax.local_devices()[:1]
    free: queue.SimpleQueue = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def one(item: T) -> R:
        device = free.get()
        try:
            with jax.default_device(device):
                return work(item)
        finally:
            free.put(device)

    with futures.ThreadPoolExecutor(len(devices)) as pool:
        running = [pool.submit(one, item) for item in items]
        try:
            for future in futures.as_completed(running):
                yield future.result()
        finally:
            for future in running:
                future.cancel()


def _labels(cell: Settings, ready: Ready, cache: Cache) -> dict[str, Any]:
    situation, public = ready.prepared.situation, ready.prepared.public
    classes = situation.target.parts.num_classes
    pairs = zip(situation.truth["label"], situation.trials["label"], strict=True)
    recall = [metrics.label_recall(truth, found, classes) for truth, found in pairs]
    guesses = controls.guesses(
        situation.truth, public, cell.run.seed, score=scores.scorer(cache)
    )
    return {
        "cell": table_.name_of(cell),
        "label_recall": float(np.mean(recall)),
        "guess": max(found["psnr_mean"] for found in guesses.values()),
    }

"""The two halves of a frontier: federations trained, and updates attacked."""

import dataclasses
import json
import pathlib
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

import jax
import numpy as np

from experiments.audit import baselines
from experiments.audit import run as audit
from experiments.frontier import accuracy
from experiments.settings.config import Config
from experiments.settings.federation import Federation
from experiments.sweep import folder as sweepdir
from experiments.sweep import programs
from experiments.sweep import run as sweeping
from experiments.sweep import table as table_
from experiments.sweep.grid import Grid
from experiments.victims import inputs
from invertjax import metrics
from invertjax.cli import run_folder

TRAININGS, LABELS, ATTACKS = "trainings.jsonl", "labels.jsonl", "attacks"
FEDERATION = "federation.json"
RESULTS = ("frontier.csv", "frontier.png")


def with_attackers(path: str, cells: list[Config]) -> list[Config]:
    """The cells of a grid, each with the attackers who know of its defense.

    Raises:
      ValueError: on a setting that a frontier varies itself.
    """
    for cell in cells:
        for name in ("defense_known", "attack"):
            if getattr(cell, name) in (True, "auto", "posterior"):
                raise ValueError(
                    f"{path}: {name} = {getattr(cell, name)}: expected none, and an "
                    "attack such as inverting_gradients: adaptive ones are added."
                )
    every = [one for cell in cells for one in (cell, *accuracy.adaptive(cell))]
    return list(dict.fromkeys(every))


def open_(
    path: str, cells: list[Config], axes: dict, plan: Federation, *, overwrite: bool
) -> pathlib.Path:
    """Makes the folder, or finds this very frontier in it.

    Raises:
      ValueError: if it cannot be written, or holds other results.
    """
    folder, named = pathlib.Path(path), f"--workdir={path}"
    run_folder.check_writable(folder, named)
    if overwrite:
        for name in (TRAININGS, LABELS, FEDERATION, *RESULTS):
            (folder / name).unlink(missing_ok=True)
    now = json.loads(json.dumps(dataclasses.asdict(plan)))
    file = folder / FEDERATION
    if file.exists() and json.loads(file.read_text("utf-8")) != now:
        raise ValueError(
            f"{named} holds results of another federation: give --overwrite or another "
            "folder."
        )
    attacks = str(folder / ATTACKS)
    sweepdir.open_(attacks, Grid(cells, axes, 0), overwrite=overwrite)
    file.write_text(json.dumps(now, indent=1), "utf-8")
    return folder


class Run:
    """One frontier on its way into a folder; what is there already is not done again.

    Args:
      folder: of the results.
      plan: the federation.
      check: called in between, to raise a KeyboardInterrupt.
      bar: `(iterable, words, total) -> iterable`, a progress bar.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        plan: Federation,
        check: Callable[[], None],
        bar: Callable,
    ):
        self.folder, self.plan = folder, plan
        self.check, self.bar = check, bar

    def train(self, trainings: list[list[Config]]) -> None:
        """A row a federation."""
        load = _once(inputs.load, _split)

        def work(cells):
            return accuracy.accuracies(cells, self.plan, load, self._checked)

        self._each(trainings, work, TRAININGS, "training", "federations")

    def read_labels(self, cells: list[Config]) -> None:
        """The share of labels that updates give away, and what a guess would score."""
        read = _once(audit.read, inputs.key)

        def work(cells):
            like, found = None, []
            for cell in self._checked(cells):
                wanted = dataclasses.replace(cell, labels="inferred")
                like = audit.prepare(wanted, read(wanted), like=like)
                found.append(_labels(cell, like))
            return found

        plain = programs.by_client([cell for cell in cells if not cell.defense_known])
        self._each(plain, work, LABELS, "cell", "labels")

    def attack(self, attacks: list[programs.Group]) -> None:
        """A row a target, by `sweeping.Sweep`."""
        total = sum(group.rows for group in attacks)
        with self.bar(None, "attacks", total) as bar:

            def progress(count, psnr):
                del psnr
                bar.update(count)

            sweep = sweeping.Sweep(
                self.folder / ATTACKS,
                attacks,
                images=1,
                progress=progress,
                check=self.check,
            )
            bar.update(total - sweep.rows_left())
            sweep.run()

    def _each(self, kinds, work, file, name, words):
        """Adds the rows `work(cells)` to a file, for cells of one kind each, if one of
        them has no row there; on CPUs a kind on every device at a time."""
        done = {row[name] for row in rows(self.folder / file)}
        left = [cells for cells in kinds if not {*map(table_.name_of, cells)} <= done]
        on_cpu = jax.default_backend() == "cpu"
        devices = jax.local_devices() if on_cpu else jax.local_devices()[:1]
        free: queue.SimpleQueue = queue.SimpleQueue()
        for device in devices:
            free.put(device)

        def one(cells):
            device = free.get()
            try:
                with jax.default_device(device):
                    return work(cells)
            finally:
                free.put(device)

        with futures.ThreadPoolExecutor(len(devices)) as pool:
            running = [pool.submit(one, cells) for cells in left]
            try:
                finished = futures.as_completed(running)
                for future in self.bar(finished, words, len(left)):
                    _append(self.folder / file, future.result())
            finally:
                for future in running:
                    future.cancel()

    def _checked(self, items: Iterable) -> Iterable:
        for item in items:
            self.check()
            yield item


def rows(file: pathlib.Path) -> list[dict[str, Any]]:
    """Those of a JSON lines file; none if it is not there. A last line that was cut off
    is left out."""
    if not file.exists():
        return []
    lines = file.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _append(file, found):
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(json.dumps(row) + "\n" for row in found))


def _labels(cell, ready):
    stage = ready.scene
    recall = [
        metrics.label_recall(truth, found, ready.num_classes)
        for truth, found in zip(
            stage.truth["label"], stage.trials["label"], strict=True
        )
    ]
    guesses = baselines.guesses(stage.truth, ready.public, cell.seed)
    return {
        "cell": table_.name_of(cell),
        "label_recall": float(np.mean(recall)),
        "guess": max(found["psnr_mean"] for found in guesses.values()),
    }


def _once(load, key):
    """`load`, which reads what has one key once, and not twice at a time."""
    found: dict[Any, Any] = {}
    lock = threading.Lock()

    def loaded(*args):
        named = key(*args)
        with lock:
            if named not in found:
                found[named] = load(*args)
            return found[named]

    return loaded


def _split(cell, flag):
    return cell.dataset, cell.data_dir, cell.image_size, getattr(cell, flag)

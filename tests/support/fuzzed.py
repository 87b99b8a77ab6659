"""Folders that real commands have left, and their readers, up to what compiles."""

import contextlib
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from PIL import Image

from experiments.federate import terminal as federate
from experiments.federate import training
from experiments.frontier import accuracy, attackers, picture, terminal
from experiments.frontier import rows as frontier_rows
from experiments.frontier import run as frontier
from experiments.reconstruct import terminal as reconstruct
from experiments.settings import federation, settings
from experiments.settings.output import Resumable
from experiments.show import terminal as show
from experiments.show.summaries import Choice
from experiments.sweep import folder as sweeps
from experiments.sweep import grid, programs
from experiments.sweep import table as table_
from experiments.victims import checkpoint, saved_update
from invertjax.auditing import run, scores
from invertjax.cli import arrays, command, leases, run_folder
from invertjax.driver import Cache
from support import cli, federations

SMALL = ("--model=mlp", "--width=4", "--image_size=8", "--dataset=faces")
ONE = (*SMALL, "--attack=analytic")
PICTURE = "_images/one.png"  # of a sweep
ROUNDS = ("--rounds=1", "--clients=3", "--participants=2", "--batch_size=1")


class Files(NamedTuple):
    """A folder, and who reads it: any file of it may be damaged."""

    folder: pathlib.Path
    read: Callable[[], Any]


# What rows say themselves, which may well be so.
OF_FAILURES = re.compile("failed, |error: .* had no trial with a finite objective")


class Told(NamedTuple):
    """What came of reading: an exit code, and what was printed to standard error, but
    for rows that say themselves that something has failed."""

    code: int
    err: str


def told(read: Callable[[], Any]) -> Told:
    """Reads as a command does."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.guarded(lambda: read() or 0)
    assert "\x1b" not in out.getvalue()
    lines = err.getvalue().splitlines(keepends=True)
    said = [line for line in lines if not OF_FAILURES.match(line)]
    return Told(code if said or code != command.FAILED else 0, "".join(said))


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Nothing waits for a disk, and figures are not drawn."""
    nothing = mock.patch.object(os, "fsync", lambda descriptor: None)
    drawn = [
        mock.patch.object(show.curves, "heatmap"),
        mock.patch.object(show.curves, "curves"),
        mock.patch.object(picture, "draw"),
        mock.patch.object(federate.federation_picture, "draw", _small_picture),
    ]
    with contextlib.ExitStack() as stack:
        for patch in (nothing, *drawn):
            stack.enter_context(patch)
        yield


def _small_picture(rows: list, title: str) -> Any:
    del rows, title
    return SimpleNamespace(save=lambda file, format: file.write(b"picture"))


def reconstruction(folder: pathlib.Path) -> Files:
    """A run of two targets, to be gone on with; its attack has been run before."""
    args = (*ONE, "--targets=2")
    kept = []
    with mock.patch.object(reconstruct, "ready", _kept(reconstruct.ready, kept)):
        assert cli.run(*args, f"--workdir={folder}") == 0
    prepared, given = kept[0], cli.given(*args)
    rows, batches = cli.rows(folder), cli.arrays(folder)
    summary = {**cli.summary(folder), "interrupted": True}
    (folder / "summary.json").write_text(json.dumps(summary))

    def complete(*_: Any, finished: Any, todo: Any, earlier: Any, **__: Any) -> Any:
        added = [{name: leaf[i] for name, leaf in batches.items()} for i in todo]
        return run.reported(
            prepared.prepared,
            SimpleNamespace(
                program=SimpleNamespace(layout="one device"),
                seconds_compile=1.0 + earlier.get("seconds_compile", 0),
                seconds_run=1.0 + earlier.get("seconds_run", 0),
                interrupted=False,
            ),
            [*finished[0], *(rows[i] for i in todo)],
            [*finished[1], *added],
            {"grey_image": {"psnr_mean": 10.0}},
        )

    def read() -> int:
        with (
            mock.patch.object(reconstruct, "ready", lambda *_, **__: prepared),
            mock.patch.object(reconstruct.run, "complete", complete),
        ):
            return reconstruct.reconstruct(given, Resumable(str(folder), resume=True))

    return Files(folder, read)


def _kept(function: Callable, kept: list) -> Callable:
    def keeping(*args: Any, **named: Any) -> Any:
        kept.append(function(*args, **named))
        return kept[-1]

    return keeping


def federated(folder: pathlib.Path) -> Files:
    """A federation of one round, attacked before and after it."""
    args = (*ONE, *ROUNDS, "--targets=1", "--audit_rounds=0")
    prepared, starts = [], []
    with (
        mock.patch.object(federate, "_prepared", _kept(federate._prepared, prepared)),
        mock.patch.object(training, "start", _kept(training.start, starts)),
    ):
        assert federations.run(*args, f"--workdir={folder}") == 0
    summary = {**cli.summary(folder), "interrupted": True}
    (folder / "summary.json").write_text(json.dumps(summary))
    chosen, plan = federations.parsed(*args)
    given = {**settings.values(chosen), "batch_size": 1}
    inputs = federate._inputs(prepared[0], chosen)

    def read() -> int:
        with (
            mock.patch.object(federate, "_prepared", lambda *_: prepared[0]),
            mock.patch.object(federate, "_inputs", lambda *_: inputs),
            mock.patch.object(training, "start", lambda _: starts[0]),
            mock.patch.object(federate.rounds, "train", lambda *_, **__: None),
        ):
            return federate.federate(given, plan, Resumable(str(folder), resume=True))

    return Files(folder, read)


PLAN = """
model = "mlp"
width = 4
image_size = 8
dataset = "faces"
attack = "inverting_gradients"
steps = 5
targets = 2
batch_size = [1, 2]
defense = ["none", {prune = [0.5, 0.9]}]
attack_lr = {log = [0.01, 0.1], n = 2}

[federation]
rounds = 2
clients = 3
participants = 2
partition = "dirichlet:0.5"
server_lr = 1.0
"""


def frontiers(folder: pathlib.Path) -> Files:
    """A frontier, and within it a sweep, of results that nobody has computed."""
    plan_file = folder.with_name("plan.toml")
    plan_file.write_text(PLAN)
    plan = federation.from_file(str(plan_file))
    found = grid.read(str(plan_file), {}, apart=("federation",))
    cells = attackers.with_adaptive(str(plan_file), found.cells)
    every = found._replace(cells=cells)

    def opened() -> Any:
        return frontier.open_(str(folder), every, plan, overwrite=False)

    with opened():
        _write_results(folder, cells, plan)

    def read() -> int:
        with opened():
            frontier.Run(folder, plan, lambda: None, mock.MagicMock())
            terminal._report(folder, cells, plan, 20.0)
        return 0

    return Files(folder, read)


def _write_results(folder: pathlib.Path, cells: list, plan: Any) -> None:
    for name, rows in {
        frontier_rows.TRAININGS: [
            {
                "training": accuracy.name_of(setup, plan),
                **dict(accuracy=0.5, dropped=0, epsilon=None, delta=None),
            }
            for setup in map(accuracy.setup_of, cells)
        ],
        frontier_rows.LABELS: [
            {"cell": table_.name_of(cell), "label_recall": 1.0, "guess": 9.0}
            for cell in cells
        ],
    }.items():
        rows[-1] = {**dict(list(rows[-1].items())[:1]), "failed": "why it failed"}
        run_folder.append_rows(folder / name, rows)
    _write_table(folder / frontier.ATTACKS, cells)


def _write_table(folder: pathlib.Path, cells: list) -> None:
    done = dict.fromkeys(scores.COLUMNS, 1)
    rows = [
        {**table_.coordinates(cell), **done, "target": target, "status": "done"}
        | {
            "psnr": 10.0 + target,
            "stopped": "budget",
            "image": PICTURE,
            "original": PICTURE,
        }
        for cell in cells
        for target in (0, 1)
    ]
    table_.write(folder, "000-00000-00000", rows)
    (folder / PICTURE).parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / PICTURE)


def swept(folder: pathlib.Path) -> Files:
    """A sweep that is gone on with."""
    found, groups = _sweep_in(folder)

    def read() -> int:
        into = sweeps.open_(str(folder), found, overwrite=False)
        frontier.sweep.Sweep(into, groups, Cache()).rows_left()
        sweeps.failed(into)
        return 0

    return Files(folder, read)


def shown(folder: pathlib.Path) -> Files:
    """A sweep whose results are looked at."""
    _sweep_in(folder)
    choice = Choice(None, None, "psnr", None, None)
    return Files(folder, lambda: show.show(folder, folder / "_figures", choice))


def _sweep_in(folder: pathlib.Path) -> tuple[grid.Grid, list[programs.Group]]:
    plan_file = folder.with_name("grid.toml")
    plan_file.write_text(PLAN.partition("[federation]")[0])
    found = grid.read(str(plan_file), {})
    sweeps.open_(str(folder), found, overwrite=False)
    _write_table(folder, found.cells)
    return found, programs.group(found.cells)


def given_update(folder: pathlib.Path) -> Files:
    """An update and its params."""
    folder.mkdir()
    cli.own_update(folder)
    return Files(folder, _update_reader(folder, "npz"))


def safe_update(folder: pathlib.Path) -> Files:
    """The same as safetensors."""
    folder.mkdir()
    cli.own_update(folder)
    for name in ("update", "params"):
        with np.load(folder / f"{name}.npz") as archive:
            arrays.save(str(folder / f"{name}.safetensors"), dict(archive))
    return Files(folder, _update_reader(folder, "safetensors"))


def _update_reader(folder: pathlib.Path, suffix: str) -> Callable[[], int]:
    args = (*cli.own_flags(folder, suffix), "--model=mlp", "--width=9")
    chosen = settings.resolve(cli.given(*args, "--attack=analytic"))
    _, victim, attack, clients, saved, run_ = chosen
    cache = Cache()

    def read() -> int:
        saved_update.read(saved, victim, clients, attack, run_, cache=cache)
        file = str(folder / f"update.{suffix}")
        for tree in arrays.forms(arrays.load(file, f"--update={file}")):
            jax.tree.leaves(tree)
        return 0

    return read


def trained(folder: pathlib.Path) -> Files:
    """A network that was trained."""
    folder.mkdir()
    net = {"params": {"w": np.ones((2, 3), "f4")}, "buffers": {"n": np.ones(1, "f4")}}
    file = str(folder / "net.safetensors")
    arrays.save(file, net, {"train_steps": "5"})
    victim: Any = SimpleNamespace(checkpoint=file, train_steps=5, model="mlp")

    def read() -> int:
        checkpoint.check(victim)
        checkpoint.load(victim, "float32", net["params"], net["buffers"])
        return 0

    return Files(folder, read)


FLAGS = """# What a flag file may hold.
--attack=inverting_gradients
--model=mlp
--batch_size=4
--targets=2
--local_batch=2
--local_steps=4
--local_lr=0.05
--defense=clip:1
--nox64
"""


def typed(folder: pathlib.Path) -> Files:
    """Files that people write: flags, a grid, the plan of a frontier."""
    folder.mkdir()
    files = {"run.flags": FLAGS, "plan.toml": PLAN}
    for name, content in files.items():
        (folder / name).write_text(content)
    flag_file, plan_file = (str(folder / name) for name in files)

    def body(values: Any) -> int:
        settings.resolve(settings.given(values))
        return 0

    def read() -> int:
        argv = ["reconstruct", f"--flagfile={flag_file}"]
        code = command.run(argv, "", settings.RECORDS, body)
        if code:
            return code
        with mock.patch.object(grid, "MOST", 200):
            plan = federation.from_file(plan_file)
            found = grid.read(plan_file, {"seed": 1}, apart=("federation",))
        cells = attackers.with_adaptive(plan_file, found.cells)
        programs.group(cells)
        accuracy.plan(cells)
        federation.flat(plan)
        return 0

    return Files(folder, read)


def leased(folder: pathlib.Path) -> Files:
    """The lease of a block that another process has left behind."""
    folder.mkdir()
    mark = {
        "host": leases._machine(),
        "pid": os.getpid(),
        "started": leases._started(os.getpid()),
        "token": "of nobody",
    }
    (folder / "block").write_text(json.dumps(mark))

    def read() -> int:
        leases.busy(folder)
        with leases.held(folder, "block"):
            return 0

    return Files(folder, read)


def damaged(files: Files, name: str, content: bytes) -> Told:
    """Reads the folder with one file damaged, and puts everything back."""
    with restored(files.folder):
        (files.folder / name).write_bytes(content)
        return told(files.read)


@contextlib.contextmanager
def restored(folder: pathlib.Path) -> Iterator[None]:
    """Puts the files of a folder back as they were."""
    before = {path: path.read_bytes() for path in _files(folder)}
    try:
        yield
    finally:
        for path in set(_files(folder)) - set(before):
            path.unlink()
        for path, kept in before.items():
            if not path.exists() or path.read_bytes() != kept:
                path.write_bytes(kept)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if path.is_file()]

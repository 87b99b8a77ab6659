"""Runs the cells of a sweep: a program a group, a lease a block, a row a target."""

import functools
import pathlib
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.audit import prepare
from experiments.audit.prepare import Ready
from experiments.settings.settings import Settings
from experiments.sweep import programs
from experiments.sweep import table as table_
from experiments.sweep.programs import Block, Group
from experiments.sweep.recorder import Job, Output, Rows
from invertjax import driver
from invertjax.auditing import programs as auditing
from invertjax.cli import leases, processes
from invertjax.driver import Cache, stopping
from invertjax.driver.cache import forget

POLL_SECONDS = 2.0  # between looks at blocks that other processes hold
KEPT = 4  # programs, about, of which functions are kept in memory
WIDE = 8  # targets of a group for each CPU device, so that their start costs little

Left = list[tuple[Settings, set[int]]]  # cells, and the targets of each in the table


class Watch(NamedTuple):
    """Who follows a sweep.

    say: told a line of what a person should know.
    stage: told what it is doing, in a few words.
    progress: told `(rows done, their mean PSNR or None)` as they come.
    check: called between chunks of steps; it may raise a KeyboardInterrupt.
    """

    say: Callable[[str], None] = lambda line: None
    stage: Callable[[str], None] = lambda words: None
    progress: Callable[[int, float | None], None] = lambda rows, psnr: None
    check: Callable[[], None] = lambda: None


SILENT = Watch()


class Targets(NamedTuple):
    """The targets of a block, one after another.

    jobs: a list of N. shared: what the program is given once. trials: pytree of
    `[N, ...]`. keys: `[N, R]`.
    """

    jobs: list[Job]
    shared: Any
    trials: Any
    keys: jax.Array

    def after(self, count: int) -> tuple[Any, jax.Array]:
        """Returns the trials and keys after the first so many."""
        return jax.tree.map(lambda leaf: leaf[count:], self.trials), self.keys[count:]

    def repeated(self, count: int) -> tuple[Any, jax.Array]:
        """Returns so many trials and keys, the first ones again where there are few."""
        rows = np.arange(count) % len(self.jobs)
        return jax.tree.map(lambda leaf: leaf[rows], self.trials), self.keys[rows]


class Sweep:
    """One process's part in a sweep.

    Args:
      folder: of the results.
      plan: the groups of the grid, the same in every process.
      cache: of compiled functions, networks and images.
      images: targets of a cell whose pictures are kept.
      watch: who follows.

    Attributes:
      begun, compiled: programs to compile so far, and those that could be compiled.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        plan: list[Group],
        cache: Cache,
        *,
        images: int = 0,
        watch: Watch = SILENT,
    ):
        self.folder, self.cache, self.watch = folder, cache, watch
        self.output = Output(folder, images, cache, watch.progress)
        self.pending = [
            (group, block)
            for number, group in enumerate(plan)
            for block in programs.blocks(number, group)
        ]
        self.finished = table_.Finished(folder)
        self.begun = self.compiled = 0
        # The most targets at once after running out of memory, by program.
        self.most: dict[Hashable, int] = {}

    def rows_left(self) -> int:
        """Returns how many targets are not in the table."""
        self.finished.look()
        left = [one for _, block in self.pending for one in self._left(block)]
        return sum(cell.data.targets - len(had) for cell, had in left)

    def run(self) -> None:
        """Returns once every block is in the table, whoever has put it there."""
        waited = False
        self.finished.look()
        while self.pending:
            before = len(self.pending)
            self.pending = [
                (group, block)
                for group, block in self.pending
                if not self._tried(group, block)
            ]
            if len(self.pending) == before:
                if not waited:
                    line = f"waiting for {before} blocks that other processes hold"
                    self.watch.say(line)
                waited = True
                self.watch.check()
                time.sleep(POLL_SECONDS)
                self.finished.look()

    def _tried(self, group: Group, block: Block) -> bool:
        """Whether the block is in the table now; not if another process has it."""
        if not self._left(block):
            return True
        with leases.held(self.folder / "_leases", block.name) as still:
            if still is None:
                return False
            self.finished.look()  # another may just have finished it
            left = self._left(block)
            if left:
                self._do(group, block, left, still)
                self.finished.look()
        return not self._left(block)

    def _left(self, block: Block) -> Left:
        """Returns the cells that lacked targets in the table at the last look."""
        done = self.finished.targets
        left = [(cell, done.get(table_.name_of(cell), set())) for cell in block.cells]
        return [(cell, had) for cell, had in left if len(had) < cell.data.targets]

    def _do(
        self, group: Group, block: Block, left: Left, still: Callable[[], bool]
    ) -> None:
        taken = sum(cell.data.targets for cell in block.cells)
        taken -= sum(cell.data.targets - len(had) for cell, had in left)
        rows = Rows(self.output, block.name, taken, still)
        jobs: list[Job] = []
        for cell, had in left:
            self.watch.check()
            try:
                ready = self._ready(cell)
            except Exception as error:  # whatever it is, it is this cell's alone
                rows.fail_cell(cell, had, error)
                continue
            targets = [i for i in range(cell.data.targets) if i not in had]
            jobs += [Job(cell, ready, target) for target in targets]
        with rows:
            if jobs:
                self._attack(group, jobs, rows)

    def _ready(self, cell: Settings) -> Ready:
        data, victim, attack, clients, _, run = cell
        found = prepare.read(data, victim, clients, run, cache=self.cache)
        return prepare.simulated(
            found, data, victim, clients, attack, run, cache=self.cache
        )

    def _attack(self, group: Group, jobs: list[Job], rows: Rows) -> None:
        """Attacks a block's targets, fewer at once where they do not fit."""
        targets = None
        while True:
            try:
                targets = targets or _joined(jobs)
                self._run(group, targets, rows)
                return self.watch.check()
            except OSError:  # no room for the table
                raise
            except Exception as error:
                memory = _is_of_memory(error)
                if memory and self._halved(group):
                    continue
                reason = f"out of memory: {error}" if memory else error
                return rows.fail(jobs[rows.scored :], reason)

    def _run(self, group: Group, targets: Targets, rows: Rows) -> None:
        """Attacks those of a block's targets that are not scored yet."""
        jobs, done = targets.jobs, rows.scored
        driver.run(
            self._program(group, targets),
            targets.shared,
            *targets.after(done),
            rule=stopping.RULES[jobs[0].cell.attack.stop or "never"],
            on_chunk=lambda progress: self.watch.check(),
            on_group=functools.partial(rows.add, jobs[done:]),
        )

    def _program(self, group: Group, targets: Targets) -> driver.Program:
        """Returns the group's program, which is compiled for its first block."""
        most = self.most.get(group.program)
        key = ("sweep", group.program, most)
        return self.cache(key, lambda: self._built(group, targets, most), most=1)

    def _built(
        self, group: Group, targets: Targets, most: int | None
    ) -> driver.Program:
        self.begun += 1
        if self.begun % KEPT == 0:
            forget()  # else the memory of a long sweep would grow with its programs
        first, number = targets.jobs[0], self.compiled + 1
        situation, plan = first.ready.prepared.situation, first.ready.prepared.plan
        named = f"{plan.row.name} on {first.cell.victim.model}, "
        self.watch.stage(f"compiling program {number}")
        self.watch.say(f"compiling program {number}: {named}{first.cell.data.dataset}")
        wide = self._wide(group)
        program = driver.build(
            auditing.maker(situation, plan),
            targets.shared,
            *targets.repeated(wide),
            width=wide,
            at_once=most,
            memory_limit=processes.memory_limit(),
        )
        self.compiled = number
        self.watch.stage(f"running program {number}")
        return program

    def _wide(self, group: Group) -> int:
        """Returns how many targets a program takes at a time."""
        on_cpu = jax.default_backend() == "cpu"
        wide = WIDE * jax.device_count() if on_cpu else programs.ROWS
        return min(wide, self.most.get(group.program, wide), group.rows)

    def _halved(self, group: Group) -> bool:
        """Whether half as many at once could still fit."""
        wide = self._wide(group)
        if wide <= 1:
            return False
        self.most[group.program] = wide // 2
        self.watch.say(f"out of memory: going on with {wide // 2} targets at once")
        return True


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _joined(jobs: list[Job]) -> Targets:
    """Returns targets of one network, or each of its own, along one axis."""
    situations = [job.ready.prepared.situation for job in jobs]
    rows = [
        jax.tree.map(lambda leaf, i=job.target: leaf[i : i + 1], situation.trials)
        for job, situation in zip(jobs, situations, strict=True)
    ]
    trials = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
    keys = jnp.stack([job.ready.keys.attack[job.target] for job in jobs])
    return Targets(jobs, situations[0].shared, trials, keys)

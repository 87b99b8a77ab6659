"""Runs the cells of a sweep: a program a group, a lease a block, a row a target."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.audit import attacking
from experiments.audit import run as audit
from experiments.sweep import leases, programs
from experiments.sweep import table as table_
from experiments.sweep.programs import Block, Group
from experiments.sweep.recorder import Job, Rows
from experiments.victims import inputs
from invertjax import driver
from invertjax.cli import processes

POLL_SECONDS = 2.0  # between looks at blocks that other processes hold
WIDE = 8  # targets of a group for each CPU device, so that their start costs little


class Sweep:
    """One process's part in a sweep.

    Args:
      folder: of the results.
      plan: the groups of the grid, the same in every process.
      images: targets a cell whose pictures are kept.
      say: told a line of what a person should know.
      stage: told what it is doing, in a few words.
      progress: told `(rows done, their mean PSNR or None)` as they come.
      check: called between chunks of steps, to raise a KeyboardInterrupt.

    Attributes:
      compiled: programs compiled so far.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        plan: list[Group],
        *,
        images: int = 0,
        say: Callable[[str], None] = lambda line: None,
        stage: Callable[[str], None] = lambda words: None,
        progress: Callable[[int, float | None], None] = lambda rows, psnr: None,
        check: Callable[[], None] = lambda: None,
    ):
        self.folder, self.images = folder, images
        self.say, self.stage = say, stage
        self.progress, self.check = progress, check
        self.pending = [
            (g, b) for i, g in enumerate(plan) for b in programs.blocks(i, g)
        ]
        self.compiled, self.current, self.program = 0, None, None
        self.likes: dict[Any, audit.Prepared] = {}  # of the current group
        self.last: audit.Prepared | None = None
        self.data: tuple[Any, Any] = None, None
        # Targets of the program, and the most after running out of memory.
        self.width, self.most = 1, None

    def rows_left(self) -> int:
        """Targets that are not in the table."""
        left = [one for _, block in self.pending for one in self._left(block)]
        return sum(cell.targets - len(had) for cell, had in left)

    def run(self) -> None:
        """Until every block is in the table, whoever has put it there."""
        waited = False
        while self.pending:
            before = len(self.pending)
            self.pending = [one for one in self.pending if not self._tried(*one)]
            if len(self.pending) == before:
                if not waited:
                    self.say(f"waiting for {before} blocks that other processes hold")
                waited = True
                self.check()
                time.sleep(POLL_SECONDS)

    def _tried(self, group, block):
        """Whether the block is in the table now; not if another process has it."""
        if not self._left(block):
            return True
        with leases.held(self.folder / "_leases", block.name) as still:
            if still is None:
                return False
            cells = self._left(block)  # another may just have finished it
            if cells:
                self._block(group, block, cells, still)
        return not self._left(block)

    def _left(self, block):
        done = table_.finished(self.folder)
        left = [(cell, done.get(table_.name_of(cell), set())) for cell in block.cells]
        return [(cell, had) for cell, had in left if len(had) < cell.targets]

    def _block(self, group: Group, block: Block, cells, still):
        if self.current is not group:
            self.current, self.likes, self.last, self.program = group, {}, None, None
            self.most = None
        taken = sum(cell.targets for cell in block.cells)
        taken -= sum(cell.targets - len(had) for cell, had in cells)
        out = Rows(self.folder, block.name, taken, still, self.images, self.progress)
        jobs: list[Job] = []
        for cell, had in cells:
            self.check()
            try:
                ready = self._prepared(cell)
            except ValueError as error:
                out.fail_cell(cell, had, str(error))
                continue
            jobs += _jobs(ready, had)
        with out:
            if jobs:
                self._attack(group, jobs, out)

    def _prepared(self, cell):
        client = programs.client(cell)
        like = self.likes.get(client)
        ready = audit.prepare(cell, self._sources(cell), like=like, near=self.last)
        self.likes.setdefault(client, ready)
        self.last = ready
        return ready

    def _sources(self, config):
        """What a cell reads; cells of the same data read it once."""
        key = inputs.key(config)
        if self.data[0] != key:
            self.data = key, audit.read(config)
        return self.data[1]

    def _attack(self, group, jobs, out):
        rows = [job.trial for job in jobs]
        trials = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        keys = jax.numpy.stack([job.keys for job in jobs])
        first = jobs[0].ready
        while True:
            try:
                program = self._program(group, first, trials, keys)
                left = jax.tree.map(lambda leaf: leaf[out.scored :], trials)
                driver.run(
                    program,
                    first.scene.shared,
                    left,
                    keys[out.scored :],
                    rule=audit.RULES[first.config.stop or "never"],
                    on_chunk=lambda progress: self.check(),
                    on_group=functools.partial(out.add, jobs[out.scored :]),
                )
                self.check()
                return
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if not self._smaller(error):
                    return out.fail(jobs[out.scored :], f"out of memory: {error}")
            except ValueError as error:  # an attack that does not fit the model
                return out.fail(jobs[out.scored :], str(error))

    def _program(self, group, first, trials, keys):
        if self.program is None:
            on_cpu = jax.default_backend() == "cpu"
            wide = WIDE * jax.device_count() if on_cpu else programs.ROWS
            wide = self.width = min(wide, self.most or wide, group.rows)
            self.stage(f"compiling program {self.compiled + 1}")
            self.say(f"compiling program {self.compiled + 1}: {_named(first)}")
            again = np.arange(wide) % len(keys)  # of a block that is smaller
            self.program = driver.build(
                attacking.maker(first.config, first.scene, first.attack),
                first.scene.shared,
                jax.tree.map(lambda leaf: leaf[again], trials),
                keys[again],
                width=wide,
                at_once=self.most,
                memory_limit=processes.memory_limit(),
            )
            self.compiled += 1
            self.stage(f"running program {self.compiled}")
        return self.program

    def _smaller(self, error):
        """Whether half as many at once could still fit."""
        known = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if not known:
            raise error
        if self.width <= 1:
            return False
        self.most, self.program = self.width // 2, None
        self.say(f"out of memory: going on with {self.most} targets at once")
        return True


def _jobs(ready, had):
    keys = audit.keys_of(ready.config, 1, ready.config.targets)
    for i in range(ready.config.targets):
        if i not in had:
            trial = jax.tree.map(lambda leaf, i=i: leaf[i], ready.scene.trials)
            yield Job(ready, i, trial, keys[i])


def _named(ready):
    config = ready.config
    return f"{ready.attack} on {config.model}, {config.dataset}"

"""The contestants that can take part here, and the workers that run them."""

import contextlib
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

from benchmarks.cells import Cell
from benchmarks.worker import Worker

MODULES = {
    "engine": "benchmarks.engine",
    "naive": "benchmarks.naive",
    "torch": "benchmarks.torch_loop",
    "torch_tuned": "benchmarks.torch_tuned",
    "breaching": "benchmarks.breaching_peer",
}
# Their trials run one after another: one trial's pace is the pace of all.
ONE_BY_ONE = frozenset({"torch", "torch_tuned", "breaching"})


class Field(NamedTuple):
    """pythons: the interpreter of each contestant that is here; missing: why others
    are not; folder: for problems, checks and logs."""

    pythons: dict[str, str]
    missing: dict[str, str]
    folder: pathlib.Path

    @property
    def problem(self) -> pathlib.Path:
        return self.folder / "problem.npz"

    def worker(self, name: str, env: dict[str, str] | None = None) -> Worker:
        """Starts a contestant; the engine with a device for every core of a CPU."""
        log = self.folder / f"{name}.log"
        devices = {"JAX_NUM_CPU_DEVICES": str(cores())} if name == "engine" else {}
        env = {**devices, **(env or {})}
        return Worker(MODULES[name], self.pythons[name], log=log, env=env)

    def build(self, cell: Cell, **settings) -> pathlib.Path:
        """Writes the problem of a cell, on the CPU, in a process of its own."""
        log, env = self.folder / "problems.log", {"JAX_PLATFORMS": "cpu"}
        with Worker("benchmarks.problems", log=log, env=env) as builder:
            builder.ask("build", path=self.problem, cell=cell, **settings)
        return self.problem


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def gather(peers: str, folder: pathlib.Path) -> Field:
    """The contestants of this environment and of the peers' interpreter."""
    pythons, missing = {"engine": sys.executable, "naive": sys.executable}, {}
    for name in ("torch", "torch_tuned", "breaching"):
        reason = _missing(peers, name.removesuffix("_tuned"))
        if reason:
            missing[name] = reason
        else:
            pythons[name] = peers
    return Field(pythons, missing, folder)


def _missing(python, package):
    """Why `python` has not `package`; "" if it has."""
    code = f"import importlib.util as u, sys; sys.exit(not u.find_spec({package!r}))"
    with contextlib.suppress(FileNotFoundError):
        found = subprocess.run([python, "-c", code], check=False).returncode == 0
        return "" if found else f"{package} is not installed for {python}"
    return f"there is no {python}"

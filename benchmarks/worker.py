"""The other end of `protocol`: starts a worker and asks it."""

import json
import os
import pathlib
import select
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A worker could not do it; the message says why, in one line."""


class Worker:
    """A worker process; a context manager that ends it.

    Args:
      module: e.g. "benchmarks.engine".
      python: the interpreter of its environment.
      log: where its standard error goes.
      env: variables on top of this process's.
    """

    def __init__(
        self,
        module: str,
        python: str = sys.executable,
        *,
        log: pathlib.Path,
        env: dict[str, str] | None = None,
    ):
        self.module = module
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [python, "-m", module],
                cwd=ROOT,
                # On a GPU several workers live side by side, and peaks must be real.
                env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
                | (env or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def ask(self, command: str, *, timeout: float = 600, **arguments) -> dict[str, Any]:
        """What the worker answers.

        Args:
          command: a name that the worker knows.
          timeout: seconds; the worker is ended if it takes longer.
          **arguments: of the command; JSON values or paths.

        Raises:
          Failed: the worker says so, has died, or took too long.
        """
        assert self.process.stdin and self.process.stdout
        request = json.dumps({"command": command, **arguments}, default=str)
        try:
            self.process.stdin.write(request.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"{self.module} has ended") from None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        if not ready:
            self.process.kill()
            raise Failed(f"{command} took more than {timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise Failed(f"{command} ended the process (status {code}; memory?)")
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.close()  # the worker's loop ends with its input
            self.process.wait(timeout=5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

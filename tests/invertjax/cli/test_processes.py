"""A process that is alone; tests/experiments/reconstruct/test_distributed.py starts
several."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from invertjax.cli import processes
from invertjax.cli.processes import ALONE, Ending, Place
from invertjax.driver import layout

ROOT = pathlib.Path(__file__).parents[3]


def raises(error: BaseException):
    """A function that does."""

    def body():
        raise error

    return body


def test_alone_a_process_agrees_with_itself():
    assert processes.is_first()
    assert processes.of_first(-3) == -3
    assert processes.together(lambda: "value") == "value"
    with pytest.raises(OSError, match="full"):
        processes.together(raises(OSError("full")))
    processes.check_same("ab12")


def test_alone_nothing_is_joined():
    processes.check(ALONE)
    processes.join(ALONE)
    assert not jax.distributed.is_initialized() and not processes.ENDING.joined


@pytest.mark.parametrize("place", [Place("h:1", 2, 1), Place(detect=True)])
def test_places_that_are_whole_are_accepted(place):
    processes.check(place)


def test_alone_a_command_ends_as_its_body_does():
    assert processes.ended(lambda: 130) == 130
    for error in (KeyboardInterrupt(), layout.Lost("gone"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            processes.ended(raises(error))


def test_one_of_several_has_the_last_word(monkeypatch):
    """Once: who comes second waits for the end of the process."""

    class Exit(BaseException):
        pass

    def leave(code):
        raise Exit(code)

    said = []
    monkeypatch.setattr(os, "write", lambda file, line: said.append((file, line)))
    monkeypatch.setattr(os, "_exit", leave)
    ending = Ending()
    ending.where = ": results are in runs"
    ending.alone()  # it is not one of several
    ending.joined = True
    with pytest.raises(Exit, match="1"):
        ending.alone()
    line = b"error: another process of this run stopped: results are in runs.\n"
    assert said == [(2, line)] and ending.once.locked()


def test_what_libraries_print_is_kept_out_of_standard_output():
    program = """
import os
from invertjax.cli import processes
processes._divert_gloo()
os.write(1, b"from C++")
os.write(2, b"error")
print("ours")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("ours\n", "error")

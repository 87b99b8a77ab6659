"""Ctrl-C and SIGTERM at any time: a line, the right code, nothing half-written."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from support import cli

from experiments import demo
from experiments.audit import prepare
from experiments.federate import __main__ as federate
from experiments.federate import training
from experiments.reconstruct import terminal
from experiments.victims import sgd
from invertjax import driver
from invertjax.auditing import observed, preparing

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = ("reconstruct", "federate", "sweep", "frontier", "show", "demo")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ARGS = ("--attack=inverting_gradients", "--steps=2", "--model=mlp", "--width=9")
ARGS += ("--image_size=8", "--targets=2")

cheap_compilation = cli.cheap_compilation  # a fixture

IMPORTING = """
import os, runpy, signal, sys

class Signalling:
    def find_spec(self, name, path, target=None):
        if name == "jax":
            os.kill(os.getpid(), int(sys.argv[1]))

sys.meta_path.insert(0, Signalling())
runpy.run_module(sys.argv[2], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_while_the_command_is_imported(command, number, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, str(int(number)), f"experiments.{command}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (128 + number, "error: interrupted.\n")
    assert not list(tmp_path.iterdir())


def signalled(monkeypatch, module, name, number, times=1):
    """Sends a signal right before a function runs, at its first calls."""
    original, left = getattr(module, name), [times]

    def then(*args, **options):
        if left[0]:
            left[0] -= 1
            signal.raise_signal(number)
        return original(*args, **options)

    monkeypatch.setattr(module, name, then)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "module, name",
    [
        (prepare, "read"),
        (observed, "simulate"),
        (preparing, "prepare"),
        (driver, "build"),
        (terminal.run_folder, "open_"),
    ],
)
def test_at_any_stage_of_a_run(module, name, number, monkeypatch, tmp_path, capsys):
    """What was begun ends; the folder can be gone on with, or is not there."""
    out = tmp_path / "run"
    handlers = [signal.getsignal(one) for one in SIGNALS]
    with monkeypatch.context() as patch:
        signalled(patch, module, name, number)
        assert cli.run(*ARGS, f"--workdir={out}") == 128 + number
    assert handlers == [signal.getsignal(one) for one in SIGNALS]
    err = capsys.readouterr().err
    assert "interrupted" in err and "Traceback" not in err and err.count("\n") == 1
    assert not list(tmp_path.glob("**/_partial*"))
    assert cli.run(*ARGS, f"--workdir={out}", "--resume") == 0
    assert [row["target"] for row in cli.rows(out)] == [0, 1]


@pytest.mark.parametrize("number", SIGNALS)
def test_while_a_victim_is_trained(number, monkeypatch, tmp_path, capsys):
    out, file = tmp_path / "run", tmp_path / "net.safetensors"
    signalled(monkeypatch, sgd, "train", number)
    args = (*ARGS, "--train_steps=3", f"--checkpoint={file}", f"--workdir={out}")
    assert cli.run(*args) == 128 + number
    assert "interrupted" in capsys.readouterr().err
    assert not file.exists() and not out.exists()


def test_before_a_federation_starts(monkeypatch, tmp_path, capsys):
    signalled(monkeypatch, training, "prepare", signal.SIGTERM)
    args = ("--rounds=1", "--model=mlp", "--width=9", "--image_size=8", "--targets=1")
    out = f"--workdir={tmp_path / 'run'}"
    assert cli.run_script(federate, *args, "--audit_rounds=", out) == 143
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("number", SIGNALS)
def test_the_demo_records_no_figures_that_were_cut_short(number, monkeypatch, tmp_path):
    def audit(*args, **options):  # which returns its best so far
        signal.raise_signal(number)

    monkeypatch.setattr(demo.invertjax, "audit", audit)
    monkeypatch.setattr(demo, "_victim", lambda key: demo.Victim(*[None] * 5))
    monkeypatch.setattr(demo, "_say_what_it_costs", lambda *of: None)
    out = tmp_path / "out"
    assert cli.run_script(demo, f"--workdir={out}") == 128 + number
    assert not list(out.glob("*"))

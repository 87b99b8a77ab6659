"""The command `invertjax`: what it is called with, and what it answers."""

import importlib
import pathlib
import subprocess
import tomllib

import pytest

import invertjax
from invertjax.cli import __main__ as command
from invertjax.cli import audit

ROOT = pathlib.Path(__file__).parents[3]


def run(*args: str) -> int:
    return command.main(["invertjax", *args])


@pytest.mark.parametrize("args", [(), ("-h",), ("--help",)])
def test_help_lists_the_commands(args, capsys):
    assert run(*args) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in command.COMMANDS)


def test_the_version_is_that_of_the_package(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"{invertjax.__version__}\n"


@pytest.mark.parametrize("first", ["audt", "--nothing", "--completion=tcsh"])
def test_what_is_no_command_is_refused_in_a_line(first, capsys):
    assert run(first) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {first}: no such") and err.count("\n") == 1


@pytest.mark.parametrize("first", ["audit", "--completion=bash"])
def test_a_missing_extra_is_named(first, monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError("No module named 'absl'", name="absl.flags")

    monkeypatch.setattr(command.importlib, "import_module", missing)
    assert run(first) == 2
    err = capsys.readouterr().err
    assert "'absl'" in err and "invertjax[cli,report]" in err and err.count("\n") == 1


@pytest.mark.parametrize("shell", command.SHELLS)
def test_completion_knows_commands_and_flags(shell, capsys):
    assert run(f"--completion={shell}") == 0
    script = capsys.readouterr().out
    assert "audit" in script and all(name in script for name in audit.flag_names())


def test_bash_completes(capsys):
    run("--completion=bash")
    script = capsys.readouterr().out
    asked = "COMP_WORDS=(invertjax audit --upd); COMP_CWORD=2; _invertjax"
    asked += '; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True
    )
    assert done.stdout == "--update\n"


def test_the_package_has_the_command():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    module, _, name = config["project"]["scripts"]["invertjax"].partition(":")
    assert getattr(importlib.import_module(module), name) is command.main

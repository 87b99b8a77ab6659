"""What a command refuses, whatever its value, is not in its help."""

import re

import pytest
from support import cli

from experiments import __main__ as experiments
from experiments.federate import __main__ as federate
from experiments.frontier import __main__ as frontier
from experiments.reconstruct import __main__ as reconstruct
from experiments.settings import settings
from experiments.sweep import __main__ as sweep

FILES = {"update", "params", "image_shape", "num_classes"}


@pytest.mark.parametrize(
    "script, without",
    [
        (reconstruct, set()),
        (sweep, {*FILES, "checkpoint", "null_control"}),
        (frontier, {*FILES, "checkpoint", "null_control", "defense_known"}),
        (federate, {*FILES, "checkpoint", "train_steps", "train_lr"}),
    ],
)
def test_flags_that_a_command_refuses_are_not_in_its_help(script, without, capsys):
    assert cli.run_script(script, "--help") == 0
    said = capsys.readouterr().out
    known = set(re.findall(r"^  --(?:\[no\])?(\w+):", said, re.MULTILINE))
    assert set(settings.RULES) - known == without
    assert "package.module:name of your own" in " ".join(said.split())
    for name in without:
        assert cli.run_script(script, f"--{name}=1") == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: --{name}=1 does not apply here: ")
        assert line.count("\n") == 1


def test_the_short_form_of_help(capsys):
    assert cli.run_script(reconstruct, "-h") == 0
    assert "--dataset" in capsys.readouterr().out


def test_the_commands_are_listed(capsys):
    experiments.main()
    said = capsys.readouterr().out
    for name in ("demo", "federate", "frontier", "reconstruct", "show", "sweep"):
        assert f"python -m experiments.{name} " in said

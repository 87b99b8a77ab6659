"""Runs `python -m experiments.federate` in this process, on a small network."""

from absl import flags

from experiments.federate import __main__ as federate
from experiments.settings import federation, settings
from experiments.settings.federation import Federation
from experiments.settings.settings import Settings
from invertjax.cli import setting
from support import cli

SMALL = ("--model=mlp", "--width=9", "--image_size=8", "--dataset=faces")
ATTACK = ("--attack=inverting_gradients", "--steps=3", "--targets=2")
ROUNDS = ("--rounds=4", "--evaluate_every=2", "--clients=6", "--participants=3")
RUN = (*SMALL, *ATTACK, *ROUNDS)


def run(*args: str) -> int:
    """The exit code; what it prints goes to stdout and stderr."""
    return cli.run_script(federate, *args)


def parsed(*args: str) -> tuple[Settings, Federation]:
    """The settings that such flags give, checked and complete."""
    values = flags.FlagValues()
    for record in federate.RECORDS:
        setting.define(record, values)
    values(["federate", *args])
    plan = federation.resolve(setting.given(Federation, values))
    return federation.of_clients(settings.given(values), plan), plan

"""Runs `python -m experiments.federate` in this process, on a small network."""

from experiments.federate import __main__ as federate
from support import cli

SMALL = ("--model=mlp", "--width=9", "--image_size=8", "--dataset=faces")
ATTACK = ("--attack=inverting_gradients", "--steps=3", "--targets=2")
ROUNDS = ("--rounds=4", "--evaluate_every=2", "--clients=6", "--participants=3")
RUN = (*SMALL, *ATTACK, *ROUNDS)


def run(*args: str) -> int:
    """The exit code; what it prints goes to stdout and stderr."""
    return cli.run_script(federate, *args)

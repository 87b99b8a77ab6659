"""What it takes to add an attack, a defense or a data set: its row, and nothing else.

A process of its own adds rows before anything has read them, as files of ours would.
"""

import json

from support import cli, processes

from experiments import data
from experiments.data import embedded

start = processes.start  # a fixture

ADD = """
import sys
import jax.numpy as jnp
import optax
from experiments.data import embedded
from invertjax.auditing import attackers
from invertjax.base import Attack, Result, Stop
from invertjax.defenses import protections
from invertjax.defenses.protection import Protection

def grey(trial):  # an attack that gives up
    def result(z):
        batch = {**trial.candidate.decode(z), "image": jnp.full_like(z["image"], 0.5)}
        return Result(
            batch, jnp.zeros(()), jnp.zeros(0), jnp.array(0), jnp.array(Stop.BUDGET)
        )
    return Attack(trial.candidate.init, lambda z, n: z, result, 0)

row = attackers.Attacker("give_up", grey, steps=None, network="lenet")
attackers.ATTACKERS["give_up"] = row
attackers.NAMES += ("give_up",)
halve = Protection(
    "halve", update=lambda key, value: optax.scale(value), unit="factor"
)
protections.PROTECTIONS["halve"] = protections.Row(halve, float, "a factor")
embedded.SOURCES["mine"] = embedded.photos

from experiments.reconstruct.__main__ import main
sys.exit(main(sys.argv))
"""


def test_rows_are_all_that_a_command_needs(start, tmp_path):
    out = tmp_path / "run"
    args = ("--attack=give_up", "--defense=halve:0.5", "--dataset=mine", "--targets=1")
    args += ("--image_size=8", "--width=2", f"--workdir={out}")
    ((code, said, error),) = processes.ended(start("-c", ADD, *args))
    assert code == 0, error
    config = json.loads((out / "config.json").read_text())["settings"]
    assert config["attack"] == "give_up" and config["model"] == "lenet"
    assert config["defense"] == ["halve:0.5"] and config["dataset"] == "mine"
    (image,) = cli.arrays(out)["image"][0]
    assert (image == 0.5).all()
    threats = cli.summary(out)["threat_model"]
    assert threats["attack"] == "give_up" and threats["defense"] == ["halve:0.5"]
    assert "give_up" in said


def test_near_misses_know_the_rows(start, tmp_path):
    ((code, _, error),) = processes.ended(start("-c", ADD, "--attack=giv_up"))
    assert code == 2 and "did you mean 'give_up'?" in error


def test_a_data_set_is_a_row(monkeypatch):
    monkeypatch.setitem(embedded.SOURCES, "mine", embedded.faces)
    found = data.load("mine", limit=3)
    assert (found.images == data.load("faces", limit=3).images).all()
    assert found.name == "mine"

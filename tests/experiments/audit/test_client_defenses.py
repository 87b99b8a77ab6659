"""Defenses of the client and of the network, as the command line has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cli

from experiments.audit import attacking, scene
from experiments.audit import run as audit
from experiments.settings import config, defense_flags, traced

cheap_compilation = cli.cheap_compilation  # a fixture

SMALL = ("--model=mlp", "--width=9", "--image_size=8", "--dataset=faces")
SMALL += ("--attack=inverting_gradients", "--targets=2", "--steps=3")
PAIR = (*SMALL, "--batch_size=2")


def _prepared(*args):
    resolved = config.resolve(cli.parse(*args))
    return audit.prepare(resolved, audit.read(resolved))


def _distance_at_the_truth(*args):
    """Of what an attacker simulates from what he observed, at the true batch."""
    ready = _prepared(*args)
    stage, name = ready.scene, ready.attack
    trial = scene.row(stage.trials, 0)
    seen = []

    def recipe(now):
        seen.append(now)
        return attacking.attacks.inverting_gradients(
            now.client, now.observed, now.candidate, steps=1
        )

    before = attacking.RECIPES[name]
    attacking.RECIPES[name] = recipe
    try:
        attacking.maker(ready.config, stage, name)(stage.shared, trial)
    finally:
        attacking.RECIPES[name] = before
    (now,) = seen
    truth = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), stage.truth)
    distance = now.adapted(attacking.distances.cosine)
    return float(distance(now.client(truth), now.observed))


@pytest.mark.parametrize(
    "defense, batch",
    [("soteria:0.8", 1), ("mixup:2", 2), ("ats:3-1-7", 2), ("dp_sgd:0,0.01", 2)],
)
def test_who_knows_of_a_defense_simulates_what_the_client_did(defense, batch):
    args = (*SMALL, f"--batch_size={batch}", f"--defense={defense}")
    assert _distance_at_the_truth(*args, "--defense_known") == pytest.approx(
        0, abs=1e-5
    )
    assert _distance_at_the_truth(*args) > 1e-3


def test_every_defense_of_the_client_runs_from_the_command_line(tmp_path):
    for defense in ("precode:4", "dropout:0.5", "instahide:2"):
        for known in ("--defense_known", "--nodefense_known"):
            workdir = tmp_path / f"{defense[:4]}{known}"
            args = (*PAIR, f"--defense={defense}", known, "--nonull_control")
            assert cli.run(*args, f"--workdir={workdir}") == 0
            summary = cli.summary(workdir)
            assert np.isfinite(summary["psnr_mean"])
            adaptive = summary["threat_model"]["defense_adaptive"]
            knows = known == "--defense_known" and defense != "instahide:2"
            assert adaptive.startswith("yes" if knows else "no")


def test_an_attacker_who_knows_looks_for_what_the_network_drew():
    for defense, name, size in (("precode:4", "noise", 4), ("dropout:0.5", "kept", 9)):
        ready = _prepared(*PAIR, f"--defense={defense}", "--defense_known")
        trial = scene.row(ready.scene.trials, 0)
        make = attacking.maker(ready.config, ready.scene, ready.attack)
        state = make(ready.scene.shared, trial).init(jax.random.key(0))
        assert state.z[name].shape == (2, size)


def test_a_bottleneck_is_part_of_the_network_for_all_attackers():
    for known in ("--defense_known", "--nodefense_known"):
        ready = _prepared(*PAIR, "--defense=precode:4", known)
        tree = scene.row(ready.scene.trials["update"], 0)
        assert {*tree} == {"model", "bottleneck"}
        attacked = traced.as_attacked(ready.config)
        assert attacked.defense == ("precode:4",)


def test_posterior_knows_the_noise_of_the_update():
    settings = config.resolve(
        cli.parse(*PAIR, "--attack=posterior", "--defense=dp_sgd:0.6,3")
    )
    assert settings.defense_known
    specs = defense_flags.specs(settings.defense)
    # z C / B
    assert defense_flags.noise_scale(specs, settings) == pytest.approx(0.6 * 3 / 2)
    assert defense_flags.noise_kind(specs) == "gaussian"
    laplace = defense_flags.specs(("laplace:0.2",))
    assert defense_flags.noise_kind(laplace) == "laplace"
    assert defense_flags.noise_scale(laplace, settings) == 0.2


@pytest.mark.parametrize(
    "args, says",
    [
        (("--attack=posterior",), "does not fit no --defense"),
        (("--attack=posterior", "--defense=prune:.5"), "--defense=prune:.5"),
        (
            ("--attack=posterior", "--defense=gaussian:1", "--nodefense_known"),
            "--nodefense_known",
        ),
        (("--defense=dp_sgd:1,0",), "clipping norm > 0"),
        (("--defense=dp_sgd:1,2,3",), "noise multiplier"),
        (("--defense=mixup:1",), "2 or more"),
        (("--defense=ats:2-99",), "transformations"),
        (("--defense=precode:0",), "units of the bottleneck"),
        (("--defense=dropout:1",), "share left out"),
        (("--defense=drop:.5",), "whole number"),
        (("--defense=soteria:1",), "share of the representation"),
    ],
)
def test_values_out_of_range(args, says, capsys):
    assert cli.run(*SMALL, *args) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


def test_two_defenses_of_the_network_are_refused(capsys):
    assert cli.run(*PAIR, "--defense=precode:4", "--defense=dropout:.5") == 2
    assert "expected one of them" in capsys.readouterr().err


def test_numbers_are_arrays_and_texts_are_part_of_the_program():
    def program(*defense):
        settings = config.resolve(config.Config(defense=defense, defense_known=True))
        return traced.without(settings)

    assert program("dp_sgd:1,2") == program("dp_sgd:.5")
    assert program("soteria:.5") == program("soteria:.8")
    assert program("mixup:2") != program("mixup:4")
    assert program("ats:3-1-7") != program("ats:43-18-18")
    settings = config.resolve(config.Config(defense=("dp_sgd:1,2", "mixup:2")))
    found = traced.of(settings)["defense"]
    np.testing.assert_array_equal(found[0], [1, 2])
    assert found[1] is None
    (private, mixed) = traced.put(settings, {"defense": (jnp.ones(2), None)}).defense
    assert mixed.value == 2 and private.value.shape == (2,)

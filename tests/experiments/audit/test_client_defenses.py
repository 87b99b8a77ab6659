"""Defenses of the client and of the network, as the command line has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cli

from experiments.settings import traced
from invertjax import distances
from invertjax.auditing import attackers, programs, situations
from invertjax.auditing.observed import take
from invertjax.cli import defense_text
from invertjax.defenses import protection

cheap_compilation = cli.cheap_compilation  # a fixture

SMALL = ("--model=mlp", "--width=9", "--image_size=8", "--dataset=faces")
SMALL += ("--attack=inverting_gradients", "--targets=2", "--steps=3")
PAIR = (*SMALL, "--batch_size=2")


def _distance_at_the_truth(*args):
    """Of what an attacker simulates from what he observed, at the true batch."""
    prepared = cli.ready(*args).prepared
    stage, row = prepared.situation, prepared.plan.row
    trial, truth = take(stage.trials, 0), take(stage.truth, 0)
    truth = jax.tree.map(jnp.asarray, truth)
    share = programs.share_of(stage, row, trial)
    target = situations.with_numbers(stage.target, trial["numbers"]["target"])
    distance = situations.adapted(target, stage.threat, distances.cosine)
    return float(distance(share(truth), trial["update"]))


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


@pytest.mark.parametrize("network", ["dropout:0.5", "precode:4"])
@pytest.mark.parametrize("told", ["mixup:2", "ats:3-1-7"])
def test_who_is_told_one_draw_does_not_know_another(network, told):
    """He has the key of the mixture, and not what the network drew from it."""
    args = (*PAIR, "--local_steps=2", "--defense_known")
    one, other = f"--defense={told}", f"--defense={network}"
    assert _distance_at_the_truth(*args, one) == pytest.approx(0, abs=1e-5)
    assert _distance_at_the_truth(*args, one, other) > 1e-3


@pytest.mark.slow  # 20 s
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
        args = (*PAIR, f"--defense={defense}", "--defense_known")
        prepared = cli.ready(*args).prepared
        stage = prepared.situation
        make = programs.maker(stage, prepared.plan)
        state = make(stage.shared, take(stage.trials, 0)).init(jax.random.key(0))
        assert state.z[name].shape == (2, size)


def test_a_bottleneck_is_part_of_the_network_for_all_attackers():
    for known in ("--defense_known", "--nodefense_known"):
        stage = cli.ready(*PAIR, "--defense=precode:4", known).prepared.situation
        assert {*stage.trials["update"]} == {"model", "bottleneck"}
        (kept,) = stage.target.protections
        assert kept.name == "precode" and kept.value == 4


def test_posterior_knows_the_noise_of_the_update():
    chosen = cli.resolved(
        attack="posterior", defense=("dp_sgd:0.6,3",), batch_size=2, model="mlp"
    )
    assert chosen.attack.defense_known
    private = protection.noise(chosen.clients.defense)
    training = protection.Training(images=2)
    # z C / B; after local steps of rate r, r sqrt(steps) times that.
    assert private.law == "gaussian"
    assert private.noise_scale(training) == pytest.approx(0.6 * 3 / 2)
    local = protection.Training(images=2, steps=4, learning_rate=0.5)
    assert private.noise_scale(local) == pytest.approx(0.5 * 2 * 0.6 * 3 / 2)
    laplace = protection.noise([defense_text.parse("laplace:0.2")])
    assert laplace.law == "laplace" and laplace.noise_scale(training) == 0.2


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
        chosen = cli.resolved(defense=defense, defense_known=True)
        return traced.without_numbers(chosen)

    assert program("dp_sgd:1,2") == program("dp_sgd:.5")
    assert program("soteria:.5") == program("soteria:.8")
    assert program("mixup:2") != program("mixup:4")
    assert program("ats:3-1-7") != program("ats:43-18-18")

    def target(*texts):
        known = tuple(map(defense_text.parse, texts))
        return situations.Target(None, (1, 8, 8, 3), protection.Parts(10), None, known)

    one, other = target("dp_sgd:1,2", "mixup:2"), target("dp_sgd:.5", "mixup:2")
    assert situations.without_numbers(one) == situations.without_numbers(other)
    found = situations.numbers(one)["protections"]
    np.testing.assert_array_equal(found[0], [1, 2])
    assert found[1] is None
    told = {"learning_rate": None, "protections": (jnp.ones(2), None)}
    private, mixed = situations.with_numbers(one, told).protections
    assert mixed.value == 2 and private.value.shape == (2,)


def test_numbers_of_an_attack_are_arrays_unless_they_choose_the_program():
    row = attackers.GAUSS_NEWTON
    assert row.split({"total_variation": 0.0}) == ({"total_variation": 0.0}, {})
    assert row.split({"total_variation": None}) == ({"total_variation": None}, {})
    assert row.split({"total_variation": 0.1}) == ({}, {"total_variation": 0.1})
    other = attackers.INVERTING_GRADIENTS
    assert other.split({"total_variation": 0.0}) == ({}, {"total_variation": 0.0})

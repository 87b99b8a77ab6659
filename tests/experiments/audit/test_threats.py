"""The threat model of a run, from its settings."""

import pytest
from support import cli

from experiments.audit import prepare
from experiments.victims.target import local
from invertjax.auditing import Target, attackers, threat_model
from invertjax.defenses.protection import Parts


def _threats(attack="inverting_gradients", **given):
    chosen = cli.resolved(attack=attack, **given)
    clients, size = chosen.clients, chosen.clients.batch_size
    target = Target(
        lambda params, batch: 0.0,
        (size, 8, 8, 3),
        Parts(10),
        local(clients),
        clients.defense,
    )
    known = prepare.known(chosen.data, chosen.victim, clients, chosen.attack)
    if chosen.saved.update is not None:  # of which prepare.given says less
        known.pop("public_data", None)
    threat = prepare.threat_of(chosen.attack)
    row = attackers.named(attack)
    return threat_model.threat_model(row, target, threat, known=known)


def test_the_threat_model_says_everything_that_was_given():
    threats = _threats()
    assert set(threats) == {
        "server",
        "attack",
        "labels",
        "batch_size",
        "update",
        "local_steps",
        "defense",
        "defense_adaptive",
        "batch_norm",
        "public_data",
        "selection",
    }
    assert all(isinstance(value, str) for value in threats.values())
    assert threats["attack"] == "inverting_gradients" and threats["labels"] == "known"


def test_what_the_attacker_is_told_of_draws_is_said():
    told = dict(defense=("mixup:2", "prune:.9"), batch_size=2)
    assert "told" not in _threats(**told)
    assert "of mixup:2: which images" in _threats(**told, defense_known=True)["told"]


LOCAL = dict(local_steps=4, batch_size=4, local_batch=2)
GIVEN = dict(update="u", params="p", model="mlp", batch_size=2, image_shape=(8, 8, 3))


@pytest.mark.parametrize(
    "settings, name, says",
    [
        (dict(), "update", "FedSGD"),
        (dict(), "local_steps", "none"),
        (dict(), "defense_adaptive", "no defense"),
        (dict(defense=("sign",)), "defense_adaptive", "does not know"),
        (dict(defense=("prune:.9",), defense_known=True), "defense_adaptive", "yes"),
        (
            dict(defense=("clip:1", "sign"), defense_known=True),
            "defense_adaptive",
            "partly: known, but there is no adaptive form of sign",
        ),
        (
            dict(defense=("gaussian:1", "sign"), defense_known=True),
            "defense_adaptive",
            "no: known, but there is no adaptive form of gaussian, sign",
        ),
        (LOCAL, "update", "FedAvg"),
        (LOCAL, "local_steps", "order known"),
        ({**LOCAL, "local_shuffle": True}, "local_steps", "order unknown"),
        ({**LOCAL, "local_known": False}, "local_steps", "treated as one gradient"),
        (
            {**LOCAL, "local_known": False, "labels": "inferred"},
            "local_steps",
            "rate serve to count labels",
        ),
        (dict(labels="inferred"), "public_data", "none"),
        (dict(labels="inferred", batch_size=2), "public_data", "--train_split=train"),
        (GIVEN, "public_data", "noise images"),
        (GIVEN, "labels", "inferred"),
        (dict(), "batch_norm", "none in the model"),
        (dict(norm="batch"), "batch_norm", "train mode: statistics of the batch"),
        (dict(norm="batch", norm_mode="eval"), "batch_norm", "eval mode"),
        (dict(model="resnet20"), "batch_norm", "train mode"),
        (
            {**GIVEN, "model": None, "loss": "m:f", "num_classes": 2},
            "batch_norm",
            "as the given loss has it",
        ),
    ],
)
def test_the_threat_model_says_what_differs(settings, name, says):
    assert says in _threats(**settings)[name]


def test_a_prior_that_is_fitted_to_public_images_is_said_to_be():
    noise = dict(defense=("gaussian:.1",))
    assert "--train_split" in _threats("posterior", **noise)["public_data"]


def test_defenses_are_listed_in_order():
    assert _threats(defense=("sign", "clip:1"))["defense"] == ["sign", "clip:1"]


@pytest.mark.parametrize("attack", ["analytic", "recursive"])
def test_closed_forms_do_not_claim_to_adapt(attack):
    told = _threats(attack, defense=("prune:.9",), defense_known=True)
    assert told["defense_adaptive"].startswith("no: known")

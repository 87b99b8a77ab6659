"""Settings of a federation: completed, read from a file, and written as texts."""

import json

import pytest

from experiments.settings import federation, partition, settings
from experiments.settings.partition import Partition
from invertjax.cli import defense_text

LOCAL = {"local_steps": 2, "local_batch": 3}


def refused(say, *args) -> str:
    with pytest.raises(ValueError) as error:
        say(*args)
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(
    "given, sizes",
    [
        ({}, (2, None)),
        ({"batch_size": 3}, (3, None)),
        (LOCAL, (6, 3)),
        ({"local_steps": 2}, (4, 2)),
        ({"local_steps": 1, "batch_size": 5}, (5, 5)),
        ({"local_epochs": 2, "batch_size": 5, "local_batch": 2}, (5, 2)),
        ({"local_epochs": 2, "local_batch": 3}, (3, 3)),
        ({"local_epochs": 2}, (2, 2)),
    ],
)
def test_a_client_uses_as_many_images_as_its_steps_take(given, sizes):
    plan = federation.resolve({})
    found = federation.of_clients(given, plan)
    assert (found.clients.batch_size, found.clients.local_batch) == sizes
    assert found.victim.networks == "shared" and found.data.targets == 4
    assert federation.of_clients(settings.values(found), plan) == found


def test_clients_that_share_no_buffers_have_no_batch_norm():
    plan = federation.resolve({})

    def norm(**given):
        return federation.of_clients(given, plan).victim.norm

    assert norm(model="resnet18") == "group"
    assert norm(model="resnet18", norm="layer") == "layer"
    assert norm(model="cnn") is None


def test_an_attack_has_fewer_steps_than_alone_and_a_closed_form_none():
    plan = federation.resolve({})
    assert federation.of_clients({}, plan).attack.steps == federation.STEPS
    assert federation.of_clients({"steps": 7}, plan).attack.steps == 7
    closed = {"attack": "analytic", "batch_size": 1}
    assert federation.of_clients(closed, plan).attack.steps is None


def test_how_many_updates_are_attacked():
    def targets(given=None, **of_plan):
        plan = federation.resolve(of_plan)
        return federation.of_clients(given or {}, plan).data.targets

    assert targets(participants=3) == 3
    assert targets({"targets": 5}) == 5
    assert targets(sees="mean") == 1
    assert "at most --participants=5" in refused(targets, {"targets": 6})


def test_the_rounds_that_are_audited():
    def rounds(**given):
        return federation.resolve(given).audit_rounds

    assert rounds(rounds=9) == (0, 9)
    assert rounds(audit_rounds=(5, 0, 5)) == (0, 5)
    assert rounds(audit_rounds=()) == ()


def test_they_are_written_as_they_were_typed():
    plan = federation.resolve(
        {"partition": Partition("dirichlet", 0.5, "dirichlet:.5")}
    )
    kept = json.loads(json.dumps(federation.flat(plan)))
    assert kept["partition"] == "dirichlet:.5" and kept["audit_rounds"] == [0, 60]
    assert federation.flat(federation.resolve({}))["partition"] == "iid"


def test_who_knows_the_noise_knows_that_of_one_client():
    known = {"defense": (defense_text.parse("gaussian:0.1"),), "attack": "posterior"}
    plan = federation.resolve({"sees": "mean"})
    assert "--sees=mean" in refused(federation.of_clients, known, plan)
    assert federation.of_clients(known, federation.resolve({})).attack.defense_known


# From a file


def read(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return federation.from_file(str(path))


def test_a_file_may_say_all_but_what_is_audited(tmp_path):
    found = read(
        tmp_path,
        '[federation]\nclients = 9\nserver_lr = 1\npartition = "by_class:2"\n[grid]\n',
    )
    partition = Partition("by_class", 2, "by_class:2")
    given = {"clients": 9, "server_lr": 1, "partition": partition}
    assert found == federation.resolve(given)
    assert read(tmp_path, "") == federation.resolve({})


@pytest.mark.parametrize(
    "line, says",
    [
        ("client = 9", "client: no such setting; did you mean 'clients'?"),
        ("clients = 0", "--clients=0: expected 1 or more"),
        ("clients = true", "clients = True: wrong type"),
        ("clients = 2.5", "clients = 2.5: wrong type"),
        ('rounds = "9"', "rounds = '9': wrong type"),
        ("partition = 3", "partition = 3: wrong type"),
        ('partition = "idd"', "--partition=idd: expected iid, dirichlet"),
        ("audit_rounds = [0]", "audit_rounds = [0]: wrong type"),
        ("clients = ", "expected a TOML file"),
    ],
)
def test_a_file_that_cannot_be(line, says, tmp_path):
    error = refused(read, tmp_path, f"[federation]\n{line}")
    assert says in error and "plan.toml" in error


@pytest.mark.parametrize(
    "given, says",
    [
        ({"rounds": 10**8}, ["--rounds=100000000", "at most 1000000", "hours"]),
        ({"clients": 10**9}, ["--clients=1000000000", "at most 1000000", "GB"]),
        (
            {"clients": 100, "partition": partition.parse("by_class:1000000")},
            ["by_class:1000000", "by_class:100000 at most", "--clients=100"],
        ),
    ],
)
def test_numbers_that_no_machine_has_room_for(given, says):
    line = refused(federation.resolve, given)
    for fragment in says:
        assert fragment in line

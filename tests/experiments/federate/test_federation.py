"""What cannot be is refused at once, in one line; the server, and epsilon."""

import json

import jax
import numpy as np
import pytest
from support import cli, federations

from experiments.federate import epsilon, training
from experiments.settings import federation
from invertjax.cli import defense_text, locks
from invertjax.defenses import accounting

cheap_compilation = cli.cheap_compilation  # a fixture


@pytest.mark.parametrize(
    "args, says",
    [
        (["--clients=0"], ["--clients=0", "1 or more"]),
        (["--participants=0"], ["--participants=0", "1 or more"]),
        (["--participants=31"], ["--participants=31", "at most --clients=30"]),
        (["--rounds=0"], ["--rounds=0", "1 or more"]),
        (["--evaluate_every=0"], ["--evaluate_every=0", "1 or more"]),
        (["--rounds=many"], ["rounds", "many"]),
        (["--server=fedavgn"], ["--server=fedavgn", "did you mean", "fedadam"]),
        (["--sees=clients"], ["--sees=clients", "'client'", "mean"]),
        (["--on_nan=dorp"], ["--on_nan=dorp", "'drop'", "stop"]),
        (["--server_lr=0"], ["--server_lr=0.0", "positive"]),
        (["--server_lr=nan"], ["--server_lr=nan", "positive"]),
        (["--partition=idd"], ["--partition=idd", "dirichlet:CONCENTRATION"]),
        (["--partition=iid:1"], ["--partition=iid:1", "iid"]),
        (["--partition=dirichlet"], ["--partition=dirichlet", "above 0"]),
        (["--partition=dirichlet:-1"], ["--partition=dirichlet:-1", "above 0"]),
        (["--partition=dirichlet:inf"], ["--partition=dirichlet:inf", "above 0"]),
        (["--partition=by_class:1.5"], ["--partition=by_class:1.5", "above 0"]),
        (["--audit_rounds=0,x"], ["--audit_rounds=0,x", "whole numbers"]),
        (["--audit_rounds=61"], ["--audit_rounds=61", "0 to --rounds=60"]),
        (["--audit_rounds=-1"], ["--audit_rounds=-1", "0 to --rounds"]),
        # settings that a federation has not
        (["--train_steps=5"], ["--train_steps=5", "the federation trains"]),
        (["--checkpoint=c.safetensors"], ["--checkpoint=c", "the federation trains"]),
        (["--update=u.npz"], ["--update=u.npz", "their own"]),
        (["--networks=per_target"], ["--networks=per_target", "one network"]),
        (["--norm=batch", "--model=cnn"], ["--norm=batch", "no buffers"]),
        (["--local_steps=2", "--batch_size=3"], ["--batch_size=3", "expected 6"]),
        (["--local_batch=2"], ["--local_batch=2", "--local_steps"]),
        (["--batch_size=0"], ["--batch_size=0", "1 or more"]),
        (["--targets=0"], ["--targets=0", "1 or more"]),
        (["--attack=idgl"], ["--attack=idgl", "'idlg'"]),
        (["--attack=analytic", "--steps=3"], ["--steps=3", "iterative"]),
        # what does not go together
        (["--targets=6"], ["--targets=6", "at most --participants=5"]),
        (["--targets=2", "--sees=mean"], ["--targets=2", "1 with --sees=mean"]),
        (
            ["--attack=analytic", "--batch_size=1", "--sees=mean", "--model=mlp"],
            ["--sees=mean", "--batch_size=5", "--attack=analytic", "expected 1"],
        ),
        (
            ["--defense=ats:3-1-7", "--defense_known"],
            ["--defense_known", "--defense=ats", "told"],
        ),
        (
            ["--defense=prune:0.5", "--defense_known", "--sees=mean"],
            ["--defense_known", "--defense=prune", "--sees=mean"],
        ),
        (
            ["--defense=gaussian:0.5", "--attack=posterior", "--sees=mean"],
            ["--attack=posterior", "--sees=mean"],
        ),
        # data
        (["--dataset=faecs"], ["--dataset=faecs", "faces"]),
        (["--split=tset"], ["--split=tset", "test"]),
        (["--clients=999", "--participants=151"], ["at most 150", "--partition=iid"]),
        # differential privacy
        (["--defense=dp_sgd:-1"], ["--defense=dp_sgd:-1", ">= 0"]),
        (["--dp_delta=0", "--defense=dp_sgd:1"], ["--dp_delta=0.0", "positive"]),
        (["--dp_delta=1", "--defense=dp_sgd:1"], ["--dp_delta=1.0", "less than 1"]),
        (["--dp_delta=1e-6"], ["--dp_delta=1e-06", "without --defense=dp_sgd"]),
        (
            ["--defense=dp_sgd:1", "--batch_size=6"],
            ["--defense=dp_sgd:1", "5 examples for batches of 6", "--clients"],
        ),
        (
            ["--defense=dp_sgd:1", "--defense=mixup:2"],
            ["--defense=dp_sgd", "--defense=mixup", "no account of both"],
        ),
        (
            ["--defense=dp_sgd:1", "--local_epochs=2"],
            ["--local_epochs=2", "--defense=dp_sgd:1", "--local_steps"],
        ),
        (
            ["--defense=dp_sgd:1", "--local_steps=2", "--local_shuffle"],
            ["--local_shuffle", "--defense=dp_sgd:1", "--nolocal_shuffle"],
        ),
    ],
)
def test_what_cannot_be_is_refused(args, says, monkeypatch, tmp_path, capsys):
    def traced(*args):
        raise AssertionError("traced")

    monkeypatch.setattr(jax, "jit", traced)
    monkeypatch.setattr(jax, "eval_shape", traced)
    assert federations.run(*args, f"--workdir={tmp_path / 'run'}") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and not any(tmp_path.iterdir())
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    for fragment in says:
        assert fragment in printed.err


def test_folders_that_cannot_take_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert federations.run(f"--workdir={tmp_path / 'file'}") == 2
    assert "is a file" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    args = f"--workdir={tmp_path}", "--resume"
    assert federations.run(*args[:1]) == 2 and "--resume" in capsys.readouterr().err
    assert federations.run(*args, "--overwrite") == 2
    assert "exclude each other" in capsys.readouterr().err
    assert federations.run(*args) == 2 and "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("server, rate", [("fedavg", 1.0), ("fedadam", 0.01)])
@pytest.mark.parametrize("given", [None, 0.3])
def test_the_servers_first_step(server, rate, given):
    """Adam's first step is its rate, but for the tau of 1e-3."""
    plan = federation.resolve({"server": server, "server_lr": given})
    made = training.server(plan, local_steps=1)
    update = np.full(2, 10.0)
    step, _ = made.update(update, made.init(update), update)
    size = (rate if given is None else given) * (10 if server == "fedavg" else 1)
    np.testing.assert_allclose(step, -size, rtol=2e-4)
    if server == "fedavg" and given is None:  # gradients
        step, _ = training.server(plan, 0).update(update, made.init(update), update)
        np.testing.assert_allclose(step, -0.5)


def _defended(*texts, **given):
    """Settings of clients with such defenses, and of the run."""
    defense = tuple(map(defense_text.parse, texts))
    plan = federation.resolve({"clients": 3, "participants": 2})
    found = federation.of_clients({"defense": defense, **given}, plan)
    return found.clients, found.run


def test_epsilon_is_that_of_the_client_with_most_to_lose():
    """Ten rounds of two of five clients; two local steps of batches of two."""
    clients, run = _defended("dp_sgd:1.5", "clip:1", local_steps=2, local_batch=2)
    sizes = [9, 4, 0, 17, 6, 5]
    partition = [np.arange(size) for size in sizes]
    epsilon.check(clients, partition)
    plan = federation.resolve({"participants": 2})
    spent = epsilon.epsilon(clients, run, partition, plan, 10)
    draws = [
        set(epsilon.federated.clients_of(r, sizes, 2, 0).tolist()) for r in range(10)
    ]
    most = max(sum(client in ids for ids in draws) for client in range(6))
    assert 4 < most < 10
    expected = accounting.epsilon(
        1.5, steps=2 * most, delta=1e-5, batch_size=2, examples=4
    )
    assert spent == {"epsilon": expected, "delta": 1e-5} and 0 < expected < 100
    assert epsilon.epsilon(clients, run, partition, plan, 0)["epsilon"] == 0
    silent = _defended("dp_sgd:0")
    assert epsilon.epsilon(*silent, partition, plan, 1)["epsilon"] is None
    assert epsilon.epsilon(*_defended(), partition, plan, 1) == {}


def test_the_update_of_an_audited_round_is_counted_where_it_says_so():
    clients, run = _defended("dp_sgd:1.5")
    plan = federation.resolve({"participants": 3, "dp_delta": 1e-3})
    partition = [np.arange(20)] * 3

    def after(rounds, **options):
        return epsilon.epsilon(clients, run, partition, plan, rounds, **options)

    assert "epsilon_seen" not in after(1)
    first, second = after(0, audited=True), after(1, audited=True)
    assert first["epsilon"] == 0 < first["epsilon_seen"] == second["epsilon"]
    assert second["epsilon_seen"] == after(2)["epsilon"] > second["epsilon"]
    expected = accounting.epsilon(1.5, steps=1, delta=1e-3, batch_size=2, examples=20)
    assert second["epsilon"] == expected and second["delta"] == 1e-3


def test_a_delta_that_means_nothing_is_warned_of():
    """From 1 / n on, n of all examples, whose owners it is promised to."""
    private, bare = _defended("dp_sgd:1")[0], _defended()[0]
    partition = [np.arange(60), np.arange(20)]

    def warned(delta, clients=private):
        plan = federation.resolve({"dp_delta": delta})
        return epsilon.warning(clients, plan, partition)

    for delta in (1 / 80, 0.5):
        said = warned(delta)
        assert f"--dp_delta={delta:g}" in said and "80 examples" in said
        assert "1 / 80" in said and "--dp_delta=0.001" in said
        assert warned(delta, bare) is None
    assert warned(0.99 / 80) is None and warned(None) is None


def test_epsilon_is_in_rows_and_summary(tmp_path, capsys):
    args = (*federations.SMALL, "--rounds=2", "--evaluate_every=1", "--audit_rounds=2")
    args += (*federations.ATTACK, "--dp_delta=0.01", "--nonull_control")
    args += ("--defense=dp_sgd:2,0.1", "--clients=3", "--participants=3")
    assert federations.run(*args, f"--workdir={tmp_path}") == 0
    rows = cli.rows(tmp_path)
    spent = [row["epsilon"] for row in rows]
    assert spent[0] == 0 < spent[1] < spent[2]
    assert spent[2] == pytest.approx(
        accounting.epsilon(2.0, steps=2, delta=0.01, batch_size=2, examples=50)
    )
    seen = rows[2]["epsilon_seen"]
    assert seen == pytest.approx(
        accounting.epsilon(2.0, steps=3, delta=0.01, batch_size=2, examples=50)
    )
    assert "epsilon_seen" not in rows[1]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["epsilon"] == spent[2] and summary["delta"] == 0.01
    assert summary["audits"][0]["epsilon_seen"] == seen
    said = capsys.readouterr().out
    assert f"epsilon {spent[2]:.3g} at delta 0.01, for the 2 rounds of training" in said
    assert f"this update counted: epsilon {seen:.3g} at delta 0.01" in said
    assert "Warning: --dp_delta=0.01 allows that one of the 150 examples" in said


def test_a_folder_in_which_another_process_is_at_work(tmp_path, capsys):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "state.npz").write_text("")
    with locks.alone(workdir):
        assert federations.run(f"--workdir={workdir}", "--overwrite") == 2
    line = capsys.readouterr().err
    assert f"--workdir={workdir}: another process is at work" in line
    assert line.count("\n") == 1 and (workdir / "state.npz").exists()

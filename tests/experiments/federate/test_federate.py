"""`python -m experiments.federate` from end to end, on small networks, few rounds."""

import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import cli
from support.federations import ATTACK, ROUNDS, RUN, SMALL, parsed, run

from experiments.federate import auditing, rounds, training
from invertjax import driver
from invertjax.auditing import clients, observed, situations
from invertjax.cli import arrays
from invertjax.driver import Cache

FILES = {"config.json", "metrics.jsonl", "summary.json", "state.npz", "federation.png"}

cheap_compilation = cli.cheap_compilation  # a fixture


def trained(*args: str) -> training.Training:
    """What such flags prepare."""
    (data, victim, _, of_clients, _, run), plan = parsed(*args)
    return training.prepare(data, victim, of_clients, run, plan, cache=Cache())


def state(folder: pathlib.Path) -> list[np.ndarray]:
    with np.load(folder / "state.npz", allow_pickle=False) as archive:
        return [archive[name] for name in sorted(archive.files)]


def rows(folder: pathlib.Path) -> list[dict]:
    """Without what differs from one run to the next."""
    timed = ("seconds", "seconds_attack")
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in cli.rows(folder)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, audited in rounds 3 and 4."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    args = (*RUN, "--audit_rounds=3,4")
    assert run(*args, f"--workdir={out}") == 0
    return args, out


def test_it_writes_what_it_says(whole):
    _, out = whole
    audits = {f"audit-0000{round}.png" for round in (3, 4)}
    assert {file.name for file in out.iterdir()} == FILES | audits
    for name in ("federation.png", *audits):
        with Image.open(out / name) as picture:
            assert picture.width > 100 and picture.height > 4 * 96


def test_a_row_for_every_round_that_was_tested_or_attacked(whole):
    found = rows(whole[1])
    assert [row["round"] for row in found] == [0, 2, 3, 4]
    assert all(0 <= row["accuracy"] <= 1 for row in found)
    audits = [row for row in found if "psnr_mean" in row]
    assert [row["round"] for row in audits] == [3, 4]
    for row in audits:
        assert row["images"] == 4  # two targets of two
        assert row["psnr_min"] <= row["psnr_mean"] <= row["psnr_max"]
        assert row["label_recall"] == 1 and "null_shuffled_update" in row
    summary = cli.summary(whole[1])
    assert summary["rounds"] == 4 and summary["interrupted"] is False
    assert summary["accuracy"] == found[-1]["accuracy"]
    assert [row["round"] for row in summary["audits"]] == [3, 4]


@pytest.mark.parametrize("sees", ["client", "mean"])
def test_audits_of_one_kind_share_their_program(sees, monkeypatch, tmp_path):
    original, built = driver.build, []

    def build(*args, **options):
        built.append(args)
        return original(*args, **options)

    monkeypatch.setattr(driver, "build", build)
    args = (*SMALL, *ROUNDS, "--attack=inverting_gradients", "--steps=3")
    args += ("--audit_rounds=0,1,4", f"--sees={sees}", f"--workdir={tmp_path}")
    assert run(*args) == 0
    assert len(rows(tmp_path)) == 4 and len(built) == 1


def _interrupt_in(monkeypatch, module, name, call):
    """Ctrl-C in the given call, counted from 1, of a function."""
    original, calls = getattr(module, name), []

    def interrupted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)


@pytest.mark.parametrize(
    "module, name, call, done",
    [
        (rounds, "_dropped", 2, 2),  # at the end of round 1
        (auditing.run, "complete", 1, 3),  # in the audit of round 3: it is done again
    ],
)
def test_interrupted_and_resumed_is_as_uninterrupted(
    module, name, call, done, whole, monkeypatch, tmp_path, capsys
):
    args, expected = whole
    args = (*args, f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        _interrupt_in(patch, module, name, call)
        assert run(*args) == 130
    assert "--resume" in capsys.readouterr().err
    summary = cli.summary(tmp_path)
    assert summary["interrupted"] is True and summary["rounds"] == done
    assert [row["round"] for row in rows(tmp_path)] == [
        round for round in (0, 2, 3, 4) if round < done
    ]
    assert run(*args) == 2 and "--resume" in capsys.readouterr().err
    assert run(*args, "--resume", "--rounds=5") == 2
    assert "--rounds=4" in capsys.readouterr().err
    # As after a kill between the writing of rows and of the state.
    shutil.copy(expected / "metrics.jsonl", tmp_path)
    (tmp_path / "summary.json").unlink()
    assert run(*args, "--resume") == 0
    assert rows(tmp_path) == rows(expected)
    for mine, theirs in zip(state(tmp_path), state(expected), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert run(*args, "--resume") == 0
    assert "All 4 rounds are done" in capsys.readouterr().out


def test_overwrite_leaves_nothing_of_the_former_run(whole, tmp_path):
    short = (*SMALL, "--rounds=1", "--audit_rounds=", f"--workdir={tmp_path}")
    (tmp_path / "audit-00007.png").write_bytes(b"")
    (tmp_path / "mine.txt").write_text("kept")
    assert run(*short) == 2
    assert run(*short, "--overwrite") == 0
    assert {file.name for file in tmp_path.iterdir()} == FILES | {"mine.txt"}


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda file: file.write_bytes(file.read_bytes()[:999]), "cannot be read"),
        (lambda file: np.savez(file, leaf_00000=np.zeros(3)), "holds 1 arrays"),
    ],
)
def test_a_damaged_state_is_refused(damage, says, monkeypatch, tmp_path, capsys):
    args = (*SMALL, *ROUNDS, "--audit_rounds=", f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        _interrupt_in(patch, rounds, "_dropped", 1)
        assert run(*args) == 130
    damage(tmp_path / "state.npz")
    capsys.readouterr()
    assert run(*args, "--resume") == 2
    line = capsys.readouterr().err
    assert says in line and "--overwrite" in line and line.count("\n") == 1


# What is attacked


LOCAL = ("--local_steps=2", "--local_batch=2", "--local_lr=0.3")
EPOCHS = ("--local_epochs=2", "--local_batch=2", "--batch_size=3", "--local_lr=0.3")
SKEWED = ("--partition=dirichlet:0.5", "--sees=mean", "--targets=1")
NOISE = ("--defense=gaussian:0.1",)


def _distance_at_the_truth(*args):
    """Of the simulated from the observed update, relative, where the guess is right."""
    args = (*SMALL, *ATTACK, *ROUNDS, *args)
    made, attack = trained(*args), parsed(*args)[0].attack
    dataset = training.dataset(made)
    plan = jax.tree.map(lambda leaf: leaf[0], made.plan(range(1)))
    step = jax.jit(lambda *args: training.step(made, *args))
    _, seen, _ = step(training.numbers(made), training.start(made), dataset, plan)
    batch = jax.tree.map(lambda leaf: leaf[plan.rows], dataset)
    _, ready = auditing.prepared_for(made, attack, seen, batch, cache=Cache())
    return max(_misses(ready.situation, ready.plan.row.rule))


def _misses(situation, rule):
    """Of every layer of every trial."""

    @jax.jit
    def simulated(trial, truth):
        target = situations.with_numbers(situation.target, trial["numbers"]["target"])
        knows = situation.threat.protection_known
        client = clients.simulated(target, knows=knows, rule=rule)
        return client(situation.shared["params"], truth, jax.random.key(0))

    for i in range(situation.updates):
        trial = observed.take(situation.trials, i)
        guess = arrays.flat(simulated(trial, observed.take(situation.truth, i)))
        seen = arrays.flat(trial["update"])
        norm = max(np.linalg.norm(leaf) for leaf in seen.values())
        yield from (np.linalg.norm(guess[k] - seen[k]) / norm for k in guess)


@pytest.mark.parametrize(
    "args, exact",
    [
        ((), True),
        (LOCAL, True),
        (EPOCHS, True),
        ((*LOCAL, "--nolocal_known"), False),
        ((*SKEWED, *LOCAL), True),
        (NOISE, False),
        (("--defense=dp_sgd:0,0.1", "--defense_known"), True),
    ],
)
def test_the_attacker_simulates_what_the_server_saw(args, exact):
    """1e-5: both are float32. The mean: 2^-24 a coordinate, of updates of about 0.1."""
    miss = _distance_at_the_truth(*args)
    assert miss < 1e-5 if exact else miss > 1e-2


def test_epochs_pass_over_the_same_images():
    """Two epochs over three images, two at a time, are four steps."""
    made = trained(*SMALL, *ATTACK, *ROUNDS, *EPOCHS)
    drawn = made.plan(range(1)).rows[0]
    assert drawn.shape[1] == made.target.shape[0] == 3
    assert all(len({*rows.tolist()}) == 3 for rows in drawn)
    assert (made.target.local.steps, made.target.local.batch_size) == (4, 2)


def test_equal_weights_would_not_do_where_clients_differ(monkeypatch):
    original = clients.averaged

    def unweighted(client, count, weights):
        return original(client, count)

    monkeypatch.setattr(clients, "averaged", unweighted)
    assert _distance_at_the_truth(*SKEWED, *LOCAL) > 1e-2


def test_the_mean_is_one_target_with_all_images(tmp_path):
    args = (*SMALL, *ROUNDS, *SKEWED, "--attack=inverting_gradients", "--steps=2")
    args += ("--audit_rounds=1", f"--workdir={tmp_path}", "--nonull_control")
    assert run(*args) == 0
    (row,) = [row for row in rows(tmp_path) if "psnr_mean" in row]
    assert row["round"] == 1 and row["images"] == 6  # three clients of two
    threat = cli.summary(tmp_path)["threat_model"]
    assert "only the mean of 3 clients" in threat["server"]
    assert threat["public_data"] == "none"


def test_labels_are_not_counted_in_a_mean_of_unequal_weights(tmp_path, capsys):
    args = (*SMALL, *ROUNDS, *SKEWED, "--attack=inverting_gradients")
    out = tmp_path / "run"
    assert run(*args, "--labels=inferred", f"--workdir={out}") == 2
    line = capsys.readouterr().err
    assert "--labels=inferred" in line and "weights" in line and line.count("\n") == 1
    assert not out.exists()


# What goes wrong


def test_clients_without_data_never_take_part(tmp_path, capsys):
    args = (*SMALL, "--clients=40", "--partition=dirichlet:0.02", "--participants=4")
    made = trained(*args)
    empty = {i for i, held in enumerate(made.partition) if not len(held)}
    assert empty and not empty & set(np.ravel(made.plan(range(50)).ids).tolist())
    out = f"--workdir={tmp_path / 'run'}"
    assert run(*args, "--rounds=1", "--audit_rounds=", out) == 0
    assert cli.summary(tmp_path / "run")["clients_without_data"] == len(empty)
    assert f"{len(empty)} of 40 clients have no data" in capsys.readouterr().out
    most = 40 - len(empty)
    assert run(*args, f"--participants={most + 1}", out, "--overwrite") == 2
    assert f"at most {most}, the clients that" in capsys.readouterr().err


def _not_finite(monkeypatch, classes):
    """Clients whose first image is of these classes share NaN."""
    original = clients.actual

    def actual(target, rule=None):
        honest = original(target, rule)

        def share(params, batch, key):
            update = honest(params, batch, key)
            lost = jnp.isin(batch["label"][0], jnp.array(classes))
            return jax.tree.map(lambda leaf: jnp.where(lost, jnp.nan, leaf), update)

        return share

    monkeypatch.setattr(clients, "actual", actual)


def test_clients_that_share_nan_are_dropped_and_the_others_attacked(
    monkeypatch, tmp_path, capsys
):
    _not_finite(monkeypatch, [1])
    args = (*SMALL, *ATTACK, *ROUNDS, "--partition=by_class:1", "--audit_rounds=3,4")
    args += ("--nonull_control",)
    made = trained(*args)
    labels = made.examples.labels
    of_one = {i for i, held in enumerate(made.partition) if labels[held[0]]}
    drawn = [set(ids.tolist()) for ids in made.plan(range(5)).ids]
    assert len(of_one) == 3 and not any(ids <= of_one for ids in drawn)
    assert run(*args, f"--workdir={tmp_path}") == 0
    found = {row["round"]: row for row in rows(tmp_path)}
    for round in range(4):
        lost = found[round]["clients_dropped"] if round in found else []
        assert set(lost) == drawn[round] & of_one
    for round in (3, 4):
        assert found[round]["images"] == 2 * min(2, len(drawn[round] - of_one))
    summary = cli.summary(tmp_path)
    total = sum(len(ids & of_one) for ids in drawn[:4])
    assert summary["updates_dropped"] == total > 0 == summary["rounds_unchanged"]
    assert f"{total} updates were not finite" in capsys.readouterr().out


def test_rounds_whose_clients_are_all_dropped_change_nothing(monkeypatch, tmp_path):
    _not_finite(monkeypatch, [0, 1])
    args = (*RUN, "--audit_rounds=1", f"--workdir={tmp_path}")
    assert run(*args) == 0
    found = rows(tmp_path)
    assert [row["round"] for row in found] == [0, 1, 2, 3, 4]
    for row in found[:4]:
        assert row["dropped"] == len(row["clients_dropped"]) == 3
        assert row["model_unchanged"] is True
    assert found[1]["psnr_mean"] is None and "nothing to attack" in found[1]["verdict"]
    summary = cli.summary(tmp_path)
    assert summary["updates_dropped"] == 12 and summary["rounds_unchanged"] == 4
    made = trained(*RUN)
    for before, after in zip(
        jax.tree.leaves(made.params), state(tmp_path), strict=False
    ):
        np.testing.assert_array_equal(before, after)


def test_clients_that_diverge_stop_the_run_or_are_dropped(tmp_path, capsys):
    """Local training overflows float32; what is kept is the state before the round."""
    args = (*SMALL, *ROUNDS, "--audit_rounds=")
    args += ("--local_steps=6", "--local_batch=1", "--local_lr=1e30")
    out = tmp_path / "run"
    args += (f"--workdir={out}",)
    assert run(*args, "--on_nan=stop") == 1
    line = capsys.readouterr().err
    assert "--on_nan=stop: round 0" in line and line.count("\n") == 1
    summary = cli.summary(out)
    assert summary["rounds"] == 0 and summary["stopped"] == "not finite"
    assert run(*args, "--resume") == 0
    assert cli.summary(out)["updates_dropped"] > 0

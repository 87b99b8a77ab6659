"""What is cheapest: Pareto fronts, attackers who are added, a frontier end to end."""

import shutil

import numpy as np
import pandas as pd
import pytest
from support import cli

from experiments.audit import prepare
from experiments.frontier import __main__ as frontier
from experiments.frontier import accuracy, attackers
from experiments.frontier import run as frontier_run
from experiments.frontier import table as frontier_table
from experiments.settings import federation, settings
from invertjax.cli import locks, run_folder

cheap_compilation = cli.cheap_compilation  # a fixture

SMALL = """
dataset = "faces"
model = "mlp"
width = 9
image_size = 8
attack = "inverting_gradients"
batch_size = 1
targets = 2
steps = 200
defense = ["none", {gaussian = [1e-3, 10.0]}, {prune = [0.5, 0.9]}, {dp_sgd = [0.5]}]
[federation]
clients = 6
participants = 3
rounds = 4
"""


def run(*args: str) -> int:
    """The exit code; what it prints goes to stdout and stderr."""
    return cli.run_script(frontier, *args)


def written(path, text=SMALL):
    file = path / "plan.toml"
    file.write_text(text)
    return f"--plan={file}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cheap_compilation):
    path = tmp_path_factory.mktemp("frontier")
    assert run(written(path), f"--workdir={path / 'run'}") == 0
    return path


def cells(*defenses, **given):
    given = {"attack": "inverting_gradients", **given}
    return [cli.resolved(**given, defense=defense) for defense in defenses]


def test_attackers_who_know_are_added_where_that_helps():
    every = cells((), ("gaussian:1",), ("prune:.9",), ("dp_sgd:1",), ("sign",))
    found = [
        [(one.attack.attack, one.attack.defense_known) for one in adaptive]
        for adaptive in map(attackers.adaptive, every)
    ]
    known, posterior = ("inverting_gradients", True), ("posterior", True)
    assert found == [[], [posterior], [known], [posterior], []]


def test_attackers_who_know_have_what_the_others_have():
    (cell,) = cells(("gaussian:1",), attack_lr=0.5, steps=7, restarts=2, seed=3)
    (found,) = attackers.adaptive(cell)
    differ = {"attack": "posterior", "defense_known": True, "total_variation": None}
    assert settings.flat(found) == settings.flat(cell) | differ
    # What the attack of the cell has no number for is as the other attack has it.
    (cell,) = cells(("gaussian:1",), attack="gauss_newton")
    (found,) = attackers.adaptive(cell)
    assert (found.attack.attack_lr, found.attack.total_variation) == (0.02, None)


def test_a_training_depends_on_nothing_that_the_attacker_does():
    (cell,) = cells(("dp_sgd:1",))
    same = dict(targets=9, train_steps=3, steps=5, attack="idlg", model="cnn")
    others = [cell, *attackers.adaptive(cell), *cells(("dp_sgd:1",), **same)]
    assert len(others) == 3 and len({*map(accuracy.setup_of, others)}) == 1
    plan, names = federation.resolve({}), set()
    for other in (
        cell,
        *cells(("dp_sgd:2",), ()),
        *cells(("dp_sgd:1",), seed=1),
        *cells(("dp_sgd:1",), width=9),
        *cells(("dp_sgd:1",), split="train"),
    ):
        names.add(accuracy.name_of(accuracy.setup_of(other), plan))
    assert len(names) == 6
    longer = federation.resolve({"rounds": 7})
    assert accuracy.name_of(accuracy.setup_of(cell), longer) not in names


def test_trainings_that_differ_in_numbers_share_a_program():
    local = dict(local_steps=2, local_lr=0.1)
    together = cells(("dp_sgd:1",), ("dp_sgd:2",), **local)
    together += cells(("dp_sgd:1",), **local, seed=1)
    together += cells(("dp_sgd:1",), **local | {"local_lr": 0.2})
    apart = cells((), ("prune:.9",), **local) + cells(("dp_sgd:1",), local_steps=3)
    apart += cells(("dp_sgd:1",), **local, split="train")  # its images are others
    found = [len(kind) for kind in accuracy.plan([*together, *apart])]
    assert found == [4, 1, 1, 1, 1]


def test_pareto():
    psnr = np.array([10.0, 12.0, 12.0, 20.0, 9.0, 10.0])
    accuracy = np.array([0.5, 0.7, 0.6, 0.7, 0.1, 0.5])
    # 2 leaks as 1 does and costs more, 3 leaks more at its accuracy; equals stay
    expected = [True, True, False, False, True, True]
    np.testing.assert_array_equal(frontier_table.pareto(psnr, accuracy), expected)


def _table(*rows):
    names = ["defense", "psnr", "accuracy", "epsilon"]
    frame = pd.DataFrame(rows, columns=names)
    return frame.assign(dataset="d", model="m")


def test_the_cheapest_defense_is_the_most_accurate_below_the_threshold():
    bare, weak = ("none", 30.0, 0.9, None), ("prune:.5", 25.0, 0.9, None)
    strong, costly = ("prune:.99", 15.0, 0.8, None), ("dp_sgd:1", 9.0, 0.4, 2.0)
    (line,) = frontier_table.cheapest(_table(bare, weak, strong, costly), 20.0)
    assert "prune:.99 keeps" in line and "80.0%" in line and "90.0% without" in line
    (line,) = frontier_table.cheapest(_table(bare, weak, costly), 20.0)
    assert "dp_sgd:1 keeps" in line and "epsilon 2" in line
    (line,) = frontier_table.cheapest(_table(bare, weak), 20.0)
    assert "no defense that was tried" in line
    (line,) = frontier_table.cheapest(_table(bare, weak), 35.0)
    assert "no attack reaches 35 dB" in line


def test_a_frontier_has_a_row_a_strength(folder):
    table = pd.read_csv(folder / "run" / "frontier.csv").set_index("defense")
    named = {"none", "gaussian:0.001", "gaussian:10", "prune:0.5", "prune:0.9"}
    assert {*table.index} == {*named, "dp_sgd:0.5"}
    assert (table["targets"] == 2).all() and table["accuracy"].between(0, 1).all()
    assert table["epsilon"].notna().sum() == 1 and table["epsilon"]["dp_sgd:0.5"] > 0
    assert table["strength"]["gaussian:10"] == 10
    # noise of 10 drowns an update; one of .001 does not
    assert table["psnr"]["gaussian:10"] < table["psnr"]["gaussian:0.001"] - 1
    assert table["accuracy"]["gaussian:10"] < table["accuracy"]["none"]
    assert table["pareto"].any() and (folder / "run" / "frontier.png").stat().st_size


def test_the_strongest_attack_counts(folder):
    table = pd.read_csv(folder / "run" / "frontier.csv").set_index("defense")
    rows = pd.read_parquet(folder / "run" / "attacks").groupby(
        ["defense", "attack", "defense_known"], dropna=False
    )["psnr"]
    means = rows.mean()
    for defense, count in (("none", 1), ("prune:0.9", 2), ("dp_sgd:0.5", 2)):
        assert len(means[defense]) == count
        assert table["psnr"][defense] == pytest.approx(means[defense].max())


def test_given_again_nothing_runs_twice(folder, capsys, monkeypatch):
    def again(*args, **options):
        pytest.fail("done again")

    monkeypatch.setattr(accuracy, "accuracies", again)
    monkeypatch.setattr(prepare, "simulated", again)  # of labels and of attacks
    assert run(written(folder), f"--workdir={folder / 'run'}") == 0
    assert "Written" in capsys.readouterr().out


def test_what_fails_is_a_row_and_costs_no_other(folder, tmp_path, monkeypatch, capsys):
    """A federation, and labels that cannot be read: the rest is as it was."""
    again = tmp_path / "run"
    shutil.copytree(folder / "run", again)
    for name in (frontier_run.TRAININGS, frontier_run.LABELS):
        (again / name).unlink()
    accuracies, labels = accuracy.accuracies, frontier_run._labels

    def trains(setups, *args):
        if any(str(one) == "prune:0.9" for s in setups for one in s.clients.defense):
            raise TypeError("too wide")
        return accuracies(setups, *args)

    def reads(cell, *args):
        if not cell.clients.defense:
            raise ZeroDivisionError
        return labels(cell, *args)

    monkeypatch.setattr(accuracy, "accuracies", trains)
    monkeypatch.setattr(frontier_run, "_labels", reads)
    for _ in range(2):  # the second time nothing is left to do
        capsys.readouterr()
        assert run(written(folder), f"--workdir={again}") == 1
        said = capsys.readouterr().err
        assert "failed, 1 trainings or labels: TypeError: too wide" in said
        assert "trainings or labels: ZeroDivisionError" in said
        monkeypatch.setattr(accuracy, "accuracies", None)
    before, after = (
        pd.read_csv(path / "frontier.csv").set_index("defense")
        for path in (folder / "run", again)
    )
    assert list(before.index) == list(after.index)
    gone = after.accuracy.isna()
    assert list(after.index[gone]) == ["prune:0.9"] and not after.pareto[gone].any()
    assert list(after.index[after.psnr_guess.isna()]) == ["none"]
    np.testing.assert_allclose(after.accuracy[~gone], before.accuracy[~gone], atol=0.1)
    pd.testing.assert_series_equal(before.psnr, after.psnr)


def _cut_in_its_last_row(file):
    """As after a kill while the row was appended; returns the rows before it."""
    *before, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(before) + last[: len(last) // 2])
    return run_folder.read_rows(file)


def test_a_training_that_was_cut_off_is_done_again(folder, tmp_path, monkeypatch):
    """And once it is, the command goes on as often as one likes."""
    again = tmp_path / "run"
    shutil.copytree(folder / "run", again)
    expected = pd.read_csv(again / "frontier.csv")
    for name in (frontier_run.TRAININGS, frontier_run.LABELS):
        before = run_folder.read_rows(again / name)
        assert _cut_in_its_last_row(again / name) == before[:-1]
    for _ in range(2):
        assert run(written(folder), f"--workdir={again}") == 0
        pd.testing.assert_frame_equal(pd.read_csv(again / "frontier.csv"), expected)
        monkeypatch.setattr(accuracy, "accuracies", None)  # it is all there


def test_a_folder_whose_trainings_have_other_names_goes_on(folder, tmp_path):
    """As former versions called them: they are done again, and nothing else is."""
    again = tmp_path / "run"
    shutil.copytree(folder / "run", again)
    file = again / frontier_run.TRAININGS
    rows = run_folder.read_rows(file)
    file.unlink()
    former = [{**row, "training": f"former {i}"} for i, row in enumerate(rows)]
    run_folder.append_rows(file, former)
    before = _parts(again)
    expected = pd.read_csv(again / "frontier.csv")
    assert run(written(folder), f"--workdir={again}") == 0
    pd.testing.assert_frame_equal(pd.read_csv(again / "frontier.csv"), expected)
    added = run_folder.read_rows(file)[len(rows) :]
    by_name = {row["training"]: row for row in rows}
    assert {row["training"]: row for row in added} == by_name
    assert _parts(again) == before


def _parts(folder):
    """When each part of the table of attacks was written."""
    files = (folder / frontier_run.ATTACKS).glob("part-*")
    return {file.name: file.stat().st_mtime_ns for file in files}


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("clients = 6", "clients = 2", "--participants=3"),
        ("clients = 6", "client = 6", "client: no such setting; did you mean"),
        ("rounds = 4", 'rounds = "4"', "wrong type"),
        ('attack = "inverting_gradients"', 'attack = "posterior"', "posterior"),
        ("{prune = [0.5, 0.9]}", "{prune = [1.5]}", "prune:1.5"),
        ("steps = 200", "steps = 200\ndefense_known = true", "defense_known"),
        (
            'defense = ["none", ',
            "defense_known = true\ndefense = [",
            "defense_known = True: expected none",
        ),
        ('model = "mlp"', 'model = "resnet20"', "norm = batch, of --model=resnet20"),
        ('attack = "inverting_gradients"', "", "attack = auto"),
    ],
)
def test_wrong_plans_are_refused_before_anything_is_read(
    tmp_path, capsys, old, new, says
):
    text = SMALL.replace(old, new)
    assert text != SMALL
    assert run(written(tmp_path, text), f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_another_process_is_at_work(tmp_path, capsys):
    """Two frontiers at once would train, and write, the same twice."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / frontier_run.TRAININGS).write_text("")
    with locks.alone(workdir):
        code = run(written(tmp_path), f"--workdir={workdir}", "--overwrite")
    line = capsys.readouterr().err
    assert code == 2 and line.count("\n") == 1
    assert f"--workdir={workdir}: another process is at work" in line
    assert (workdir / frontier_run.TRAININGS).exists()


def test_another_federation_does_not_go_into_the_same_folder(folder, capsys):
    plan = written(folder, SMALL.replace("rounds = 4", "rounds = 5"))
    assert run(plan, f"--workdir={folder / 'run'}") == 2
    assert "another federation" in capsys.readouterr().err
    for wrong in ("0", "160", "nan"):
        assert run(plan, f"--threshold={wrong}") == 2
        assert f"--threshold={wrong}: expected dB" in capsys.readouterr().err


def test_a_damaged_folder_is_refused_in_one_line(folder, tmp_path, capsys):
    damaged = tmp_path / "run"
    damaged.mkdir()
    (damaged / frontier_run.FEDERATION).write_text('{"clients": ')
    assert run(written(folder), f"--workdir={damaged}") == 2
    error = capsys.readouterr().err
    assert "federation.json cannot be read" in error and error.count("\n") == 1

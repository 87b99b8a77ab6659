"""What is cheapest: Pareto fronts, attackers who are added, a frontier end to end."""

import json

import numpy as np
import pandas as pd
import pytest
from support import cli

from experiments.audit import run as audit
from experiments.frontier import __main__ as frontier
from experiments.frontier import accuracy as protection
from experiments.frontier import run as frontier_run
from experiments.frontier import table as frontier_table
from experiments.settings import config

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


def _cells(*defenses):
    return [config.resolve(config.Config(defense=d)) for d in defenses]


def test_attackers_who_know_are_added_where_that_helps():
    cells = _cells((), ("gaussian:1",), ("prune:.9",), ("dp_sgd:1",))
    found = [
        [(cell.attack, cell.defense_known) for cell in protection.adaptive(one)]
        for one in cells
    ]
    known, posterior = ("auto", True), ("posterior", True)
    assert found == [[], [posterior], [known], [posterior]]


def test_a_training_depends_on_nothing_that_the_attacker_does():
    (cell,) = _cells(("dp_sgd:1",))
    others = [cell, *protection.adaptive(cell)]
    assert len(others) == 2 and len({*map(protection.trained, others)}) == 1
    (other,) = _cells(("dp_sgd:2",))
    assert protection.trained(other) != protection.trained(cell)
    assert [len(cells) for cells in protection.plan([cell, other])] == [2]


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

    monkeypatch.setattr(protection, "accuracies", again)
    monkeypatch.setattr(audit, "prepare", again)  # of labels and of attacks
    assert run(written(folder), f"--workdir={folder / 'run'}") == 0
    assert "Written" in capsys.readouterr().out


def test_a_training_that_was_cut_off_is_done_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"training": "a"}) + '\n{"training": "b", "acc')
    assert [row["training"] for row in frontier_run.rows(file)] == ["a"]


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("clients = 6", "clients = 2", "--participants=3"),
        ("clients = 6", "client = 6", "client: no such setting; did you mean"),
        ("rounds = 4", 'rounds = "4"', "wrong type"),
        ('attack = "inverting_gradients"', 'attack = "posterior"', "posterior"),
        ("{prune = [0.5, 0.9]}", "{prune = [1.5]}", "prune:1.5"),
        ("steps = 200", "steps = 200\ndefense_known = true", "defense_known"),
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


def test_another_federation_does_not_go_into_the_same_folder(folder, capsys):
    plan = written(folder, SMALL.replace("rounds = 4", "rounds = 5"))
    assert run(plan, f"--workdir={folder / 'run'}") == 2
    assert "another federation" in capsys.readouterr().err
    assert run(plan, "--threshold=0") == 2
    assert "--threshold=0" in capsys.readouterr().err

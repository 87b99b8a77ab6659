"""What goes wrong in one cell of a sweep is its row, and costs no other cell."""

import pathlib

import pytest
from support import cli, sweeps

from experiments.audit import cost, prepare
from experiments.sweep import recorder
from experiments.sweep import run as sweeping
from invertjax import driver

cheap_compilation = cli.cheap_compilation  # a fixture

SEEDS = 'networks = "shared"\ntargets = 1\nseed = {range = [0, 6]}\n'  # one program

PREPARED = {  # by seed
    1: (OverflowError("Python int too large"), "OverflowError: Python int too large"),
    2: (RuntimeError("two\n lines"), "RuntimeError: two lines"),
    3: (FileNotFoundError("no image"), "FileNotFoundError: no image"),
    4: (ValueError("--seed is wrong"), "--seed is wrong"),
}
SCORED = {5: (TypeError("of 5 channels"), "TypeError: of 5 channels")}


@pytest.fixture
def grid(tmp_path):
    return sweeps.write(tmp_path, SEEDS), f"--workdir={tmp_path / 'run'}"


def reasons(grid) -> dict[int, str]:
    """Why seeds failed."""
    found = sweeps.table(pathlib.Path(grid[1].removeprefix("--workdir=")))
    assert (found.status.eq("failed") == found.reason.notna()).all()
    assert len(found) == 6
    return found[found.status == "failed"].set_index("seed").reason.to_dict()


def test_any_error_of_a_cell_is_its_row(grid, monkeypatch):
    """The others are done; at the next start none is left to do."""
    simulated, measured = prepare.simulated, recorder._measured

    def prepares(*args, **options):
        for arg in args:
            if getattr(arg, "seed", None) in PREPARED:
                raise PREPARED[arg.seed][0]
        return simulated(*args, **options)

    def measures(ready, *args):
        if ready.keys.host in SCORED:
            raise SCORED[ready.keys.host][0]
        return measured(ready, *args)

    monkeypatch.setattr(prepare, "simulated", prepares)
    monkeypatch.setattr(recorder, "_measured", measures)
    assert sweeps.run(*grid) == 1
    expected = {seed: says for seed, (_, says) in {**PREPARED, **SCORED}.items()}
    assert reasons(grid) == expected
    monkeypatch.setattr(driver, "run", None)
    assert sweeps.run(*grid) == 1


def test_a_program_that_cannot_be_built_fails_its_own_cells(grid, monkeypatch):
    def fails(*args, **options):
        raise TypeError("steps does not fit into 32 bits")

    monkeypatch.setattr(driver, "build", fails)
    assert sweeps.run(*grid) == 1
    assert set(reasons(grid).values()) == {"TypeError: steps does not fit into 32 bits"}


def test_memory_does_not_grow_with_the_number_of_programs(tmp_path, monkeypatch):
    """Of those that were built, or failed, JAX keeps a few."""
    forgotten, begun = [], []

    def fails(*args, **options):
        begun.append(1)
        raise TypeError

    monkeypatch.setattr(driver, "build", fails)
    monkeypatch.setattr(sweeping, "KEPT", 2)
    monkeypatch.setattr(sweeping, "forget", lambda: forgotten.append(len(begun)))
    grid = sweeps.write(tmp_path, "width = [5, 6, 7, 8, 9]\ntargets = 1")
    assert sweeps.run(grid, f"--workdir={tmp_path / 'run'}") == 1
    assert forgotten == [1, 3] and len(begun) == 5


def test_a_cell_that_cannot_be_counted_is_run_all_the_same(grid, monkeypatch):
    monkeypatch.setattr(cost.models, "build", lambda *args, **options: 1 // 0)
    cost.count.cache_clear()
    assert cost.count("mlp", 8) == (0, 0, 0, 0)
    cost.count.cache_clear()


def test_a_network_that_no_machine_holds_is_refused_before_it_grows(tmp_path, capsys):
    """By itself its width may be; in the lenet it has 3 TB of params."""
    args = ("--model=lenet", "--width=100000", "--image_size=8")
    line = cli.refused(capsys, tmp_path / "run", *args)
    for fragment in ("--model=lenet --width=100000", "TB", "this machine has"):
        assert fragment in line

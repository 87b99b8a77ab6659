"""Sweeps in one process: the library's, and what the command line makes of a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from support import cli, sweeps
from support.quadratic import STEPS, TARGETS, assert_close, make_quadratic

from experiments.settings import settings
from experiments.sweep import programs
from experiments.sweep import table as table_
from invertjax import driver, sweep
from invertjax.auditing import Watch
from invertjax.auditing import programs as auditing
from invertjax.auditing import run as audit
from invertjax.cli import cost
from invertjax.driver import Cache

cheap_compilation = cli.cheap_compilation  # a fixture
added = sweeps.added_model  # a fixture


def make(shared, trial, cell):
    moved = {"target": trial["target"] + cell["shift"]}
    return make_quadratic(shared * cell["weight"], moved)


def library(cells, targets=3, make=make):
    keys = jax.random.split(jax.random.key(0), (targets, 2))
    trials = {"target": TARGETS[:targets]}
    return sweep.run(keys, make, jnp.array(1.0), trials, cells), (trials, keys)


@pytest.mark.parametrize("group", [1, 2])
def test_an_interruption_is_never_taken_for_the_end(group):
    """In the first of two groups, and in the last."""

    def interrupt(progress):
        if progress.done > STEPS * (group - 1):
            raise KeyboardInterrupt

    keys = jax.random.split(jax.random.key(0), (2, 1))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(
            keys,
            make,
            jnp.array(1.0),
            {"target": TARGETS[:2]},
            {"weight": jnp.ones(1), "shift": jnp.zeros(1)},
            on_chunk=interrupt,
            width=1,
        )


def test_product_is_in_the_order_of_nested_loops():
    found = sweep.product(a=[1, 2], b=range(3), c=["x"])
    assert list(found) == ["a", "b", "c"]
    assert found["a"].tolist() == [1, 1, 1, 2, 2, 2]
    assert found["b"].tolist() == [0, 1, 2, 0, 1, 2]
    assert found["c"].tolist() == ["x"] * 6
    with pytest.raises(ValueError, match="b=.*at least one value"):
        sweep.product(a=[1], b=[])


def test_a_sweep_is_what_separate_runs_are():
    cells = sweep.product(weight=[0.5, 1.0], shift=[0.0, 2.0, 7.0])
    found, (trials, keys) = library(cells)
    assert found.results.loss.shape == (6, 3, 2)
    assert found.results.losses.shape == (6, 3, 2, STEPS)
    for c in range(6):
        cell = {name: jnp.float32(values[c]) for name, values in cells.items()}
        alone = lambda shared, trial, cell=cell: make(shared, trial, cell)  # noqa: E731
        program = driver.build(alone, jnp.array(1.0), trials, keys)
        expected = driver.run(program, jnp.array(1.0), trials, keys).results
        mine = jax.tree.map(lambda leaf, c=c: leaf[c], found.results)
        jax.tree.map(assert_close, mine, expected)


def test_an_attack_is_traced_as_often_for_two_cells_as_for_two_hundred():
    traced = []

    def counted(shared, trial, cell):
        traced.append(cell["weight"].shape)
        return make(shared, trial, cell)

    for count in (2, 200):
        cells = sweep.product(weight=[0.5], shift=np.arange(float(count)))
        assert library(cells, 1, counted)[0].results.loss.shape == (count, 1, 2)
    assert set(traced) == {()}
    assert traced[: len(traced) // 2] == traced[len(traced) // 2 :]
    assert len(traced) <= 2 * 6  # init, advance, finish


@pytest.mark.parametrize(
    "cells, message",
    [
        ({"weight": jnp.ones(2), "shift": jnp.ones(3)}, "one leading axis"),
        ({"weight": jnp.ones(2), "shift": jnp.array(1.0)}, "one leading axis"),
        ({}, "one leading axis"),
    ],
)
def test_cells_that_do_not_fit(cells, message):
    with pytest.raises(ValueError, match=message):
        library(cells)


def test_trials_and_keys_that_do_not_fit():
    keys = jax.random.split(jax.random.key(0), (4, 2))
    cells = {"weight": jnp.ones(2), "shift": jnp.ones(2)}
    for trials in ({"target": TARGETS[:3]}, {"target": TARGETS}):
        with pytest.raises(ValueError, match="N=4"):
            sweep.run(keys, make, jnp.array(1.0), trials, cells)


CELLS = """
batch_size = 2
labels = "inferred"
local_steps = 2
defense_known = true
[[grid]]
defense = [["clip:9", "gaussian:0.1", "prune:0.2", "quantise:8"]]
[[grid]]
seed = 3
local_lr = 0.1
attack_lr = 0.1
total_variation = 0.001
defense = [["clip:0.5", "gaussian:0.01", "prune:0.5", "quantise:6"]]
"""


@pytest.fixture(scope="module")
def defended(tmp_path_factory):
    """The folder of two cells that differ in every number, and the cells."""
    path = tmp_path_factory.mktemp("defended")
    grid = sweeps.write(path, CELLS)
    assert sweeps.run(grid, f"--workdir={path / 'sweep'}", "--images=2") == 0
    return path / "sweep", sweeps.cells(path, CELLS)


def test_a_row_is_what_reconstruct_gives(defended, tmp_path):
    folder, (_, last) = defended
    alone = settings.flat(last) | {"null_control": False}
    assert cli.run(*cli.flags(alone), f"--workdir={tmp_path}") == 0
    found, images = sweeps.table(folder), cli.arrays(tmp_path)["image"]
    found = found[found.cell == table_.name_of(last)]
    for (_, row), expected in zip(found.iterrows(), cli.rows(tmp_path), strict=True):
        assert row.status == "done" and row.target == expected["target"]
        for column in ("psnr", "ssim", "loss", "label_recall", "update_rms"):
            assert row[column] == pytest.approx(np.mean(expected[column]), abs=1e-4)
        assert row.psnr_min == pytest.approx(min(expected["psnr"]), abs=1e-4)
        wide = np.concatenate(images[row.target], axis=1)
        np.testing.assert_allclose(
            sweeps.pixels(folder / row.image), wide, atol=1 / 255
        )


@pytest.mark.parametrize(
    "axis",
    [
        pytest.param("seed = [0, 3]", marks=pytest.mark.slow),
        pytest.param(
            'norm = "batch"\nnorm_mode = "eval"\nseed = [0, 3]', marks=pytest.mark.slow
        ),
        pytest.param('split = ["train[:4]", "train[60:64]"]', marks=pytest.mark.slow),
        pytest.param('split = "train"\ntargets = [1, 9]', marks=pytest.mark.slow),
    ],
    ids=["seeds", "statistics", "splits", "targets"],
)
def test_a_trained_victim_is_that_of_its_cell(axis, tmp_path):
    """Also where its statistics are read, and where targets are no training data."""
    text = f"{axis}\ntrain_steps = 20\nsteps = 1"
    grid = sweeps.write(tmp_path, text)
    assert sweeps.run(grid, f"--workdir={tmp_path / 'run'}", "--images=0") == 0
    last = sweeps.cells(tmp_path, text)[-1]
    expected, cache = [], Cache()
    ready = cli.prepared(last, cache)
    watch = Watch(update=lambda row, arrays: expected.append(row))
    audit.attack(ready.keys, ready.prepared, watch=watch, cache=cache)
    found = sweeps.table(tmp_path / "run")
    found = found[found.cell == table_.name_of(last)]
    for column in ("update_rms", "loss", "psnr"):
        values = [np.mean(row[column]) for row in expected]
        np.testing.assert_allclose(found[column], values, rtol=1e-4)


def test_the_table_has_a_row_a_target_with_all_coordinates(defended):
    folder, cells = defended
    found = sweeps.table(folder)
    assert list(found) == table_.SCHEMA.names
    assert len(found) == 4
    for cell in cells:
        rows = found[found.cell == table_.name_of(cell)]
        assert rows.target.tolist() == [0, 1]
        for name, value in table_.coordinates(cell).items():
            same = rows[name].isna() if value is None else rows[name] == value
            assert same.all(), name
    assert set(found.seed) == {0, 3} and set(found.strength) == {8, 6}
    assert set(found.defense_name) == {"clip+gaussian+prune+quantise"}
    for name in (*found.image, *found.original):
        assert sweeps.pixels(folder / name).shape == (8, 2 * 8, 3)
    assert len(sweeps.pictures(folder)) == 4 + 2  # the originals are the same


MANY = """
seed = [0, 1]
attack_lr = [0.01, 0.1]
total_variation = [0.0, 0.01]
steps = 2
defense_known = true
[[grid]]
defense = {gaussian = STRENGTHS}
[[grid]]
batch_size = 2
defense = {gaussian = STRENGTHS}
[[grid]]
batch_size = 2
defense = {clip = STRENGTHS}
"""


def test_as_many_programs_as_groups_whatever_the_strengths(tmp_path):
    few, more = (
        programs.group(sweeps.cells(tmp_path, MANY.replace("STRENGTHS", text)))
        for text in ("[0.1]", "{linear = [0.1, 0.9], n = 101}")
    )
    assert [len(group.cells) for group in few] == [8] * 3
    assert [len(group.cells) for group in more] == [8 * 101] * 3


def static(ready):
    """What a compiled program depends on: its functions, and the shapes of a trial."""
    situation, plan = ready.prepared.situation, ready.prepared.plan
    arrays = situation.shared, jax.tree.map(lambda leaf: leaf[0], situation.trials)
    leaves, structure = jax.tree.flatten(arrays)
    shapes = [(np.shape(leaf), leaf.dtype) for leaf in leaves]
    return auditing.key_of(situation, plan), structure, shapes


ALIKE = """
batch_size = 2
labels = ["known", "inferred"]
seed = [0, 1]
[[grid]]
defense = ["none", "sign", {gaussian = [0.1, 0.2]}, "precode:9"]
[[grid]]
local_steps = 2
local_known = false
"""


def test_what_is_part_of_a_program_is_not_grouped_with_numbers(tmp_path):
    """Least squares without a prior is another program than with one."""
    text = 'attack = "gauss_newton"\ntotal_variation = [0.0, 0.1, 0.2]'
    groups = programs.group(sweeps.cells(tmp_path, text))
    found = [[one.attack.total_variation for one in group.cells] for group in groups]
    assert found == [[0.0], [0.1, 0.2]]


def test_what_is_grouped_shares_its_program(tmp_path):
    cache, groups = Cache(), programs.group(sweeps.cells(tmp_path, ALIKE))
    assert len(groups) == 2  # a defense that changes the network, and all others
    for group in groups:
        first, *others = [static(cli.prepared(cell, cache)) for cell in group.cells]
        assert all(other == first for other in others)


def test_it_compiles_as_many_programs_as_it_says(tmp_path, capsys, monkeypatch):
    built, build = [], driver.build
    counted = lambda *args, **options: built.append(1) or build(*args, **options)  # noqa: E731
    monkeypatch.setattr(driver, "build", counted)
    grid = sweeps.write(tmp_path, MANY.replace("STRENGTHS", "[0.1, 0.3]"))
    args = ("--targets=1", "--attack_lr=0.02", "--batch_size=1", "--images=0")
    assert sweeps.run(grid, f"--workdir={tmp_path / 'run'}", *args) == 0
    out = capsys.readouterr().out
    assert sweeps.promised(out) == len(built) == 2
    assert "programs compiled: 2." in out
    assert len(sweeps.table(tmp_path / "run")) == 2 * 8
    assert not (tmp_path / "run" / "_images").exists()


def test_a_model_that_is_added_is_attacked(added, tmp_path):
    grid = sweeps.write(tmp_path, f'model = ["mlp", "{added}"]\nsteps = 2')
    assert sweeps.run(grid, f"--workdir={tmp_path / 'run'}") == 0
    found = sweeps.table(tmp_path / "run").set_index(["model", "target"])
    assert set(found.status) == {"done"}
    for column in ("psnr", "loss", "update_rms"):
        assert found[column]["mlp"].equals(found[column][added]), column


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path, capsys):
    grid = sweeps.write(tmp_path, MANY.replace("STRENGTHS", "[0.1, 0.3]"))
    before = sweeps.files(tmp_path)
    assert sweeps.run(grid, f"--workdir={tmp_path / 'run'}", "--dry_run") == 0
    first, *others = capsys.readouterr().out.splitlines()
    for said in ("48 cells;", "96 targets;", "each one program: 3;", "about ", "MB"):
        assert said in first
    assert "  seed: 0, 1" in others
    assert sum("16 cells, 32 targets" in line for line in others) == 3
    assert sweeps.files(tmp_path) == before and not (tmp_path / "run").exists()


def test_what_takes_over_an_hour_is_not_begun_unasked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost, "speed", lambda: 1e3)  # operations a second
    grid = sweeps.write(tmp_path, "steps = 10_000_000")
    line = sweeps.refused(capsys, grid, tmp_path / "run")
    assert "That is about" in line and " h," in line and "--yes" in line


def test_a_million_cells_are_counted_without_making_them(tmp_path, capsys, monkeypatch):
    made = sweeps.counted(monkeypatch)
    axes = "seed = {range = [0, 1000]}\nattack_lr = {linear = [0.01, 1.0], n = 1000}"
    grid = sweeps.write(tmp_path, axes)
    assert sweeps.run(grid, f"--workdir={tmp_path / 'run'}", "--dry_run") == 0
    assert len(made) == 1
    assert "1000000 cells: about" in capsys.readouterr().out
    line = sweeps.refused(capsys, grid, tmp_path / "run", "--yes")
    assert "1000000 combinations, expected at most 100000" in line


@pytest.mark.parametrize(
    "text, args, says",
    [
        ("", ["--grid=no.toml"], ["no.toml", "No such file"]),
        ("", ["--attack=auto"], ["attack = auto", "name its attack"]),
        ("", ["--images=-1"], ["--images=-1", "0 or more"]),
        ("", ["extra"], ["'extra'"]),
        ("", ["--sed=1"], ["sed"]),
        ("", ["--checkpoint=c.safetensors"], ["--checkpoint", "every cell"]),
        ("x64 = [false, true]", [], ["x64 = [false, true]", "one precision"]),
        ("seed = []", [], ["seed = []", "at least one value"]),
        ('split = "test[900:]"', [], ["--split=test[900:]"]),
        ('dataset = "photo"', [], ["--dataset=photo"]),
        ("batch_size = [1, 90]", [], ["--batch_size=90"]),
    ],
)
def test_bad_input_is_refused_in_one_line(text, args, says, tmp_path, capsys):
    grid = sweeps.write(tmp_path, text)
    line = sweeps.refused(capsys, grid, tmp_path / "run", *args)
    for fragment in says:
        assert fragment in line


def test_without_a_grid_or_an_attack(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sweeps.SMALL, "attack", '"auto"')
    grid = sweeps.write(tmp_path, "")
    assert "name its attack" in sweeps.refused(capsys, grid, tmp_path / "run")
    assert "--grid is missing" in sweeps.refused(capsys, "--images=1", tmp_path / "run")


def test_a_row_says_where_a_closed_form_reads_the_update(tmp_path):
    """The mlp's first layer gives one image away, whatever gradient matching finds."""
    text = 'model = "mlp"\nbatch_size = [1, 2]\nsteps = 2\ntargets = 1\n'
    grid = sweeps.write(tmp_path, text)
    assert sweeps.run(grid, f"--workdir={tmp_path / 'sweep'}") == 0
    found = sweeps.table(tmp_path / "sweep").set_index("batch_size")
    assert found.closed_form[1] == "analytic" and pd.isna(found.closed_form[2])

"""Sweeps in one process: the library's, and what the command line makes of a grid."""

import errno
import os
import signal
import threading
import time

import cli
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import sweeps
from PIL import Image
from test_driver import STEPS, TARGETS, make_quadratic

from experiments import groups, leases, parts, sweepdir
from invertjax import driver, sweep

cheap_compilation = cli.cheap_compilation  # a fixture


def make(shared, trial, cell):
    return make_quadratic(shared * cell["weight"], {"target": trial["target"] + cell["shift"]})


def library(cells, targets=3, make=make):
    keys = jax.random.split(jax.random.key(0), (targets, 2))
    trials = {"target": TARGETS[:targets]}
    return sweep.run(make, jnp.array(1.0), trials, cells, keys), (trials, keys)


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
        for got, want in zip(*map(jax.tree.leaves, (found.results, expected)), strict=True):
            np.testing.assert_allclose(got[c], want, rtol=1e-6, atol=1e-6)


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
            sweep.run(make, jnp.array(1.0), trials, cells, keys)

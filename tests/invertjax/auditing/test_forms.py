"""What people save in the place of a gradient is found out, and said."""

import jax
import numpy as np
import pytest
from support import toy

import invertjax
from invertjax import clients
from invertjax.auditing import Watch
from invertjax.driver import Cache

SHAPE = (1, *toy.SHAPE)
BATCH = toy.batch(1, label=2)
PARAMS = toy.init(0)
GRADIENT = clients.gradient(toy.loss_fn)(PARAMS, BATCH, jax.random.key(0))
CACHE = Cache()


def times(factor):
    return jax.tree.map(lambda leaf: factor * leaf, GRADIENT)


def audit(update, attack="analytic", **options):
    return invertjax.audit(
        jax.random.key(0),
        toy.loss_fn,
        PARAMS,
        update=update,
        shape=SHAPE,
        attack=attack,
        cache=CACHE,
        **options,
    )


@pytest.mark.parametrize(
    "update, says",
    [
        (times(1.0), None),
        (times(1e-3), None),  # of local training: the closed form knows no scale
        (times(-1.0), "other sign"),
        (jax.tree.map(lambda p, g: p - 1e-2 * g, PARAMS, GRADIENT), "the params after"),
    ],
)
def test_a_closed_form_is_told_what_it_reads(update, says):
    report = audit(update)
    assert report.rows[0]["labels"] == [2] and report.rows[0]["fit"] < 1e-5
    np.testing.assert_allclose(report.arrays[0]["image"], BATCH["image"], atol=1e-3)
    assert len(report.rows) == 1
    assert ("taken as" in report.verdict) == (says is not None)
    if says:
        assert says in report.verdict and says in report.summary["update_form"]
    assert "almost completely" in report.verdict and "rests on" in report.verdict
    assert "faithful" not in report.verdict


def test_what_fits_in_no_form_is_no_all_clear():
    random = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32), GRADIENT
    )
    report = audit(noise)
    assert report.rows[0]["fit"] > 0.1
    assert report.verdict.startswith("NOT FITTED") and "other sign" in report.verdict
    assert "says nothing about what the update gives away" in report.verdict


@pytest.mark.parametrize("factor", [-0.05, 1e25])  # whose square is too large
def test_the_factor_is_measured_for_attacks_that_see_it(factor):
    """Squared distances do: by half the gradient they find another image."""
    options = {"steps": 300, "labels": np.array([2])}
    report = audit(times(factor), "deep_leakage", **options)
    assert "a multiple" in report.verdict and report.rows[0]["fit"] < 0.1
    plain = audit(times(1.0), "deep_leakage", **options)
    assert plain.rows[0]["fit"] < 0.1 and "taken as" not in plain.verdict


def test_who_is_interrupted_while_forms_are_tried_has_no_verdict():
    """The first attack has ended; Ctrl-C comes with the first chunk of the next."""
    ended = []

    def check():
        if ended:
            raise KeyboardInterrupt

    watch = Watch(check=check, update=lambda row, arrays: ended.append(row))
    report = audit(times(-1.0), "inverting_gradients", steps=3, watch=watch)
    assert len(ended) == len(report.rows) == 1
    assert ended[0]["stopped"] == "budget" and ended[0]["fit"] > 0.1
    assert report.summary["interrupted"] is True
    assert report.verdict.startswith("NO VERDICT: the attack was interrupted")

"""Updates of which an attack made nothing: what was scored of them is only a start."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

import invertjax
from invertjax import clients, losses
from invertjax.auditing import report, strips


def row(target, psnr, loss):
    return {
        "target": target,
        "loss": loss,
        "steps": 5,
        "stopped": "no finite step" if loss is None else "budget",
        "labels": [0, 1],
        "update_rms": 1.0,
        "still_falling": False,
        "fit": 0.5 if loss is None else 1e-4,
        "fit_truth": 0.0,
        "psnr": [psnr, psnr + 2],
        "ssim": [0.1, 0.2] if loss is None else [0.7, 0.9],
        "label_recall": 0.0 if loss is None else 1.0,
        "labels_true": [0, 1],
    }


def found_of(rows):
    images = np.zeros((2, 2, 2, 1), np.float32)
    arrays = [{"image": images, "label": np.arange(2), "original": images}] * len(rows)
    facts = {
        "layout": "here",
        "seconds_compile": 1.0,
        "seconds_run": 1.0,
        "interrupted": False,
    }
    nulls = {"grey_image": {"psnr_mean": 10.0}}
    threats = {"labels": "known"}
    return report.reconstruction("some", rows, arrays, nulls, threats, facts)


def test_means_leave_out_what_failed():
    found = found_of([row(0, 30.0, 1e-3), row(1, 5.0, None), row(2, 34.0, 1e-3)])
    summary = found.summary
    assert summary["failed"] == 1 and summary["targets"] == 3
    assert summary["psnr_mean"] == 33.0  # of 31 and 35
    assert summary["psnr_std"] == 2.0 and summary["psnr_min"] == 31.0
    assert summary["ssim_mean"] == pytest.approx(0.8)
    assert summary["label_recall"] == 1.0
    np.testing.assert_array_equal(found.metrics["psnr"].values[1], [np.nan, np.nan])
    np.testing.assert_array_equal(found.metrics["fit"].values, [1e-4, np.nan, 1e-4])
    assert found.verdict.startswith("LEAKS: the update gives the images back")
    text = str(found)
    assert "over 2 targets (lowest 31.00); 1 failed, and are left out" in text
    assert [line for line in text.splitlines() if line.startswith("1 ")][0].split() == [
        *("1", "-", "-", "-", "5"),
        *("no", "finite", "step"),
    ]


def test_where_all_failed_there_is_no_mean():
    found = found_of([row(0, 5.0, None), row(1, 6.0, None)])
    assert found.summary["psnr_mean"] is found.summary["psnr_min"] is None
    assert found.summary["ssim_mean"] is found.summary["label_recall"] is None
    assert found.verdict.startswith("FAILED")
    assert "PSNR of 0 targets; 2 failed, and are left out" in str(found)
    json.dumps(found.summary, allow_nan=False)


def test_a_picture_gives_a_start_no_score():
    found = found_of([row(0, 30.0, 1e-3), row(1, 5.0, None)])
    lines = strips.strips(found.rows, found.arrays)
    captions = [captions for *_, captions in lines if captions]
    assert captions == [["30.0 dB", "32.0 dB"], ["-", "-"]]
    assert "failed" in lines[2][0] and "failed" not in lines[0][0]


def test_without_the_truth_a_start_has_no_fit():
    """A start that happens to fit is no reconstruction."""
    params, batch = toy.init(0), toy.batch(1)
    update = clients.gradient(toy.loss_fn)(params, batch, jax.random.key(0))

    def loss_fn(params, batch):  # whose update has no finite derivative
        root = jnp.sqrt(0 * jnp.sum(batch["image"]))
        return toy.loss_fn(params, batch) + root * params["last"]["bias"].sum()

    found = invertjax.audit(
        jax.random.key(0),
        loss_fn,
        params,
        update=update,
        shape=(1, *toy.SHAPE),
        attack="inverting_gradients",
        steps=2,
    )
    assert found.rows[0]["stopped"] == "no finite step"
    assert found.summary["fit"] is None and found.verdict.startswith("FAILED")
    assert str(found).splitlines()[2].split()[:3] == ["0", "-", "-"]


# What JAX has no forward-mode derivatives of, and what an attack does then.


@jax.custom_vjp
def own_tanh(x):
    return jnp.tanh(x)


def _slope(y, slope):
    return (slope * (1 - y**2),)


own_tanh.defvjp(lambda x: (own_tanh(x),) * 2, _slope)


def of_own(params, batch):
    flat = batch["image"].reshape(len(batch["image"]), -1)
    hidden = own_tanh(toy.dense(params["first"], flat))
    last = losses.classification(lambda p, _: toy.dense(p["last"], hidden))
    return last(params, batch)


def of_own_images(params, batch):
    """Nobody differentiates along these forwards."""
    return toy.loss_fn(params, {**batch, "image": own_tanh(batch["image"])})


def audited(loss_fn):
    return invertjax.audit(
        jax.random.key(0),
        loss_fn,
        toy.init(0),
        batches=jax.tree.map(lambda leaf: leaf[None], toy.batch(1)),
        attack="inverting_gradients",
        steps=2,
        control=False,
    )


def test_other_derivatives_are_a_fact_of_the_report():
    with pytest.warns(UserWarning, match="rule='plain'"):
        found = audited(of_own)
    assert "rule='plain'" in found.summary["derivatives"]
    assert f"Derivatives: {found.summary['derivatives']}" in str(found)


@pytest.mark.parametrize("loss_fn", [toy.loss_fn, of_own_images])
def test_usual_derivatives_are_none(loss_fn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = audited(loss_fn)
    assert "derivatives" not in found.summary and "Derivatives" not in str(found)

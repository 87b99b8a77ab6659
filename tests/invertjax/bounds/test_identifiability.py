"""Bounds on the error of a batch: singular values, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from invertjax import bounds
from invertjax.bounds import identifiability

EPS = float(np.finfo(np.float32).eps)
PARAMS = toy.init(0, hidden=16)
TRUTH = toy.batch(1, size=2)


def linear(singular, equations=60, seed=0, dtype=np.float64):
    """A Jacobian `[m, n]` with such singular values."""
    normal = np.random.default_rng(seed).standard_normal
    left, _ = np.linalg.qr(normal((equations, len(singular))))
    right, _ = np.linalg.qr(normal((len(singular),) * 2))
    return ((left * singular) @ right.T).astype(dtype)


def test_singular_values_of_a_linear_model():
    wanted = np.array([8, 4, 2, 1, 0.5, 0.25, 0.1, 0.03])
    matrix = linear(wanted)
    residual = np.random.default_rng(1).standard_normal(60)
    found = bounds.spectrum(matrix.T, residual, (2, 2, 2, 1))
    np.testing.assert_allclose(found.singular, wanted)
    np.testing.assert_allclose(found.singular, np.linalg.svd(matrix)[1])
    inverse = np.linalg.pinv(matrix)
    np.testing.assert_allclose(found.step.ravel(), inverse @ residual)
    blocks = [np.linalg.norm(inverse[i : i + 4], 2) for i in (0, 4)]
    np.testing.assert_allclose(found.amplified, blocks)
    assert np.all(found.amplified <= 1 / 0.03 + 1e-6)
    whole = bounds.spectrum(matrix.T, residual, (1, 2, 4, 1))
    np.testing.assert_allclose(whole.amplified, 1 / 0.03)
    moved = np.linalg.norm(matrix @ found.weakest.ravel())
    assert found.resolved and moved == pytest.approx(0.03)


def test_the_jacobian_is_that_of_jax():
    residual = jax.jit(at(gradient(TRUTH)))
    images = TRUTH["image"]
    found = jax.jit(lambda x: bounds.jacobian(residual, x))(images)
    wanted = jax.jit(jax.jacfwd(residual))(images)
    np.testing.assert_allclose(found.T, wanted.reshape(-1, images.size), atol=1e-6)


def test_what_rounding_hides_is_not_resolved():
    """Of float32 about six digits are left: a smaller ratio could as well be zero."""
    for least, resolved in ((1e-3, True), (1e-6, False), (0.0, False)):
        matrix = linear([1, 1, 0.5, least], dtype=np.float32)
        found = bounds.spectrum(matrix.T, np.zeros(60, np.float32), (1, 2, 2, 1))
        assert found.resolved == resolved
        assert np.isfinite(found.amplified).all() == resolved


def flat(update):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(update)])


def at(observed, loss_fn=toy.loss_fn, params=PARAMS, labels=TRUTH["label"]):
    """`images -> [m]`, the update of the images minus the one observed."""

    def residual(images):
        batch = {"image": images, "label": labels}
        return flat(jax.grad(loss_fn)(params, batch)) - observed

    return residual


@functools.partial(jax.jit, static_argnames="loss_fn")
def gradient(batch, params=PARAMS, loss_fn=toy.loss_fn):
    return flat(jax.grad(loss_fn)(params, batch))


def identified(observed, images=TRUTH["image"], **options):
    residual = at(observed, **options)
    jacobian = jax.jit(lambda x: bounds.jacobian(residual, x))
    size = float(jnp.linalg.norm(observed))
    compiled = jax.jit(residual)
    return bounds.identified(
        lambda x: np.asarray(compiled(x)),
        lambda x: np.asarray(jacobian(x)),
        np.asarray(images),
        size,
        EPS,
    )


def test_errors_are_below_their_bounds():
    observed = gradient(TRUTH)
    for seed, size in enumerate((0.0, 1e-5, 1e-4)):
        noise = np.random.default_rng(seed).standard_normal(TRUTH["image"].shape)
        images = TRUTH["image"] + toy.floats(size * noise)
        found = identified(observed, images)
        errors = np.sqrt(np.mean((images - TRUTH["image"]) ** 2, axis=(1, 2, 3)))
        assert found.reason == "" and found.errors.shape == (2,)
        assert np.all(errors <= found.errors)
        assert np.all(found.errors < 0.01)


def noisy(size):
    observed = np.asarray(gradient(TRUTH))
    noise = np.random.default_rng(0).standard_normal(observed.shape)
    rms = float(np.sqrt(np.mean(observed**2)))
    return toy.floats(observed + size * rms * noise)


@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_noise_of_which_nobody_knows_is_no_rounding(size):
    """Not even where the attack has found the truth itself."""
    assert "not explained" in identified(noisy(size)).reason


def test_the_best_fit_to_noise_is_no_solution():
    """A minimum of the misfit, from which no step leads on."""
    observed, images = noisy(3e-4), np.asarray(TRUTH["image"])
    residual = jax.jit(at(observed))
    columns = np.asarray(jax.jit(lambda x: bounds.jacobian(residual, x))(images))
    for _ in range(3):
        step = bounds.spectrum(columns, np.asarray(residual(images)), images.shape).step
        images = (images - step).astype(np.float32)
    found = identified(observed, images)
    assert found.reason == "the update is not explained to within rounding"
    assert np.isinf(found.errors).all()


def cropped(params, batch):
    """Nothing of the update depends on the last column of an image."""
    return toy.loss_fn(params, {**batch, "image": batch["image"].at[:, :, -1].set(0.0)})


def test_what_the_update_does_not_show_is_not_identified():
    found = identified(gradient(TRUTH, loss_fn=cropped), loss_fn=cropped)
    assert found.reason == "some change of the batch leaves the update as it is"
    same = {"image": jnp.repeat(TRUTH["image"][:1], 2, 0), "label": jnp.ones(2, int)}
    found = identified(gradient(same), same["image"], labels=same["label"])
    assert found.reason == "some change of the batch leaves the update as it is"


def test_too_few_equations_are_refused():
    params = toy.init(0, hidden=2)  # 83 for 72 pixels
    found = identified(gradient(TRUTH, params), params=params)
    assert "83 equations for 72 unknowns" in found.reason
    assert "5000 unknowns" in str(bounds.refuses(5_000, 10**6))
    assert "entries" in str(bounds.refuses(1_000, 10**6))
    assert bounds.refuses(1_000, 10**4) is None


def kinked(params, batch):
    """Bent near what was found, so that the update falls back on itself."""
    image = batch["image"]
    near = 2e-5 * jnp.sin((image - TRUTH["image"]) / 2e-5)
    return toy.loss_fn(params, {**batch, "image": TRUTH["image"] + near})


def test_an_update_that_is_not_linear_so_far_proves_nothing():
    found = identified(gradient(TRUTH), loss_fn=kinked)
    assert found.reason == "the update is not linear around the batch"


def test_what_is_not_finite_is_not_explained():
    assert "not explained" in identified(jnp.nan * gradient(TRUTH)).reason
    assert identifiability.TOLERATED == 10 ** (-40 / 20)

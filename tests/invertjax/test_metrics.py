"""Metrics against closed forms and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from invertjax import metrics

_ssim = jax.jit(metrics.ssim)


def _images(seed, *shape):
    return np.random.default_rng(seed).random(shape, np.float32)


def test_psnr_of_a_constant_offset():
    image = jnp.full((4, 4, 1), 0.5)
    assert metrics.mse(image + 0.1, image) == pytest.approx(0.01, rel=1e-5)
    assert metrics.psnr(image + 0.1, image) == pytest.approx(20.0, abs=1e-3)
    assert metrics.psnr(image + 0.1, image, data_range=10) == pytest.approx(
        40, abs=1e-3
    )


def test_psnr_is_scikit_images():
    a, b = _images(0, 9, 8, 3), _images(1, 9, 8, 3)
    expected = skimage_metrics.peak_signal_noise_ratio(a, b, data_range=1)
    assert metrics.psnr(a, b) == pytest.approx(expected, abs=1e-4)


def test_psnr_of_equal_images_is_infinite_or_the_cap():
    image = jnp.full((4, 4, 1), 0.5)
    assert jnp.isposinf(metrics.psnr(image, image))
    assert metrics.psnr(image, image, cap=160.0) == 160.0
    assert metrics.psnr(image + 0.1, image, cap=160.0) == pytest.approx(20.0, abs=1e-3)


_FLAT = np.full((12, 12, 3), 0.7, np.float32)
_PAIRS = {
    "random": (_images(0, 12, 15, 3), _images(1, 12, 15, 3)),
    "grey": (_images(0, 12, 12, 1), _images(1, 12, 12, 1)),
    "one window": (_images(0, 7, 7, 3), _images(1, 7, 7, 3)),
    "similar": (
        _images(0, 12, 12, 3),
        _images(0, 12, 12, 3) + _images(1, 12, 12, 3) / 9,
    ),
    "negative": (_images(0, 12, 12, 3), 1 - _images(0, 12, 12, 3)),
    "equal": (_images(0, 12, 12, 3), _images(0, 12, 12, 3)),
    "constant": (_FLAT, _FLAT - 0.3),
    "equal constant": (_FLAT, _FLAT),
    "nearly constant": (_FLAT, _FLAT + 0.01 * _images(0, 12, 12, 3)),
    "black and white": (0 * _FLAT, 0 * _FLAT + 1),
}


@pytest.mark.parametrize("name", _PAIRS)
def test_ssim_is_scikit_images(name):
    a, b = _PAIRS[name]
    expected = skimage_metrics.structural_similarity(
        a.astype(np.float64), b.astype(np.float64), data_range=1, channel_axis=-1
    )
    # float32 moments about window means: error a few 1e-7 beside c2 = 9e-4, on average
    # less; the reference is float64
    assert _ssim(a, b) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_equal_images_is_one_and_scales_with_the_range():
    a, b = _PAIRS["random"]
    assert _ssim(a, a) == pytest.approx(1.0, abs=1e-6)
    scaled = jax.jit(metrics.ssim)(255 * a, 255 * b, data_range=255)
    assert scaled == pytest.approx(float(_ssim(a, b)), abs=1e-5)


def test_ssim_batches_and_differentiates():
    a, b = _images(0, 4, 8, 9, 3), _images(1, 4, 8, 9, 3)
    batched = jax.jit(jax.vmap(metrics.ssim))(a, b)
    single = [_ssim(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(batched, single, atol=1e-6)
    gradient = jax.jit(jax.grad(metrics.ssim))(
        jnp.asarray(_FLAT), jnp.asarray(_FLAT) - 0.1
    )
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize(
    "shape, other, message",
    [
        ((6, 12, 3), (6, 12, 3), r"H and W of shape=\(6, 12, 3\) >= 7"),
        ((12, 12), (12, 12), r"\[H, W, C\]"),
        ((12, 12, 3), (12, 12, 1), "one shape"),
    ],
)
def test_ssim_refuses(shape, other, message):
    with pytest.raises(ValueError, match=message):
        metrics.ssim(jnp.zeros(shape), jnp.zeros(other))


def test_pairwise_mse_against_float64_numpy():
    a, b = _images(0, 5, 6, 6, 3), _images(1, 4, 6, 6, 3)
    differences = a[:, None].astype(np.float64) - b[None]
    expected = np.mean(differences**2, axis=(2, 3, 4))
    np.testing.assert_allclose(metrics.pairwise_mse(a, b), expected, rtol=1e-5)


def test_pairwise_mse_keeps_reconstructions_of_150_db():
    # offset of 2^-25 on values in [.25, .5), whose spacing it is: exact in float32
    originals = 0.25 + _images(0, 4, 16, 16, 3) / 8
    near = originals + np.float32(2**-25)
    expected = np.mean((near.astype(np.float64) - originals) ** 2, axis=(1, 2, 3))
    assert np.all(-10 * np.log10(expected) > 149)
    got = np.diag(metrics.pairwise_mse(near, originals))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_assignment_undoes_a_permutation():
    originals = _images(0, 8, 5, 5, 1)
    order = np.random.default_rng(1).permutation(8)
    found = metrics.assignment(originals[order] + 0.01, originals)
    np.testing.assert_array_equal(order[found], np.arange(8))


def test_a_reconstruction_counts_once():
    # greedily, the first guess is the better one for both; each may serve one only
    originals = jnp.array([0.0, 0.4]).reshape(2, 1, 1, 1)
    guesses = jnp.array([0.2, 0.9]).reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(metrics.assignment(guesses, originals), [0, 1])
    swapped = metrics.assignment(guesses[::-1], originals)
    np.testing.assert_array_equal(swapped, [1, 0])


def test_assignment_minimises_the_sum_not_each():
    # sum of squares .36 + .36 = .72 crosswise for (0, 1), .01 + 1.21 = 1.22 greedily
    originals = jnp.array([0.5, 0.0]).reshape(2, 1, 1, 1)
    guesses = jnp.array([0.6, 1.1]).reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(metrics.assignment(guesses, originals), [1, 0])


def test_assignment_with_more_guesses_and_with_non_finite_ones():
    originals = _images(0, 3, 4, 4, 1)
    broken = np.full((1, 4, 4, 1), np.nan, np.float32)
    guesses = np.concatenate([broken, originals[::-1]])
    np.testing.assert_array_equal(metrics.assignment(guesses, originals), [3, 2, 1])
    two = np.concatenate([broken, originals[:2]])
    np.testing.assert_array_equal(metrics.assignment(two, originals), [1, 2, 0])
    with pytest.raises(ValueError, match="at least 3 reconstructions.*got 2"):
        metrics.assignment(guesses[:2], originals)


def test_align_moves_labels_with_their_images():
    original = {"image": _images(0, 5, 4, 4, 3), "label": jnp.arange(5)}
    order = np.array([3, 0, 4, 2, 1])
    mixed = jax.tree.map(lambda leaf: leaf[order], original)
    aligned = metrics.align(mixed, original)
    np.testing.assert_array_equal(aligned["label"], jnp.arange(5))
    np.testing.assert_array_equal(aligned["image"], original["image"])


def test_score_clips_assigns_and_caps():
    original = {"image": np.stack([_images(0, 8, 8, 3), np.ones((8, 8, 3))])}
    # the white one 50% too bright, the random one 0.1 off in every pixel but clipped
    guess = {"image": np.stack([np.full((8, 8, 3), 1.5), original["image"][0] + 0.1])}
    scores = metrics.score(guess, original)
    assert scores["order"] == [1, 0]
    off = np.minimum(original["image"][0] + 0.1, 1) - original["image"][0]
    np.testing.assert_allclose(scores["mse"], [np.mean(off**2), 0], rtol=1e-4)
    assert scores["psnr"] == pytest.approx([-10 * np.log10(np.mean(off**2)), 160], 1e-4)
    assert scores["ssim"][1] == pytest.approx(1.0, abs=1e-6)
    assert all(isinstance(value, float) for value in scores["psnr"])


def test_score_of_tiny_images_has_no_ssim():
    batch = {"image": _images(0, 2, 6, 6, 1)}
    assert set(metrics.score(batch, batch)) == {"mse", "psnr", "order"}


@pytest.mark.parametrize(
    "true, guess, expected",
    [
        ([0, 1, 2, 3], [3, 2, 1, 0], 1.0),
        ([1, 1, 1, 2], [1, 2, 2, 2], 0.5),
        ([0, 0, 0, 0], [1, 2, 3, 4], 0.0),
        ([4, 4, 4, 0], [4, 4, 4, 4], 0.75),
    ],
)
def test_label_recall_is_the_overlap_of_multisets(true, guess, expected):
    assert metrics.label_recall(jnp.array(true), jnp.array(guess), 5) == expected


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.label_recall(jnp.zeros(3, int), jnp.zeros(2, int), 2), "many"),
        (
            lambda: metrics.pairwise_mse(jnp.zeros((2, 3)), jnp.zeros((2, 4))),
            "one shape",
        ),
    ],
)
def test_shapes_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scores_of_narrow_images_are_those_of_float32(dtype):
    """At 60 dB a square is 1e-6, which float16 rounded to zero: the PSNR was infinite.
    Values are those that the type holds, so that nothing but the sums could differ."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.25, 0.5, size=(2, 8, 8, 1)), dtype)
    step = np.float32(2.0**-10 if dtype == "float16" else 2.0**-7)
    other = images + jnp.asarray(step * rng.choice([-1, 1], images.shape), dtype)
    wide = [x.astype(jnp.float32) for x in (images, other)]
    found, expected = metrics.by_image(images, other), metrics.by_image(*wide)
    for name, values in expected.items():
        assert found[name].dtype == jnp.float32
        np.testing.assert_array_equal(found[name], values)
    if dtype == "float16":
        np.testing.assert_allclose(found["psnr"], 60.2, atol=0.1)
    np.testing.assert_array_equal(
        metrics.pairwise_mse(images, other), metrics.pairwise_mse(*wide)
    )

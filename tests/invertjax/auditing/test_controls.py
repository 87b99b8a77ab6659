"""What is reached without knowing the update."""

import numpy as np
import pytest

from invertjax.auditing import controls


def test_null_baselines_of_known_images():
    """mse of a constant guess c on a constant image x is (x - c)^2."""
    truth = {"image": np.zeros((3, 2, 8, 8, 1), np.float32)}
    public = np.full((5, 8, 8, 1), 0.1, np.float32)
    found = controls.guesses(truth, public, seed=0)
    for name in ("mean_image", "random_image"):
        assert found[name]["psnr_mean"] == pytest.approx(20.0, abs=1e-4)
        assert found[name]["psnr_std"] == pytest.approx(0.0, abs=1e-4)


def test_random_guesses_follow_the_seed():
    random = np.random.default_rng(0)
    truth = {"image": random.uniform(size=(3, 2, 8, 8, 1)).astype(np.float32)}
    public = random.uniform(size=(50, 8, 8, 1)).astype(np.float32)
    found = [
        controls.guesses(truth, public, seed)["random_image"] for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_without_public_images_a_grey_one_is_to_be_beaten():
    """mse of 0.5 against 0.4 is 0.01: 20 dB."""
    truth = {"image": np.full((2, 3, 8, 8, 1), 0.4, np.float32)}
    found = controls.guesses(truth, None, seed=0)
    assert found.keys() == {"grey_image"}
    assert found["grey_image"]["psnr_mean"] == pytest.approx(20.0, abs=1e-4)


def test_the_blind_guess_is_the_mean_public_image():
    rng = np.random.default_rng(0)
    truth, public = rng.uniform(size=(2, 4, 4, 1)), rng.uniform(size=(9, 4, 4, 1))
    errors = ((truth - public.mean(0)) ** 2).mean((1, 2, 3))
    found = controls.blind_guess(truth, public)
    assert found == pytest.approx(np.mean(-10 * np.log10(errors)))
    grey = -10 * np.log10(((truth - 0.5) ** 2).mean((1, 2, 3)))
    assert controls.blind_guess(truth, None) == pytest.approx(np.mean(grey))
    assert controls.blind_guess(truth[:1], truth[:1]) == 160

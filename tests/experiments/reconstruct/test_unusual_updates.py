"""Updates that few people share: of images of many channels, and of enormous size."""

import io

import jax
import numpy as np
import pytest
from PIL import Image
from support import cli, toy

from invertjax import clients
from invertjax.cli import arrays

cheap_compilation = cli.cheap_compilation  # a fixture


def own(path, channels, scale):
    """Flags of a saved update of one image, and the image."""
    params = toy.init(0, inputs=36 * channels)
    batch = toy.batch(1, shape=(6, 6, channels))
    update = clients.gradient(toy.loss_fn)(params, batch, jax.random.key(0))
    update = jax.tree.map(lambda leaf: np.float32(scale) * leaf, update)
    for name, tree in (("update", update), ("params", params)):
        np.savez(path / f"{name}.npz", **arrays.flat(tree))
    return (
        f"--update={path / 'update.npz'}",
        f"--params={path / 'params.npz'}",
        "--loss=support.toy:loss_fn",
        f"--image_shape=6,6,{channels}",
        f"--num_classes={toy.CLASSES}",
        "--batch_size=1",
    ), batch


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_images_of_any_number_of_channels_are_drawn(tmp_path, channels):
    flags, batch = own(tmp_path, channels, 1.0)
    out = tmp_path / "run"
    assert cli.run(*flags, "--attack=analytic", f"--workdir={out}") == 0
    np.testing.assert_allclose(cli.arrays(out)["image"][0], batch["image"], atol=1e-4)
    with Image.open(io.BytesIO((out / "grid.png").read_bytes())) as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("scale", [1e20, 1e30, 3e37])
def test_an_enormous_update_is_one(tmp_path, capsys, scale):
    """Squares of float32 are infinite from 1.8e19 on."""
    flags, batch = own(tmp_path, 1, scale)
    out = tmp_path / "run"
    assert cli.run(*flags, "--attack=auto", f"--workdir={out}") == 0
    np.testing.assert_allclose(cli.arrays(out)["image"][0], batch["image"], atol=1e-4)
    summary, said = cli.summary(out), capsys.readouterr().out
    assert summary["attack"] == "analytic" and "update_form" not in summary
    assert 0.01 * scale < summary["update_rms_mean"] < scale
    assert "almost completely" in said


def test_an_attack_whose_distance_overflows_says_that_it_failed(tmp_path, capsys):
    """Not even the factor that would make the update a smaller one is found here."""
    flags, _ = own(tmp_path, 1, 1e30)
    random = np.random.default_rng(0)
    with np.load(tmp_path / "update.npz") as archive:
        noise = {
            key: np.float32(1e30) * random.normal(size=leaf.shape).astype(np.float32)
            for key, leaf in archive.items()
        }
    np.savez(tmp_path / "update.npz", **noise)
    out = tmp_path / "run"
    attack = ("--attack=deep_leakage", "--steps=3")
    assert cli.run(*flags, *attack, f"--workdir={out}") == 1
    (row,) = cli.rows(out)
    assert row["stopped"] == "no finite step" and row["loss"] is None
    assert cli.summary(out)["failed"] == 1
    assert "FAILED: no trial had a finite objective" in capsys.readouterr().out

"""Images that are targets are not public, wherever else they lie."""

import numpy as np
import pytest
from PIL import Image
from support import cli
from support.federations import parsed
from support.refusals import says

from experiments import data
from experiments.data import embedded
from experiments.federate import training
from invertjax.driver import Cache

PHOTOS = ("--model=mlp", "--width=4", "--image_size=8", "--attack=inverting_gradients")


def _save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two images for tests; of six for training two are the same, in other files."""
    images = data.load("photos", image_size=8, limit=8).images
    for i, image in enumerate(images[:2]):
        _save(image, tmp_path / "test" / "ab"[i] / "0.png")
    for i, image in enumerate(images[2:6]):
        _save(image, tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    _save(images[0], tmp_path / "train" / "a" / "copy.bmp")
    _save(images[1], tmp_path / "train" / "a" / "other class.tif")
    return tmp_path


def _read(folder, *args):
    return cli.inputs(*PHOTOS, f"--dataset=folder:{folder}", *args)


def test_targets_are_left_out_of_another_split(folder, capsys):
    """By their pixels, whatever the file and the class; one line says how many."""
    found = _read(folder, "--targets=2")
    assert len(found.truth["image"]) == 2
    assert found.public.images.shape == (4, 8, 8, 3)
    assert not data.shared(found.public.images, found.truth["image"][:, 0]).any()
    np.testing.assert_array_equal(found.public.labels, [0, 1, 0, 1])
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "left out 2 of 6" in line
    assert f"folder:{folder}" in line and "--train_split=train" in line


def test_only_those_that_are_attacked_are_left_out(folder, capsys):
    found = _read(folder, "--targets=1")
    assert len(found.public.images) == 5
    assert "left out 1 of 6" in capsys.readouterr().err


def test_nothing_left_is_refused(folder):
    for path in (folder / "train").glob("*/[0-9].png"):
        path.unlink()
    call = lambda: _read(folder, "--targets=2")  # noqa: E731
    says("--train_split=train", "--split=test", "only images", call=call)


def test_targets_may_be_equal_among_themselves(folder, capsys):
    for path in (folder / "train").glob("a/[c-o]*"):
        path.unlink()
    _save(data.load("photos", image_size=8).images[0], folder / "test" / "b" / "0.png")
    found = _read(folder, "--targets=2")
    np.testing.assert_array_equal(*found.truth["image"])
    assert len(found.public.images) == 4 and not capsys.readouterr().err


def test_sources_that_come_along_do_too(monkeypatch, capsys):
    def overlapping(split):
        found = embedded.faces("test")
        return found if split == "test" else found._replace(size=9)

    monkeypatch.setitem(embedded.SOURCES, "mine", overlapping)
    found = cli.inputs(*PHOTOS, "--dataset=mine", "--targets=3")
    faces = data.load("faces", image_size=8).images
    np.testing.assert_array_equal(found.public.images, faces[3:9])
    assert "--dataset=mine" in capsys.readouterr().err


@pytest.mark.parametrize("name", embedded.SOURCES)
def test_what_comes_along_does_not_overlap(name, capsys):
    """So that no figure of theirs has changed; nor do their images as they are."""
    test, train = (data.load(name, split) for split in ("test", "train"))
    assert not data.shared(test.images, train.images).any()
    found = cli.inputs(*PHOTOS, f"--dataset={name}", "--train_steps=1")
    assert len(found.public.images) == len(train.images)
    assert not capsys.readouterr().err


def test_images_are_shared_pixel_for_pixel():
    rng = np.random.default_rng(0)
    images = rng.random((6, 4, 4, 3), np.float32)
    others = images[[4, 1, 1]].copy()
    others[0, 0, 0, 0] += np.float32(1e-6)
    # The sum of its pixels is another's, and the image is not.
    others = np.concatenate([others, images[5:, ::-1]])
    np.testing.assert_array_equal(data.shared(images, others), np.arange(6) == 1)
    assert not data.shared(images, others[:, :2]).any()
    assert not data.shared(images[:0], others).any()


def _federation(folder, *args):
    flags = ("--batch_size=1", "--clients=2", "--participants=2", "--rounds=1")
    (of, victim, _, clients, _, run), plan = parsed(
        *PHOTOS, f"--dataset=folder:{folder}", *flags, *args
    )
    return training.prepare(of, victim, clients, run, plan, cache=Cache())


def test_a_federation_is_tested_on_what_no_client_has(folder, capsys):
    """These are its attacker's public images, too."""
    (folder / "train" / "a" / "other class.tif").unlink()
    trained = _federation(folder)
    assert len(trained.examples.images) == 5
    np.testing.assert_array_equal(trained.test.labels, [1])
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--split=test: left out 1 of 2" in line


def test_a_federation_that_is_tested_on_its_own_examples_is_refused(folder):
    call = lambda: _federation(folder, "--split=train")  # noqa: E731
    says("--split=train", "--train_split=train", "only images", call=call)

"""Sources of images: what they hold, and what they say when they cannot."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from support.refusals import says
from support.tfds_sets import describe

from experiments import data
from experiments.data import embedded
from experiments.data.base import resize

TFDS_DIR = os.environ.get("TFDS_DATA_DIR")
ROOT = pathlib.Path(__file__).parents[3]

needs_tfds = pytest.mark.skipif(
    not TFDS_DIR, reason="TFDS_DATA_DIR names no folder of prepared TFDS sets"
)


@pytest.fixture
def offline(monkeypatch):
    class Refuse(socket.socket):  # a class, because `ssl` inherits from it
        def __init__(self, *args, **kwargs):
            raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", Refuse)
    monkeypatch.setattr(socket, "getaddrinfo", Refuse)


# Photographs.


@pytest.mark.parametrize(
    "split, image_size, shape",
    [
        ("test", None, (80, 32, 32, 3)),
        ("train", None, (512, 32, 32, 3)),
        ("test[:4]", 64, (4, 64, 64, 3)),
        ("test[-2:]", 8, (2, 8, 8, 3)),
    ],
)
def test_photos_are_balanced_and_in_range(split, image_size, shape):
    photos = data.load("photos", split, image_size=image_size)
    assert photos.images.shape == shape and photos.images.dtype == np.float32
    assert photos.images.min() >= 0 and photos.images.max() <= 1
    assert photos.images.std(axis=(1, 2, 3)).min() > 0  # no blank crop
    assert photos.labels.dtype == np.int32 and photos.num_classes == 8
    assert (photos.name, photos.split) == ("photos", split)
    start = int(split[5:-2] or 0) if split == "test[-2:]" else 0
    expected = (np.arange(shape[0]) + start) % 8
    np.testing.assert_array_equal(photos.labels, expected)


def test_first_photos_are_the_named_motifs():
    """Against skimage's own arrays, averaged over blocks instead of resized."""
    import skimage

    motifs = [
        (skimage.data.astronaut(), 10, 140, 170),
        (skimage.data.chelsea(), 55, 130, 230),
        (skimage.data.coffee(), 10, 120, 330),
        (skimage.data.rocket(), 130, 250, 140),
    ]
    photos = data.load("photos", limit=4)
    assert photos.class_names[:4] == ("astronaut", "cat", "coffee", "rocket")
    for image, (picture, top, left, side) in zip(photos.images, motifs, strict=True):
        crop = picture[top : top + side, left : left + side] / 255
        # Lanczos keeps means up to clipping and 8-bit rounding: at most 0.0006
        # measured. A crop 10 pixels lower differs by 0.0038 or more.
        for part, whole in ((image[:16], crop[: side // 2]), (image, crop)):
            np.testing.assert_allclose(
                part.mean((0, 1)), whole.mean((0, 1)), atol=0.002
            )


def test_resizing_averages():
    """One-pixel stripes shrink to grey; picking pixels would keep black and white."""
    stripes = np.tile(np.uint8([0, 255]), (32, 16))[..., None]
    # 125 to 130 measured but for the border, where the filter is cut off.
    np.testing.assert_allclose(resize(stripes, 8)[:, 2:-2], 127.5, atol=5)
    assert resize(stripes, 32) is stripes


def test_photos_are_saved_exactly():
    """Pixels are uint8 / 255, so a PNG of a target is the target."""
    images = data.load("photos", limit=8).images
    levels = np.round(images * 255).astype(np.uint8)
    np.testing.assert_array_equal(levels.astype(np.float32) / np.float32(255), images)


def test_photos_do_not_change():
    first, again = data.load("photos", "train"), data.load("photos", "train")
    np.testing.assert_array_equal(first.images, again.images)
    embedded._picture.cache_clear()
    np.testing.assert_array_equal(first.images, data.load("photos", "train").images)


@pytest.mark.parametrize("photo", embedded.PHOTOS, ids=lambda photo: photo.name)
def test_train_crops_share_no_pixel_with_test_crops(photo):
    """Painted on the photograph: no pixel is in both, and no crop leaves it."""
    height, width = embedded._picture(photo.file).shape[:2]
    painted = {}
    for split, boxes in (
        ("test", embedded._test_boxes(photo)),
        ("train", embedded._train_boxes(photo)),
    ):
        painted[split] = np.zeros((height, width), bool)
        assert len(set(boxes)) == len(boxes)
        for top, left, side in boxes:
            assert min(top, left) >= 0 and top + side <= height and left + side <= width
            painted[split][top : top + side, left : left + side] = True
    assert not (painted["test"] & painted["train"]).any()


def test_photos_come_from_the_wheel(monkeypatch, tmp_path):
    """A file that is missing is an error, not a download."""
    import skimage

    monkeypatch.setattr(skimage, "data_dir", str(tmp_path))
    embedded._picture.cache_clear()
    says("lacks", "astronaut.png", "pip install", call=lambda: data.load("photos"))


# Faces.


def test_faces_are_the_file_and_targets_are_faces():
    import skimage

    stored = skimage.data.lfw_subset()  # 100 faces, then 100 backgrounds
    test, train = data.load("faces"), data.load("faces", "train")
    assert test.images.shape == (50, 25, 25, 1)
    assert train.images.shape == (150, 25, 25, 1)
    assert test.class_names == ("face", "background")
    np.testing.assert_array_equal(test.labels, [0] * 25 + [1] * 25)
    np.testing.assert_array_equal(train.labels, [0, 1] * 75)
    joined = {
        label: np.concatenate(
            [split.images[split.labels == label, ..., 0] for split in (test, train)]
        )
        for label in (0, 1)
    }
    # Rounding to 8 bits moves a pixel by half a level; each image appears once.
    for label, rows in ((0, stored[:100]), (1, stored[100:])):
        np.testing.assert_allclose(joined[label], rows, atol=0.5 / 255 + 1e-6)


def test_faces_resize():
    faces = data.load("faces", image_size=32, limit=3)
    assert faces.images.shape == (3, 32, 32, 1)
    native = data.load("faces", limit=3).images
    # Enlarging keeps means but for clipping and rounding: 0.00015 measured.
    np.testing.assert_allclose(
        faces.images.mean((1, 2, 3)), native.mean((1, 2, 3)), atol=0.001
    )


# Splits, slices, sizes.


@pytest.mark.parametrize(
    "options, parts",
    [
        (dict(split="validation"), ("Unknown split 'validation'", "train or test")),
        (dict(split="test[:10%]"), ("test[:10%]", "whole numbers")),
        (dict(split="test[90:]"), ("No images", "holds 80")),
        (dict(limit=0), ("limit=0", ">= 1")),
        (dict(image_size=-3), ("image_size=-3", ">= 1")),
    ],
)
@pytest.mark.parametrize("function", [data.load, data.check])
def test_options_are_checked(function, options, parts):
    says(*parts, call=lambda: function("photos", **options))


def test_slices_and_limits_select():
    images = data.load("photos").images
    np.testing.assert_array_equal(data.load("photos", "test[4:8]").images, images[4:8])
    part = data.load("photos", "test[4:]", limit=2)
    np.testing.assert_array_equal(part.images, images[4:6])
    assert data.check("photos", "test[4:]", limit=2) == 2
    assert data.check("photos") == 80


# TensorFlow Datasets.


@pytest.mark.parametrize(
    "name, hint",
    [
        ("cifer10", "did you mean cifar10"),
        ("Fashion-MNIST", "fashion_mnist"),
        ("photo", "photos"),
        ("folder", "folder:PATH"),
        ("", "photos, faces, folder:PATH"),
        ("no/such/path/at/all", "photos, faces, folder:PATH"),
    ],
)
def test_unknown_names_get_near_misses(tmp_path, offline, name, hint):
    call = lambda: data.check(name, data_dir=str(tmp_path))  # noqa: E731
    says(f"Unknown data set {name!r}", hint, call=call)


def test_a_path_is_told_about_folders(tmp_path):
    says(f"'folder:{tmp_path}'", call=lambda: data.check(str(tmp_path)))


@pytest.mark.parametrize("function", [data.check, data.load])
@pytest.mark.parametrize("by_environment", [False, True])
def test_not_prepared_says_how(
    tmp_path, offline, monkeypatch, function, by_environment
):
    import tensorflow_datasets  # noqa: F401  (its import may do what it likes)

    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    folder = tmp_path / "sets"
    if by_environment:
        monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    message = says(
        "'cifar10' is not prepared",
        str(folder / "cifar10"),
        "pip install tensorflow",
        f"tfds.builder('cifar10', data_dir='{folder}', file_format='array_record')",
        call=lambda: function(
            "cifar10", data_dir=None if by_environment else str(folder)
        ),
    )
    assert not waited  # TFDS sleeps before it tries again
    assert not folder.exists()
    compile(message.split('-c "')[1].rstrip('"'), "command", "exec")


@pytest.mark.parametrize(
    "info, split, parts",
    [
        ({"fileFormat": "tfrecord"}, "test", ("prepared as tfrecord", "TensorFlow")),
        ({}, "train", ("Unknown split 'train'", "expected test")),
        (
            {"splits": [{"name": "test", "shardLengths": ["3", "3"]}]},
            "test",
            ("incomplete", "1 of 2 files"),
        ),
        ({"features": {"text": {}}}, "test", ("'image' and 'label'", "found text")),
        (
            {
                "features": {
                    "image": {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}}},
                    "label": {"classLabel": {"numClasses": "2"}},
                }
            },
            "test",
            ("differ in size", "image_size"),
        ),
    ],
    ids=["tfrecord", "split", "incomplete", "no image", "sizes"],
)
def test_prepared_sets_are_checked(tmp_path, offline, info, split, parts):
    describe(tmp_path / "toy" / "1.0.0", **info)
    says(*parts, call=lambda: data.check("toy", split, str(tmp_path)))


def test_versions_and_configurations(tmp_path):
    for version, length in (("1.9.0", "3"), ("1.10.0", "4")):
        splits = [{"name": "test", "shardLengths": [length]}]
        describe(tmp_path / "toy" / version, splits=splits)
    assert data.check("toy", data_dir=str(tmp_path)) == 4  # 1.10.0 is newer
    assert data.check("toy:1.9.0", data_dir=str(tmp_path)) == 3
    describe(tmp_path / "many" / "red" / "1.0.0")
    assert data.check("many", data_dir=str(tmp_path)) == 3
    describe(tmp_path / "many" / "blue" / "1.0.0")
    assert data.check("many/red", data_dir=str(tmp_path)) == 3
    call = lambda: data.check("toy:2.0.0", data_dir=str(tmp_path))  # noqa: E731
    says("no 'toy:2.0.0'", "toy/1.9.0, toy/1.10.0", call=call)
    call = lambda: data.check("many/green", data_dir=str(tmp_path))  # noqa: E731
    says("no 'many/green'", "many/blue/1.0.0, many/red/1.0.0", call=call)
    call = lambda: data.check("many", data_dir=str(tmp_path))  # noqa: E731
    says("several configurations", "many/blue, many/red", call=call)


def test_damaged_records_are_named(tmp_path):
    describe(tmp_path / "toy" / "1.0.0")  # an empty file is no array_record
    call = lambda: data.load("toy", data_dir=str(tmp_path))  # noqa: E731
    says("damaged", str(tmp_path / "toy" / "1.0.0"), "Delete", call=call)


@needs_tfds
@pytest.mark.parametrize(
    "name, shape", [("cifar10", (4, 32, 32, 3)), ("mnist", (4, 28, 28, 1))]
)
def test_tfds_pixels_are_exact(name, shape, offline):
    import tensorflow_datasets as tfds

    loaded = data.load(name, limit=4, data_dir=TFDS_DIR)
    expected = tfds.data_source(name, split="test", data_dir=TFDS_DIR, download=False)
    assert loaded.images.shape == shape and loaded.num_classes == 10
    for image, label, row in zip(loaded.images, loaded.labels, expected, strict=False):
        np.testing.assert_array_equal(image, row["image"] / np.float32(255))
        assert label == row["label"]
    part = data.load(name, "test[2:4]", TFDS_DIR)
    np.testing.assert_array_equal(part.images, loaded.images[2:])


@needs_tfds
def test_tfds_class_names_and_sizes(offline):
    cifar = data.load("cifar10", "test[:3]", TFDS_DIR, image_size=16)
    assert cifar.images.shape == (3, 16, 16, 3)
    assert cifar.class_names[:3] == ("airplane", "automobile", "bird")
    assert data.check("cifar10", "train", TFDS_DIR) >= 10_000


@needs_tfds
def test_cut_tfds_file_is_named(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    shutil.copytree(pathlib.Path(TFDS_DIR) / "mnist" / "3.0.1", folder)
    shard = next(folder.glob("*-test.array_record*"))
    shard.write_bytes(shard.read_bytes()[:200_000])
    call = lambda: data.load("mnist", limit=4, data_dir=str(tmp_path))  # noqa: E731
    says("'mnist'", "damaged", call=call)


@needs_tfds
def test_a_new_process_needs_no_tensorflow():
    """Nor does checking import TFDS; and nothing is printed."""
    code = f"""
import socket, sys
class Refuse(socket.socket):
    def __init__(self, *args, **kwargs): raise AssertionError("a socket was opened")
socket.socket = socket.getaddrinfo = Refuse
sys.modules["pooch"] = None
from experiments import data
data.check("cifar10", "test", {TFDS_DIR!r})
data.load("photos", limit=4), data.load("faces", limit=4)
assert "tensorflow_datasets" not in sys.modules
data.load("cifar10", "test", {TFDS_DIR!r}, limit=4)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,  # so that a hang ends
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

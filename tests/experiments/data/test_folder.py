"""Folders of a user's images: which classes, labels and splits they are."""

import os

import numpy as np
import pytest
from PIL import Image
from support.refusals import says

from experiments import data


def _write(path, level, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (level, 20, 30) if mode == "RGB" else level
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def classes(tmp_path):
    """Six PNGs of class `ant`, two JPEGs of `bee`; and what systems leave behind."""
    for index in range(6):
        _write(tmp_path / "ant" / f"{index}.png", level=index)
    for index in range(2):
        _write(tmp_path / "bee" / f"{index}.JPG", level=100 + index)
    for name in (".DS_Store", "Thumbs.db", "bee/desktop.ini", "bee/._0.png"):
        (tmp_path / name).write_bytes(b"not an image")
    _write(tmp_path / ".cache" / "0.png", level=200)
    return tmp_path


def test_folder_is_sorted_and_split(classes):
    test = data.load(f"folder:{classes}")
    train = data.load(f"folder:{classes}", "train")
    assert test.class_names == train.class_names == ("ant", "bee")
    np.testing.assert_array_equal(test.labels, [0, 1, 0])
    np.testing.assert_array_equal(train.labels, [0, 1, 0, 0, 0])
    assert test.images.shape == (3, 5, 6, 3)
    red = np.round(test.images[:, 0, 0, 0] * 255)
    # JPEG at Pillow's default quality is within 2 levels on a plain colour.
    np.testing.assert_allclose(red, [0, 100, 5], atol=2)
    np.testing.assert_array_equal(test.images[2, 0, 0], np.float32([5, 20, 30]) / 255)


def test_folder_with_its_own_splits(tmp_path):
    _write(tmp_path / "train" / "ant" / "0.png", 1)
    _write(tmp_path / "train" / "bee" / "0.png", 2)
    _write(tmp_path / "test" / "bee" / "0.png", 3)
    _write(tmp_path / "val" / "cow" / "0.png", 4)
    name = f"folder:{tmp_path}"
    assert data.load(name).class_names == ("ant", "bee", "cow")
    for split, labels in (("train", [0, 1]), ("test", [1]), ("val", [2])):
        np.testing.assert_array_equal(data.load(name, split).labels, labels)
    says("'other'", "test or train or val", call=lambda: data.check(name, "other"))


def test_folder_with_a_class_called_train(tmp_path):
    for name in ("plane", "train"):
        _write(tmp_path / name / "0.png", 1)
        _write(tmp_path / name / "1.png", 1)
    assert data.load(f"folder:{tmp_path}", "train").class_names == ("plane", "train")


def test_folder_of_single_images_has_both_splits(tmp_path):
    for name in "abcdef":
        _write(tmp_path / name / "0.png", 1)
    labels = data.load(f"folder:{tmp_path}").labels
    np.testing.assert_array_equal(labels, [0, 5])
    assert data.check(f"folder:{tmp_path}", "train") == 4


def test_grey_folders_have_one_channel(tmp_path):
    for index in range(6):
        _write(tmp_path / "scan" / f"{index}.png", index, mode="L")
    name = f"folder:{tmp_path}"
    assert data.load(name).images.shape == (2, 5, 6, 1)
    _write(tmp_path / "scan" / "6.png", 7)  # one colour image, in the other split
    assert data.load(name).images.shape == (2, 5, 6, 3)


def test_folder_sizes_must_agree_or_be_set(classes):
    _write(classes / "bee" / "2.png", 1, size=(9, 4))
    name = f"folder:{classes}"
    message = says("6x5", "9x4", "image_size", call=lambda: data.check(name))
    assert message == says(call=lambda: data.load(name))
    assert data.load(name, image_size=8).images.shape == (3, 8, 8, 3)


@pytest.mark.parametrize("name", ["0.png", "0.JPG"])
def test_truncated_file_is_named(classes, name):
    path = next(classes.glob(f"[ab]*/{name}"))
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert data.check(f"folder:{classes}", image_size=8) == 3  # headers are whole
    load = lambda: data.load(f"folder:{classes}", image_size=8)  # noqa: E731
    says("Cannot read", str(path), "truncated", call=load)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_unreadable_file_is_named(classes, content):
    path = classes / "ant" / "3.png"
    path.write_bytes(content)
    says("Cannot read", str(path), call=lambda: data.check(f"folder:{classes}"))


@pytest.mark.parametrize(
    "make, parts",
    [
        (lambda path: None, ("No folder", "folder:PATH")),
        (lambda path: path.mkdir(), ("No class folders with images", "JPEG", "DICOM")),
        (lambda path: (path / "a").mkdir(parents=True), ("No class folders",)),
    ],
    ids=["missing", "empty", "no images"],
)
def test_folder_errors(tmp_path, make, parts):
    make(tmp_path / "set")
    says(*parts, call=lambda: data.check(f"folder:{tmp_path / 'set'}"))


def test_a_user_that_is_not_there():
    says("No folder '~nobody-at-all/x'", call=lambda: data.check(_AWAY))


_AWAY = "folder:~nobody-at-all/x"


# Nothing that is there is passed over.


def test_classes_of_other_formats_and_with_folders_inside_stay(tmp_path):
    """Four classes are four, with their labels, whatever files they have."""
    _write(tmp_path / "ant" / "0.png", 1)
    _write(tmp_path / "bee" / "0.webp", 2)
    _write(tmp_path / "cow" / "herd" / "left" / "0.tif", 3)
    _write(tmp_path / "cow" / "herd" / "1.png", 4)
    _write(tmp_path / "dog" / "0.bmp", 5)
    name = f"folder:{tmp_path}"
    splits = [data.load(name, split) for split in ("test", "train")]
    for one in splits:
        assert one.class_names == ("ant", "bee", "cow", "dog")
    np.testing.assert_array_equal(splits[0].labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(splits[1].labels, [2])
    # Sorted by path: `herd/1.png` before `herd/left/0.tif`.
    red = np.round(255 * np.concatenate([one.images[:, 0, 0, 0] for one in splits]))
    np.testing.assert_array_equal(red[[0, 2, 3, 4]], [1, 4, 5, 3])


def test_a_flat_folder_is_one_class(tmp_path):
    for index in range(6):
        _write(tmp_path / "scans" / f"{index}.png", index)
    test = data.load(f"folder:{tmp_path / 'scans'}")
    assert (
        test.class_names == ("scans",) and data.check(f"folder:{tmp_path}/scans") == 2
    )
    np.testing.assert_array_equal(test.labels, [0, 0])
    np.testing.assert_array_equal(np.round(255 * test.images[:, 0, 0, 0]), [0, 5])


def test_flat_splits_are_no_classes(tmp_path):
    _write(tmp_path / "train" / "0.png", 1)
    _write(tmp_path / "train" / "1.png", 2)
    _write(tmp_path / "test" / "0.png", 3)
    for split, count in (("train", 2), ("test", 1)):
        found = data.load(f"folder:{tmp_path}", split)
        assert found.num_classes == 1
        np.testing.assert_array_equal(found.labels, [0] * count)


@pytest.mark.parametrize(
    "files, parts",
    [
        (["a/0.png", "a/note.txt"], ("a/note.txt", "nothing but images", "TIFF")),
        (["a/0.png", "b/0.heic"], ("b/0.heic", "nothing but images")),
        (["a/0.png", "b/0.png.partial"], ("b/0.png.partial",)),
        (["a/0.png", "labels.csv"], ("labels.csv", "beside class folders")),
        (["a/0.png", "1.png"], ("1.png", "beside class folders")),
        (["train/a/0.png", "test/0.png"], ("test/0.png", "class folders")),
        (["train/a/0.png", "1.png"], ("1.png", "beside")),
        (["train/0.png", "test/0.png", "test/a/1.png"], ("test/a", "without class")),
        (["training/a/0.png", "testing/a/0.png"], ("within folders", "train/CLASS")),
        (["a/0.png", "b/.hidden.png"], ("'b'", "no images")),
        (["train/a/0.png", "val/.hidden.png"], ("No class folders", "val")),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path, files, parts):
    for name in files:
        path = tmp_path / name
        if path.suffix == ".png" and path.name[0] != ".":
            _write(path, 1)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"something else")
    says(*parts, call=lambda: data.check(f"folder:{tmp_path}", "train"))


def _fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    "make",
    [
        _fifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("x"),
    ],
    ids=["fifo", "device", "broken link"],
)
@pytest.mark.parametrize("name", ["9.png", "9.dcm", "9"])
def test_only_regular_files_are_opened(classes, make, name):
    """Opening a FIFO would wait for ever."""
    make(classes / "ant" / name)
    says(name, "regular", call=lambda: data.check(f"folder:{classes}"))


def test_links_to_files_and_classes_are_read_but_circles_are_not(tmp_path, classes):
    (classes / "ant" / "6.png").symlink_to(classes / "ant" / "0.png")
    (classes / "cow").symlink_to(classes / "ant")
    found = data.load(f"folder:{classes}", "train")
    assert found.class_names == ("ant", "bee", "cow")
    (classes / "bee" / "up").symlink_to(classes)
    says("bee/up", "link", call=lambda: data.check(f"folder:{classes}"))

"""Description files of TFDS that are damaged: one line that names the file."""

import json
import re

import numpy as np
import pytest
from support.refusals import says
from support.tfds_sets import describe

from experiments import data

FILES = ("dataset_info.json", "features.json", "label.labels.txt")
IMAGE = ("featuresDict", "features", "image", "image")
LABEL = ("featuresDict", "features", "label", "classLabel")


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "toy" / "1.0.0"
    describe(folder)
    (folder / FILES[2]).write_text("cat\ndog\n")
    return folder


def _check(folder):
    return data.check("toy", data_dir=str(folder.parents[1]))


def _change(file, path, value):
    found = json.loads(file.read_text())
    inside = found
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    file.write_text(json.dumps(found))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"", b"[" * 100_000, b"[]", b"null", b"3"]
)
def test_files_of_another_form_are_named(toy, name, content):
    (toy / name).write_bytes(content)
    if name == FILES[2] and content[0:1] != b"\xff":
        assert _check(toy) == 3  # names that do not fit are not needed
        return
    says(f"Cannot read '{toy / name}'", call=lambda: _check(toy))


@pytest.mark.parametrize(
    "name, path, value",
    [
        ("dataset_info.json", ("splits",), None),
        ("dataset_info.json", ("splits",), {"name": "test"}),
        ("dataset_info.json", ("splits", 0), "test"),
        ("dataset_info.json", ("splits", 0, "name"), 3),
        ("dataset_info.json", ("splits", 0, "shardLengths"), "3"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["x"]),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["-3"]),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["9" * 40]),
        ("dataset_info.json", ("splits", 0, "shardLengths"), [[]]),
        ("dataset_info.json", ("fileFormat",), 7),
        ("features.json", ("featuresDict",), []),
        ("features.json", ("featuresDict", "features"), "image"),
        ("features.json", ("featuresDict", "features", "image"), [1]),
        ("features.json", IMAGE, "uint8"),
        ("features.json", (*IMAGE, "shape"), None),
        ("features.json", (*IMAGE, "shape", "dimensions"), 8),
        ("features.json", (*IMAGE, "shape", "dimensions"), []),
        ("features.json", (*IMAGE, "shape", "dimensions"), ["8", "8", "x"]),
        ("features.json", (*IMAGE, "shape", "dimensions"), ["8", "8", "4"]),
        ("features.json", (*IMAGE, "shape", "dimensions"), ["8", "9999999", "3"]),
        ("features.json", (*LABEL, "numClasses"), None),
        ("features.json", (*LABEL, "numClasses"), "-1"),
        # As many names would take all memory.
        ("features.json", (*LABEL, "numClasses"), "999999999999"),
    ],
)
def test_entries_of_another_form_are_named(toy, name, path, value):
    _change(toy / name, path, value)
    says(f"Cannot read '{toy / name}'", call=lambda: _check(toy))


def test_words_of_others_stay_in_one_line(toy):
    _change(toy / "dataset_info.json", ("fileFormat",), "a\n\x1b[31mb")
    message = says("prepared as", call=lambda: _check(toy))
    assert "\x1b" not in message


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_refused_in_one_line_or_read(toy, name):
    """Three hundred of each, by a fixed seed: cut off, overwritten, other values."""
    rng, whole = np.random.default_rng(0), (toy / name).read_bytes()
    words = [one.span() for one in re.finditer(rb'"[^"]*"|\w+', whole)]
    values = (b"null", b"[]", b"{}", b"-1", b'"x"', b"1e999", b"[[[", b"NaN", b'"\\n"')
    refused = 0
    for turn in range(300):
        content = bytearray(whole)
        if turn % 3 == 0:
            content = content[: rng.integers(len(content))]
        elif turn % 3 == 1:
            for place in rng.integers(0, len(content), rng.integers(1, 6)):
                content[place] = rng.integers(256)
        else:
            start, end = words[rng.integers(len(words))]
            content[start:end] = values[rng.integers(len(values))]
        (toy / name).write_bytes(content)
        try:
            _check(toy)
        except ValueError as error:
            refused += 1
            assert str(toy) in str(error) or "toy" in str(error)
            assert "\n" not in str(error)
    assert refused >= (100 if name != FILES[2] else 50)

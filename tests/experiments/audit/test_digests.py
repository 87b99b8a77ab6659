"""Inputs that are not the same are told apart."""

import numpy as np
from support import cli

from experiments.audit import digests
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import Victim
from experiments.victims import inputs


def test_every_pixel_and_label_counts():
    images, labels = np.zeros((2, 2, 3, 1), np.float32), np.array([0, 1])
    changed = images.copy()
    changed[1, 1, 2] = np.finfo(np.float32).tiny
    batches = [
        {"image": images, "label": labels},
        {"image": changed, "label": labels},
        {"image": images, "label": labels[::-1]},
        {"image": images.reshape(2, 3, 2, 1), "label": labels},
        {"image": images.astype(np.float64), "label": labels},
    ]
    found = [digests.of_images({"split": one})["split"] for one in batches]
    assert len(set(found)) == len(found)
    assert digests.of_images({"split": batches[0], "train_split": None}) == {
        "split": found[0]
    }


def test_files_count_by_their_content(tmp_path):
    file = tmp_path / "net.npz"
    victim = Victim(checkpoint=str(file))
    assert digests.of_files(SavedUpdate(), victim) == {}
    seen = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        seen.append(digests.of_files(SavedUpdate(), victim)["checkpoint"])
    assert seen[0] == seen[2] != seen[1]


def test_cells_read_every_split_once(monkeypatch):
    """As many images as the cell that reads most; a frontier reads them all."""
    read = []

    def load(name, split, data_dir, *, image_size, limit):
        read.append((name, split, image_size, limit))
        if split == "broken":
            raise ValueError("No image.")
        return {"image": np.full(2, len(split))}

    def of(cells, **options):
        topics = ((cell.data, cell.clients, cell.victim) for cell in cells)
        return digests.of_runs(topics, **options)

    monkeypatch.setattr(digests, "load", load)
    given = [
        {"targets": 2, "batch_size": 3},
        {"targets": 1, "batch_size": 5, "seed": 1},
        {"targets": 1, "image_size": 8},
        {"targets": 1, "split": "train", "train_split": "broken"},
    ]
    cells = [cli.resolved(**one) for one in given]
    found = of(cells * 100)
    assert read == [
        ("photos", "test", None, 6),
        ("photos", "train", None, 6 + inputs.PUBLIC),
        ("photos", "test", 8, 1),
        ("photos", "train", 8, 1 + inputs.PUBLIC),
        ("photos", "broken", None, 1 + inputs.PUBLIC),
    ]
    assert found["dataset=photos split=broken"] == "ValueError: No image."
    assert len(found) == 5 and found["dataset=photos split=test image_size=8"]
    read.clear()
    of(cells[:1], whole=True)
    assert [limit for *_, limit in read] == [None, None]
    trained = cli.resolved(targets=1, train_steps=3)
    read.clear()
    of([cells[0], trained, cells[0]])
    assert [limit for *_, limit in read] == [6, None]


def test_the_sources_of_own_code_are_inputs():
    loss = "invertjax.losses:classification"
    found = digests.of_files(SavedUpdate(), Victim(loss=loss, model="support.toy:net"))
    assert set(found) == {"loss", "model"}
    assert digests.of_files(SavedUpdate(), Victim(model="mlp")) == {}

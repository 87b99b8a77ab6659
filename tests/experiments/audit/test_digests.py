"""Inputs that are not the same are told apart."""

import numpy as np

from experiments.audit import digests
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import Victim


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


def test_the_sources_of_own_code_are_inputs():
    loss = "invertjax.losses:classification"
    found = digests.of_files(SavedUpdate(), Victim(loss=loss, model="support.toy:net"))
    assert set(found) == {"loss", "model"}
    assert digests.of_files(SavedUpdate(), Victim(model="mlp")) == {}

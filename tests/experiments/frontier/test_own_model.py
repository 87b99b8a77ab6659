"""A frontier of the reader's own model on images of her own."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support import cli

from experiments import data
from experiments.frontier import __main__ as frontier

cheap_compilation = cli.cheap_compilation  # a fixture
HERE = "support.own_models"
PLAN = """
dataset = "cifar10"
model = "convnet"
norm = "group"
attack = "inverting_gradients"
targets = 1
steps = 2
defense = ["none", {gaussian = [1e-2]}]
[federation]
clients = 3
participants = 2
rounds = 2
"""


@pytest.fixture
def folder(tmp_path):
    found = data.load("faces", image_size=8, limit=20)
    for i, (image, label) in enumerate(zip(found.images, found.labels, strict=True)):
        path = tmp_path / "images" / str(label) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).round().astype(np.uint8).squeeze()).save(path)
    return tmp_path / "images"


def run(path, *args):
    (path / "plan.toml").write_text(PLAN)
    plan = (f"--plan={path / 'plan.toml'}", f"--workdir={path / 'run'}")
    return cli.run_script(frontier, *plan, *args)


@pytest.mark.slow
def test_no_data_set_of_tfds_is_needed(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    model = (f"--model={HERE}:Normed", "--norm_mode=eval")
    assert run(tmp_path, f"--dataset=folder:{folder}", *model) == 0
    table = pd.read_csv(tmp_path / "run" / "frontier.csv")
    assert set(table["model"]) == {f"{HERE}:Normed"} and len(table) == 2
    assert table["accuracy"].between(0, 1).all()
    assert np.isfinite(table["psnr"]).all()


def test_what_clients_do_not_share_is_refused(tmp_path, capsys):
    assert run(tmp_path, f"--model={HERE}:Normed", "--norm_mode=train") == 2
    line = capsys.readouterr().err
    assert "norm_mode = train" in line and "expected eval" in line
    assert run(tmp_path, f"--model={HERE}:Missing") == 2
    line = capsys.readouterr().err
    assert "Missing" in line and line.count("\n") == 1
    assert run(tmp_path, f"--model={HERE}:Normed", "--dataset=faces") == 2
    line = capsys.readouterr().err
    assert "has batch norms" in line and line.count("\n") == 1


def test_the_preset_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run_script(frontier, "--attack=posterior") == 2
    assert "presets/frontier.toml: " in capsys.readouterr().err

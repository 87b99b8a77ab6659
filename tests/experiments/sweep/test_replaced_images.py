"""A sweep whose images were replaced since it began is no sweep to go on with."""

import json

import numpy as np
import pytest
from PIL import Image
from support import cli, sweeps

from experiments.frontier import __main__ as frontier
from experiments.frontier import terminal
from experiments.sweep import folder

cheap_compilation = cli.cheap_compilation  # a fixture


def image(file, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def images(tmp_path):
    """Two folders of images, each of two splits."""
    seeds = iter(range(1000))
    for place in ("one", "two"):
        for number in range(6):
            for split in ("train", "test"):
                image(tmp_path / place / split / "a" / f"{number}.png", next(seeds))
    return tmp_path


def text(images):
    found = [f"folder:{images / place}" for place in ("one", "two")]
    return f'dataset = {json.dumps(found)}\ntrain_split = "train[:5]"\n'


@pytest.mark.parametrize("replaced", ["test/a/2.png", "test/a/0.png", "train/a/4.png"])
def test_a_sweep_is_refused(images, capsys, replaced):
    grid, out = sweeps.write(images, "targets = 3\n" + text(images)), images / "run"
    assert sweeps.run(grid, f"--workdir={out}") == 0
    before, file = sweeps.table(out), images / "two" / replaced
    kept = file.read_bytes()
    image(file, 999)
    line = sweeps.refused(capsys, grid, out)
    assert "two" in line and "one" not in line and "--overwrite" in line
    assert sweeps.table(out).equals(before)
    file.write_bytes(kept)
    for unread in ("test/a/3.png", "train/a/5.png"):
        image(images / "two" / unread, 998)
    assert sweeps.run(grid, f"--workdir={out}") == 0
    image(file, 999)
    assert sweeps.run(grid, f"--workdir={out}", "--overwrite") == 0
    assert sweeps.run(grid, f"--workdir={out}") == 0


def test_a_sweep_from_before_digests_goes_on(images):
    grid, out = sweeps.write(images, "targets = 3\n" + text(images)), images / "run"
    assert sweeps.run(grid, f"--workdir={out}") == 0
    file = out / folder.FILE
    described = json.loads(file.read_text())
    assert len(described.pop("inputs")) == 4
    file.write_text(json.dumps(described))
    assert sweeps.run(grid, f"--workdir={out}") == 0
    assert len(json.loads(file.read_text())["inputs"]) == 4


def test_a_frontier_is_refused(images, capsys, monkeypatch):
    """Its federations train on every image, though attacks see a few."""
    plan, out = images / "plan.toml", images / "run"
    attacked = 'model = "mlp"\nwidth = 9\nimage_size = 8\ntargets = 1\nsteps = 2\n'
    data = f'dataset = "folder:{images / "one"}"\nattack = "inverting_gradients"\n'
    plan.write_text(attacked + data + "[federation]\nrounds = 1\n")
    flags = (f"--plan={plan}", f"--workdir={out}")
    monkeypatch.setattr(terminal, "_run", lambda *args: 130)  # opened, and no more
    assert cli.run_script(frontier, *flags) == 130
    assert cli.run_script(frontier, *flags) == 130
    image(images / "one" / "test" / "a" / "4.png", 999)  # the target is 0.png
    capsys.readouterr()
    assert cli.run_script(frontier, *flags) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --workdir=") and line.count("\n") == 1
    assert "split=test" in line and "--overwrite" in line
    assert cli.run_script(frontier, *flags, "--overwrite") == 130

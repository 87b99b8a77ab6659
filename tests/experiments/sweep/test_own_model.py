"""Sweeps over models of the reader's own beside built-in ones."""

import json

import numpy as np
import pytest
from support import cli, sweeps

from experiments.audit import cost
from experiments.sweep import grid, programs

cheap_compilation = cli.cheap_compilation  # a fixture
HERE = "support.own_models"


def test_own_and_built_in_models_are_cells_of_one_grid(tmp_path, capsys):
    out = tmp_path / "run"
    text = f"""
    targets = 1
    steps = 2
    [[grid]]
    model = "mlp"
    width = 9
    [[grid]]
    model = "{HERE}:Normed"
    norm_mode = ["train", "eval"]
    [[grid]]
    model = "{HERE}:Plain"
    loss = "{HERE}:smoothed"
    seed = [0, 1]
    """
    (tmp_path / "grid.toml").write_text(
        'image_size = 8\nattack = "inverting_gradients"\n' + text
    )
    file = f"--grid={tmp_path / 'grid.toml'}"
    assert sweeps.run(file, f"--workdir={out}") == 0
    said = capsys.readouterr().out
    # Seeds share a program; in eval mode the running statistics are part of it.
    assert sweeps.promised(said) == 4
    table = sweeps.table(out)
    assert (table["status"] == "done").all() and len(table) == 5
    own = table[table["model"] == f"{HERE}:Normed"].set_index("norm_mode")
    rms = own["update_rms"]
    assert not np.isclose(rms["train"], rms["eval"], rtol=0.01)
    norms = {m: json.loads(own["threat_model"][m])["batch_norm"] for m in own.index}
    assert "running" in norms["eval"] and "of the batch" in norms["train"]
    # The setting has a column of its own beside the objective of that name.
    losses = table.set_index("model")["loss_function"].dropna()
    assert set(losses) == {f"{HERE}:smoothed"} and len(losses) == 2
    assert table["loss"].dtype == float
    # Fresh weights of every seed.
    seeds = table[table["model"] == f"{HERE}:Plain"]["update_rms"]
    assert seeds.nunique() == 2
    # Given again it goes on, unless the code has changed.
    described = out / "_sweep.json"
    held = json.loads(described.read_text())
    assert set(held["code"]) == {f"{HERE}:{n}" for n in ("Normed", "Plain", "smoothed")}
    held["code"][f"{HERE}:Plain"] = "0" * 64
    described.write_text(json.dumps(held))
    line = sweeps.refused(capsys, file, out)
    assert f"{HERE}:Plain" in line and "--overwrite" in line


def test_own_models_are_counted(monkeypatch):
    """On the shape of the images, which may be the only one that they take."""
    cell = cli.resolved(
        model=f"{HERE}:Plain", image_size=8, attack="inverting_gradients", steps=100
    )
    dense = 5 * 2 * (8 * 8 * 3) * 5 + 7 * 2 * 5 * 8
    found = cost.count(cell.victim.model, (8, 8, 3), 8)
    assert found.image == pytest.approx(dense, rel=0.2)
    assert found.params == 192 * 5 + 5 + 5 * 8 + 8
    seconds = cost.one(cell, 1e6).running - cost.OVERHEAD * cell.data.targets
    each = (found.image + found.update) / 1e6
    assert seconds == pytest.approx(each * 100 * cell.data.targets)


def test_a_model_of_the_command_line_has_none_of_the_layers_of_a_file(tmp_path):
    (tmp_path / "grid.toml").write_text(
        'model = "convnet"\nnorm = "group"\nwidth = [4, 8]\nseed = [0, 1]\n'
    )
    found = grid.read(str(tmp_path / "grid.toml"), {"model": f"{HERE}:Plain"})
    assert len(found.cells) == 2
    assert {cell.victim.width for cell in found.cells} == {None}
    assert len(programs.group(found.cells)) == 1


@pytest.mark.parametrize(
    "text, says",
    [
        (f'model = "{HERE}:Missing"', ["--model=", "Missing", "can be imported"]),
        (f'model = "mlp"\nloss = "{HERE}:constant"', ["--loss=", "no function"]),
        (f'model = "{HERE}:Normed"', ["has batch norms", "--norm_mode=eval"]),
        (f'model = "{HERE}:Raising"', ["fails on images", "no such layer"]),
        ('loss = "m:f"', ["--loss=m:f", "--model"]),
    ],
)
def test_own_code_that_is_not_there_is_refused_at_once(text, says, tmp_path, capsys):
    (tmp_path / "grid.toml").write_text('attack = "inverting_gradients"\n' + text)
    file = f"--grid={tmp_path / 'grid.toml'}"
    line = sweeps.refused(capsys, file, tmp_path / "run")
    for fragment in says:
        assert fragment in line

"""What goes on with a run: no target lost or done twice, and no input replaced."""

import json
import shutil

import numpy as np
import pytest
from support import cli

from experiments.reconstruct import resumed
from invertjax.cli import run_folder

ARGS = (
    "--attack=inverting_gradients",
    "--steps=2",
    "--model=mlp",
    "--width=9",
    "--image_size=8",
    "--targets=3",
)

cheap_compilation = cli.cheap_compilation  # a fixture


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of three targets."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.run(*ARGS, f"--workdir={out}") == 0
    return out


@pytest.mark.parametrize("interrupted", [[0], [1], [0, 2], [2, 1]])
@pytest.mark.parametrize("recorded", [True, False])
def test_targets_are_done_once_whatever_was_interrupted(
    whole, tmp_path, interrupted, recorded
):
    """Targets of a group end in any order: rows and arrays are paired by target."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    rows, arrays = cli.rows(whole), cli.arrays(whole)
    kept = [i for i in range(3) if recorded or i not in interrupted]
    for i in interrupted:
        rows[i]["stopped"] = "interrupted"
        arrays["image"][i] = 0.5
    lines = (json.dumps(rows[i]) + "\n" for i in reversed(kept))
    (out / "metrics.jsonl").write_text("".join(lines))
    np.savez(out / "reconstructions.npz", **{k: v[kept] for k, v in arrays.items()})
    (out / "summary.json").write_text('{"interrupted": true}')
    assert cli.run(*ARGS, f"--workdir={out}", "--resume") == 0
    assert cli.rows(out) == cli.rows(whole)
    for name, values in cli.arrays(whole).items():
        np.testing.assert_array_equal(cli.arrays(out)[name], values)
    assert cli.summary(out)["psnr_mean"] == cli.summary(whole)["psnr_mean"]


@pytest.mark.parametrize("name", ["update", "params"])
def test_a_replaced_update_is_no_run_to_go_on_with(tmp_path, capsys, name):
    cli.own_update(tmp_path)
    out = tmp_path / "run"
    args = (*cli.own_flags(tmp_path), "--model=mlp", "--width=9", "--attack=analytic")
    assert cli.run(*args, f"--workdir={out}") == 0
    assert cli.run(*args, f"--workdir={out}", "--resume") == 0
    file = tmp_path / f"{name}.npz"
    with np.load(file) as archive:
        np.savez(file, **{key: 2 * archive[key] for key in archive.files})
    before = cli.summary(out)
    line = cli.refused(capsys, out, *args, "--resume")
    assert f"--{name} " in line and "--overwrite" in line
    assert cli.summary(out) == before
    assert cli.run(*args, f"--workdir={out}", "--overwrite") == 0


def test_a_replaced_checkpoint_is_no_run_to_go_on_with(tmp_path, capsys):
    out, file = tmp_path / "run", tmp_path / "net.safetensors"
    trained = (*ARGS[1:], f"--checkpoint={file}", "--attack=analytic")
    args = [arg for arg in trained if not arg.startswith("--steps")]
    assert cli.run(*args, "--train_steps=1", f"--workdir={out}") == 0
    assert cli.run(*args, "--train_steps=1", f"--workdir={out}", "--resume") == 0
    file.unlink()
    other = (*args, "--seed=1", "--train_steps=1", f"--workdir={tmp_path / 'other'}")
    assert cli.run(*other) == 0
    line = cli.refused(capsys, out, *args, "--train_steps=1", "--resume")
    assert "--checkpoint" in line


def test_the_fields_that_are_checked_are_those_of_a_row(whole, tmp_path):
    """Of a run that knows the truth, and of one that does not."""
    cli.own_update(tmp_path)
    blind = (*cli.own_flags(tmp_path), "--model=mlp", "--width=9", "--attack=analytic")
    out = tmp_path / "run"
    assert cli.run(*blind, f"--workdir={out}") == 0
    for args, folder in ((ARGS, whole), (blind, out)):
        situation = cli.ready(*args).prepared.situation
        wanted = resumed.row_fields(situation)
        every = {*wanted, "certified"}  # which rows of before have not
        assert all(set(row) == every for row in cli.rows(folder))
        shapes = resumed.store(situation).load(run_folder.RunDir(folder))[1]
        assert len(shapes) == len(cli.rows(folder))
        assert set(resumed.SUMMARY) <= set(cli.summary(folder))


@pytest.mark.parametrize(
    "name, damage, says",
    [
        ("metrics.jsonl", ('"stopped": "', '"stopped": "\\u001b'), "'stopped' is"),
        ("metrics.jsonl", ('"target": 1', '"target": 0'), "target 0 is there twice"),
        ("metrics.jsonl", ('"target": 2', '"target": 3'), "target 3 is none"),
        ("metrics.jsonl", ('"psnr": [', '"psnr": [1, '), "'psnr' is"),
        ("metrics.jsonl", ('"loss": ', '"loss": 1e999, "l": '), "line 1 is"),
        (
            "summary.json",
            ('"seconds_run": ', '"seconds_run": 1e999, "s": '),
            "summary.json",
        ),
        ("summary.json", ('"failed": ', '"failed": "a\\nb", "f": '), "'failed' is"),
        ("config.json", ('"settings"', '"setting"'), "config.json"),
    ],
)
def test_damaged_runs_are_refused_in_a_line(
    whole, tmp_path, capsys, name, damage, says
):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    text = (out / name).read_text()
    assert damage[0] in text
    (out / name).write_text(text.replace(*damage))
    if name != "summary.json":
        (out / "summary.json").unlink()
    line = cli.refused(capsys, out, *ARGS, "--resume")
    assert name in line and says in line

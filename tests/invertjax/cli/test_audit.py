"""`invertjax audit`: from files of an update to files of a report."""

import json
import sys

import jax
import numpy as np
import pytest
from support import toy

from invertjax.adapters import Adapted
from invertjax.cli import __main__ as command
from invertjax.cli import arrays as cli_arrays
from invertjax.cli import audit, own_model

LOSS = "--loss=support.toy:loss_fn"
SIZES = ("--image_shape=6,6,1", "--num_classes=3")


@pytest.fixture
def saved(tmp_path):
    """Flags that name the files of a gradient and its params, and the image."""
    params, batch = toy.init(0), toy.batch(0)
    update = jax.grad(toy.loss_fn)(params, batch)
    paths = []
    for name, tree in (("params", params), ("update", update)):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        flat = {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in leaves
        }
        np.savez(tmp_path / f"{name}.npz", allow_pickle=False, **flat)
        paths.append(f"--{name}={tmp_path / name}.npz")
    return paths, batch["image"]


def adapted(batch_norm=False):
    """The toy, as an adapter would give it."""

    def call(params, buffers, inputs, mode):
        return toy.apply(params, inputs[0]), buffers

    params = toy.init(0)
    made = Adapted("A", params, {}, call, lambda key: (params, {}))
    return made._replace(batch_norm=batch_norm)


def normalised():
    return adapted(batch_norm=True)


def of_a_size(size):
    return adapted()


def failing(num_classes):
    raise RuntimeError("no luck\nat all")


def numbers():
    return [1, 2]


def run(*args: str) -> int:
    return command.main(["invertjax", "audit", *args])


def test_a_gradient_is_read_and_reported(saved, tmp_path, capsys):
    flags, image = saved
    out = tmp_path / "out"
    assert run(*flags, LOSS, *SIZES, f"--workdir={out}") == 0
    with np.load(out / "reconstructions.npz") as arrays:
        np.testing.assert_allclose(arrays["image"][0], image, atol=1e-5)
    assert (out / "grid.png").exists()
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["image_shape"] == [6, 6, 1]
    text = capsys.readouterr().out
    assert "attack: analytic" in text and str(out) in text
    assert run(*flags, LOSS, *SIZES, f"--workdir={out}") == 2  # holds a run
    line = capsys.readouterr().err
    assert "--overwrite" in line and "--resume" not in line
    again = (*flags, LOSS, *SIZES, f"--workdir={out}", "--overwrite")
    kept = {file.name: file.read_bytes() for file in out.iterdir()}
    assert run(*again, "--num_classes=4") == 2  # and bad input loses nothing
    assert kept == {file.name: file.read_bytes() for file in out.iterdir()}
    assert run(*again) == 0


@pytest.mark.parametrize(
    "change, says",
    [
        (
            ("--loss=support.toy:nothing",),
            "--loss=support.toy:nothing: expected module",
        ),
        (("--image_shape=6,6",), "(B, H, W, C)"),
        (("--image_shape=6;6",), "--image_shape=6;6: expected whole numbers"),
        (("--attack=magic",), "--attack=magic is unknown"),
        (("--local_lr=0.1",), "it needs --local_steps"),
        (("--local_epochs=2", "--local_steps=3"), "2 steps of 1 of the 1 images"),
        (("--known_labels=1,2",), "labels"),
        (("--update=nothing.npz",), "--update=nothing.npz"),
        (("extra",), "Unexpected argument 'extra'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(change, says, saved, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*saved[0], LOSS, *SIZES, f"--workdir={out}", *change) == 2
    err = capsys.readouterr().err
    assert says in err and err.startswith("error: ") and err.count("\n") == 1
    assert not out.exists() or not list(out.glob("*"))


def test_what_is_missing_is_asked_for(capsys):
    assert run() == 2
    assert capsys.readouterr().err.startswith("error: --update is missing. File of")


def test_the_recursion_finds_the_blocks_of_a_loss(saved, tmp_path):
    flags, image = saved
    out = tmp_path / "out"
    more = ("--attack=recursive", "--known_labels=2", f"--workdir={out}")
    assert run(*flags, LOSS, *SIZES, *more) == 0
    with np.load(out / "reconstructions.npz") as arrays:
        np.testing.assert_allclose(arrays["image"][0], image, atol=1e-3)


HERE = "test_audit"


@pytest.fixture
def importable(monkeypatch):
    """This file, as a module of the reader's own."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def test_a_model_of_any_framework(importable, saved, tmp_path, capsys):
    flags, image = saved
    out = tmp_path / "out"
    model = f"--model={HERE}:normalised"
    assert run(*flags, model, *SIZES, f"--workdir={out}") == 2
    err = capsys.readouterr().err
    assert "--norm_mode=train" in err and err.count("\n") == 1
    mode = "--norm_mode=eval"
    assert run(*flags, model, mode, *SIZES, f"--workdir={out}") == 0
    assert "batch_norm: eval" in capsys.readouterr().out
    with np.load(out / "reconstructions.npz") as arrays:
        np.testing.assert_allclose(arrays["image"][0], image, atol=1e-5)


@pytest.mark.parametrize(
    "name, says",
    [
        ("HERE", "is of type str: expected a module class, or a function"),
        ("run_without", "expected module:name that can be imported"),
        ("of_a_size", "takes an argument 'size' without a default"),
        ("failing", "cannot be made as failing(num_classes=3): RuntimeError: no luck"),
        ("numbers", "it returns a list, expected a module of Flax, Equinox or"),
    ],
)
def test_what_is_no_model_is_refused(name, says, importable, saved, capsys):
    assert run(*saved[0], f"--model={HERE}:{name}", *SIZES) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize("beside", [True, False])
def test_running_statistics_beside_the_params_are_the_models(
    beside, monkeypatch, saved, tmp_path
):
    """A module class is made for the images and classes, and takes them from the file;
    where there are none, they are its own."""
    adapted = own_model.adapted("support.own_models:Normed", (6, 6, 1), 3)
    drawn = np.random.default_rng(0)
    buffers = jax.tree.map(
        lambda leaf: drawn.uniform(1, 2, leaf.shape).astype("f"), adapted.buffers
    )
    held = cli_arrays.flat(adapted.params)
    params, update = tmp_path / "params.npz", tmp_path / "update.npz"
    np.savez(params, **(held | (cli_arrays.flat(buffers) if beside else {})))
    np.savez(update, **held)
    seen = []
    monkeypatch.setattr(audit, "_attacked", lambda *given: seen.append(given) or 1 / 0)
    model = ("--model=support.own_models:Normed", "--norm_mode=eval")
    with pytest.raises(ZeroDivisionError):
        run(f"--params={params}", f"--update={update}", *model, *SIZES)
    ((_, loss, found, _),) = seen
    batch = {"image": drawn.uniform(size=(1, 6, 6, 1)), "label": np.zeros(1, int)}
    truth = adapted._replace(buffers=buffers if beside else adapted.buffers)
    expected, _ = truth.loss(train=False)
    np.testing.assert_allclose(
        loss(found, batch), expected(adapted.params, batch), rtol=1e-5
    )


def test_without_pillow_all_but_the_picture_is_there(
    saved, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "out"
    assert run(*saved[0], LOSS, *SIZES, f"--workdir={out}") == 0
    found = {file.name for file in out.iterdir()}
    assert {"summary.json", "reconstructions.npz"} <= found and "grid.png" not in found
    assert "invertjax[report]" in capsys.readouterr().out

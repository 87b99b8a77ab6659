"""Bad input: one line that names the flag, its value and what is right, exit code 2,
before anything is traced, made or overwritten (`cli.refused` checks all of that)."""

import json
import os
import socket
import sys

import numpy as np
import pytest
from PIL import Image
from support import cli

from experiments import data
from experiments.settings import settings
from invertjax.cli import locks

SMALL = ("--model=mlp", "--width=9", "--image_size=8")

cheap_compilation = cli.cheap_compilation  # a fixture


@pytest.fixture
def own_loss(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_loss", "raises"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return cli.own_loss(tmp_path)


@pytest.mark.parametrize(
    "loss, says",
    [
        ("own_loss:each", ["returns shape (1,)", "scalar"]),
        ("own_loss:broken", ["fails on images of shape (1, 8, 8, 3)", "KeyError"]),
        ("own_loss:missing", ["module:function", "missing"]),
        ("own_loss:constant", ["no function"]),
        ("own_loss", ["module:function"]),
        ("no_such_module:loss", ["module:function", "no_such_module"]),
        ("raises:loss", ["module:function", "ZeroDivisionError"]),
    ],
)
def test_bad_losses_are_refused(loss, says, own_loss, tmp_path, capsys):
    line = cli.refused(capsys, tmp_path / "run", *own_loss, f"--loss={loss}")
    for fragment in (f"--loss={loss}", *says):
        assert fragment in line


def _without(name):
    return lambda arrays: arrays.pop(name)


def _set(name, value):
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    "file, change, says",
    [
        ("update", _without("layers/1/bias"), ["no array 'layers/1/bias'", "(10,)"]),
        ("update", _set("layers/2/bias", np.ones(1)), ["'layers/2/bias' too many"]),
        ("update", _set("layers/1/bias", np.ones(9)), ["(9,)", "(10,)"]),
        ("update", _set("layers/1/bias", np.full(10, np.nan)), ["not finite"]),
        ("update", _set("layers/1/bias", np.array([{}])), ["Python objects"]),
        ("update", lambda a: a.update({k: 0.0 * a[k] for k in a}), ["zeros"]),
        ("params", _without("layers/1/bias"), ["layers/1/bias", "--num_classes=10"]),
        ("params", _set("layers/1/bias", np.full(10, np.inf)), ["not finite"]),
        ("params", _set("layers/1/bias", np.arange(10)), ["int64", "floats"]),
    ],
)
def test_bad_updates_are_refused(file, change, says, tmp_path, capsys):
    cli.own_update(tmp_path)
    path = tmp_path / f"{file}.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(path, **arrays)
    args = (*cli.own_flags(tmp_path), "--model=mlp", "--width=9")
    line = cli.refused(capsys, tmp_path / "run", *args)
    for fragment in (f"--{file}={path}", *says):
        assert fragment in line


@pytest.mark.parametrize(
    "args, says",
    [
        (["--model=mlp", "--width=8"], ["--params=", "(9,)", "(8,)", "--model=mlp"]),
        (["--model=lenet"], ["--params=", "--model=lenet"]),
        (["--model=mlp", "--num_classes=9"], ["--params=", "--num_classes=9"]),
        (["--model=mlp", "--width=9", "--image_shape=8,8,1"], ["8,8,1", "(192, 9)"]),
        (["--model=cnn", "--image_shape=2,2,3"], ["--model=cnn", "(2, 2, 3)"]),
    ],
)
def test_params_of_another_model_are_refused(args, says, tmp_path, capsys):
    cli.own_update(tmp_path)
    line = cli.refused(capsys, tmp_path / "run", *cli.own_flags(tmp_path), *args)
    for fragment in says:
        assert fragment in line


def test_truncated_updates_are_refused(tmp_path, capsys):
    cli.own_update(tmp_path)
    path = tmp_path / "update.npz"
    path.write_bytes(path.read_bytes()[:3000])
    args = (*cli.own_flags(tmp_path), "--model=mlp", "--width=9")
    line = cli.refused(capsys, tmp_path / "run", *args)
    assert f"--update={path}" in line and "cannot be read" in line


@pytest.fixture
def folder(tmp_path):
    """Two classes of six real images, in files."""
    images = data.load("photos", "test", image_size=8, limit=12).images
    for i, image in enumerate(images):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).round().astype(np.uint8)).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize(
    "args, says",
    [
        (["--dataset=photo"], ["--dataset=photo", "did you mean photos"]),
        (["--dataset=cifar11"], ["--dataset=cifar11", "cifar10"]),
        (["--split=tset"], ["--split=tset", "train or test"]),
        (["--train_split=trian"], ["--train_split=trian", "train or test"]),
        (["--split=test[90:]"], ["--split=test[90:]", "80"]),
        (["--batch_size=81"], ["--batch_size=81", "80"]),
        (["--batch_size=30", "--targets=3"], ["--batch_size=30", "--targets=3", "90"]),
        (["--split=train", "--train_split=train[:4]"], ["--train_split=train[:4]"]),
        (["--dataset=folder:/no/where"], ["--dataset=folder:/no/where", "No folder"]),
        (["--model=resnet18", "--attack=analytic"], ["--attack=analytic", "resnet18"]),
        (["--checkpoint=no.safetensors"], ["--checkpoint=no.safetensors", "no such"]),
        (["--checkpoint=c.pkl", "--train_steps=1"], ["--checkpoint=c.pkl", "*.safet"]),
        (
            ["--checkpoint=/dev/null/c.safetensors", "--train_steps=1"],
            ["--checkpoint=/dev/null/c.safetensors", "folder"],
        ),
    ],
)
def test_bad_data_and_victims_are_refused(args, says, tmp_path, capsys):
    line = cli.refused(capsys, tmp_path / "run", *args)
    for fragment in says:
        assert fragment in line


def test_damaged_images_are_refused(folder, tmp_path, capsys):
    file = folder / "b" / "01.png"
    file.write_bytes(file.read_bytes()[:-40])
    line = cli.refused(capsys, tmp_path / "run", f"--dataset=folder:{folder}", *SMALL)
    assert f"--dataset=folder:{folder}" in line and "01.png" in line
    file.write_bytes(b"no image")
    line = cli.refused(capsys, tmp_path / "run", f"--dataset=folder:{folder}", *SMALL)
    assert f"--dataset=folder:{folder}" in line and "01.png" in line


def test_data_that_is_not_there_is_refused_without_a_network(
    tmp_path, capsys, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    flags = ("--dataset=cifar10", f"--data_dir={tmp_path / 'tfds'}")
    line = cli.refused(capsys, tmp_path / "run", *flags)
    for fragment in ("--dataset=cifar10", "not prepared", "download_and_prepare"):
        assert fragment in line
    assert not (tmp_path / "tfds").exists()


def test_labels_out_of_range_are_refused(tmp_path, capsys, monkeypatch):
    load = data.load

    def mislabelled(*args, **kwargs):
        held = load(*args, **kwargs)
        return held._replace(labels=held.labels + 1)

    monkeypatch.setattr(data, "load", mislabelled)
    line = cli.refused(capsys, tmp_path / "run", *SMALL, "--targets=8")
    assert "labels from 1 to 8: expected 0 to 7" in line and "--dataset=photos" in line


@pytest.mark.parametrize(
    "args, says",
    [
        (
            ["--local_steps=2", "--local_lr=1e30"],
            ["not finite", "--local_lr=1e+30"],
        ),
        (["--labels=inferred", "--width=8"], ["--labels=inferred", "found"]),
    ],
)
def test_updates_that_cannot_be_attacked_are_refused(args, says, tmp_path, capsys):
    line = cli.refused(
        capsys, tmp_path / "run", "--attack=inverting_gradients", *SMALL, *args
    )
    for fragment in says:
        assert fragment in line


def test_folders_that_cannot_be_written_are_refused(tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "run", tmp_path / ("x" * 300) / "run"):
        assert f"--workdir={out}" in _refused_at(capsys, out)
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root
    assert "permission" in _refused_at(capsys, tmp_path / "a" / "run")


def _refused_at(capsys, out):
    assert cli.run(*SMALL, f"--workdir={out}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
def test_a_folder_in_which_another_process_is_at_work(flags, tmp_path, capsys):
    """Whatever is asked for, its files are left to it."""
    small = (*SMALL, "--steps=2", "--targets=1")
    workdir = tmp_path / "run"
    workdir.mkdir()
    if flags:
        (workdir / "metrics.jsonl").write_text("")
    if "--resume" in flags:
        chosen = settings.flat(settings.resolve(cli.given(*small)))
        (workdir / "config.json").write_text(json.dumps({"settings": chosen}))
    with locks.alone(workdir):
        line = cli.refused(capsys, workdir, *small, *flags)
    assert f"--workdir={workdir}: another process is at work" in line
